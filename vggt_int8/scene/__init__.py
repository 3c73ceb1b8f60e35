"""The result of a model: one reconstructed `Scene`, in memory or on disk, which everything downstream reads.

`Scene` defines its content, `saved` its files, `convention` the meaning of its numbers.
"""

from vggt_int8.scene.convention import CONVENTION
from vggt_int8.scene.saved import SceneWriter, load_scene, save_scene
from vggt_int8.scene.scene import Scene, Tracks

__all__ = ["CONVENTION", "Scene", "SceneWriter", "Tracks", "load_scene", "save_scene"]
