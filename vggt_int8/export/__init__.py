"""Results on disk: the scene itself, exports of it for other programs, and a report of the run.

```python
scene = Scene.from_prediction(pred, transforms, names)
with staged_folder("out", entries=SCENE_ENTRIES) as folder:
    written = write_scene(folder, scene, ("ply", "colmap"))
    save_scene(folder / "scene", scene)     # load_scene("out") exports it again
```
The folder appears under its name only when everything in it is complete.
"""

from vggt_int8.export.owned import owned_files, write_report
from vggt_int8.export.points import PointOptions
from vggt_int8.export.report import PhaseClock, RunReport
from vggt_int8.export.sheet import depth_sheet
from vggt_int8.export.write import FORMATS, SCENE_ENTRIES, ExportOptions, write_scene
from vggt_int8.files import staged_folder, write_json
from vggt_int8.scene.saved import SceneWriter, load_scene, save_scene
from vggt_int8.scene.scene import Scene, Tracks

__all__ = [
    "FORMATS",
    "SCENE_ENTRIES",
    "ExportOptions",
    "PhaseClock",
    "PointOptions",
    "RunReport",
    "Scene",
    "SceneWriter",
    "Tracks",
    "depth_sheet",
    "load_scene",
    "owned_files",
    "save_scene",
    "staged_folder",
    "write_json",
    "write_report",
    "write_scene",
]
