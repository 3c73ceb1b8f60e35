"""What leaves the model: one reconstructed `Scene`, in memory or on the disk, which everything after it reads.

`Scene` says what is in it, `saved` how it lies on the disk, `convention` what its numbers mean.
"""

from vggt_int8.scene.convention import CONVENTION
from vggt_int8.scene.saved import SceneWriter, load_scene, save_scene
from vggt_int8.scene.scene import Scene, Tracks

__all__ = ["CONVENTION", "Scene", "SceneWriter", "Tracks", "load_scene", "save_scene"]
