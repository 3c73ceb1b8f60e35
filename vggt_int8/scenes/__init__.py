"""Procedural multi-view scenes with exact ground truth: data for training, calibration, tests and demos.

`render_scenes(seeds, frames, size)` returns images, depth, world points, cameras and, on request, point tracks.
Everything follows from a 64-bit seed per scene: `seeds` keeps the splits apart, `layout` furnishes a scene, `paths`
moves the camera, `raycast` and `textures` compute the pixels, `render` combines them; `stored` reads and writes scenes
as files, some of which are shipped. `vggt_int8.eval.metrics` scores a reconstruction.
"""

from vggt_int8.scenes.describe import SceneDescription, describe_scenes
from vggt_int8.scenes.render import SceneBatch, render_description, render_scenes, scene_batches
from vggt_int8.scenes.seeds import SPLITS, scene_seeds
from vggt_int8.scenes.stored import StoredScene, available_scenes, load_scene, save_scene

__all__ = [
    "SPLITS",
    "SceneBatch",
    "SceneDescription",
    "StoredScene",
    "available_scenes",
    "describe_scenes",
    "load_scene",
    "render_description",
    "render_scenes",
    "save_scene",
    "scene_batches",
    "scene_seeds",
]
