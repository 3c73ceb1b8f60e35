"""ComfyUI nodes: load a VGGT in INT8, reconstruct a batch of images, get depth pictures and a GLB or PLY file.

Copy this folder into ComfyUI's `custom_nodes` and install vggt-int8 into its environment. An IMAGE of ComfyUI is
[S, H, W, 3] in [0, 1].
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from vggt_int8 import VGGTInt8, available_recipes
from vggt_int8.export import Scene, write_scene
from vggt_int8.images import ImageTransform


class LoadVGGT:
    RETURN_TYPES, FUNCTION, CATEGORY = ("VGGT",), "load", "vggt-int8"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("STRING", {"default": "facebook/VGGT-1B"}),
                             "recipe": (["none", *available_recipes()], {"default": "int8_rotated"}),
                             "device": (["cuda", "cpu"],)}}  # fmt: skip

    def load(self, model, recipe, device):
        return (VGGTInt8.from_pretrained(model, recipe=None if recipe == "none" else recipe, device_map=device).eval(),)


class Reconstruct:
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "STRING"), ("depth", "file")
    FUNCTION, CATEGORY = "reconstruct", "vggt-int8"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vggt": ("VGGT",), "images": ("IMAGE",), "format": (["glb", "ply"],)}}

    def reconstruct(self, vggt, images, format):
        original, side, patch = tuple(images.shape[1:3]), vggt.config.img_size, vggt.config.patch_size
        size = (max(patch, round(original[0] * side / original[1] / patch) * patch), side)
        pixels = F.interpolate(images.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True).clamp(0, 1)
        with torch.inference_mode():
            pred = vggt(pixels.to(vggt.device))
        transform = ImageTransform(original, size, (size[1] / original[1], size[0] / original[0]), (0.0, 0.0))
        scene = Scene.from_prediction(pred, [transform] * len(pixels), [f"{i:04d}.png" for i in range(len(pixels))])
        folder = Path(tempfile.mkdtemp(prefix="vggt-int8-"))
        write_scene(folder, scene, (format,))
        near = 1 / pred.depth[0].cpu()  # [S, H, W, 1]: near is bright
        return (near / near.max()).expand(-1, -1, -1, 3), str(
            folder / {"glb": "scene.glb", "ply": "points.ply"}[format]
        )


NODE_CLASS_MAPPINGS = {"LoadVGGTInt8": LoadVGGT, "ReconstructVGGTInt8": Reconstruct}
