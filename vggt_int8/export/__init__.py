"""A prediction on disk: cameras.json, depth and confidence maps, a point cloud, and a report of the run.

```python
with staged_folder("out", entries=SCENE_ENTRIES) as folder:
    written = write_scene(folder, pred, transforms, names)
```
The folder appears under its name only when everything in it is complete.
"""

from vggt_int8.export.owned import owned_files, write_report
from vggt_int8.export.report import PhaseClock, RunReport
from vggt_int8.export.sheet import depth_sheet
from vggt_int8.export.write import SCENE_ENTRIES, write_scene
from vggt_int8.files import staged_folder, write_json

__all__ = [
    "SCENE_ENTRIES",
    "PhaseClock",
    "RunReport",
    "depth_sheet",
    "owned_files",
    "staged_folder",
    "write_json",
    "write_report",
    "write_scene",
]
