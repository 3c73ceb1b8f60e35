"""The README's picture: a bundled scene's images, the INT8 model's depth, its points and cameras seen from elsewhere.

    python docs/reconstruction.py [--scene room] [--out docs/reconstruction.png]

The embedded model runs under `int8_dynamic` on the CPU; everything drawn is its own output. Points are those that
`vggt-int8 run` writes to points.ply (unprojected depth, without the least confident quarter), as discs that hide what
lies behind them. Cameras are the predicted ones, as pyramids whose base is the picture's frame.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from vggt_int8 import VGGTInt8, VGGTOutput, load_images
from vggt_int8.export.color import colorize_depth, robust_range
from vggt_int8.geometry import invert_extrinsic, unproject_depth

SCENES = Path(__file__).parent.parent / "vggt_int8" / "assets" / "scenes"
WIDTH, HEIGHT, TILE, GAP = 960, 500, 116, 4  # pixels of the view, of a small picture, between them
SHARPER = 2  # drawn so many times larger, then averaged
BEHIND, ABOVE, ASIDE = 1.3, 0.9, 0.5  # the viewer from the middle of the cameras, in distances to the scene
FRUSTUM = 0.09  # depth of a camera's pyramid, in the same unit
CAMERA_COLOR = (235, 120, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", choices=sorted(path.name for path in SCENES.iterdir()), default="room")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    args = parser.parse_args()
    model = VGGTInt8.from_pretrained("embedded", recipe="int8_dynamic", device_map="cpu")
    images = load_images(str(SCENES / args.scene / "image_*.png"), model=model)
    pred = model(images)
    view = draw_view(images, pred).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (WIDTH, HEIGHT + 2 * (TILE + GAP)), "white")
    sheet.paste(view, (0, 2 * (TILE + GAP)))
    depth = pred.depth[0, ..., 0].numpy()
    near, far = robust_range(depth)
    for i_image, (image, values) in enumerate(zip(images, depth, strict=True)):
        codes = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        left = i_image * (WIDTH + GAP) // len(images)
        for row, tile in enumerate((codes, colorize_depth(values, near, far))):
            sheet.paste(
                Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.LANCZOS), (left, row * (TILE + GAP))
            )
    sheet.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


def draw_view(images: torch.Tensor, pred: VGGTOutput) -> Image.Image:
    """Points and cameras from behind and above the middle of the cameras, far things first."""
    extrinsic, intrinsic = pred.extrinsic[0], pred.intrinsic[0]
    points = unproject_depth(pred.depth[0], extrinsic, intrinsic)
    keep = pred.depth_conf[0] >= np.percentile(pred.depth_conf.numpy(), 25)
    size = pred.depth[0, ..., 0] / intrinsic[:, None, None, 0, 0]  # of a pixel, where its point is
    points, size = points[keep].double().numpy(), size[keep].double().numpy()
    colors = (images.permute(0, 2, 3, 1)[keep] * 255).round().byte().numpy()
    cameras = invert_extrinsic(extrinsic).double().numpy()  # world from camera
    distance = float(np.linalg.norm(np.median(points, axis=0) - cameras[:, :, 3].mean(axis=0)))
    project = viewer(points, cameras, distance)

    picture = Image.new("RGB", (WIDTH * SHARPER, HEIGHT * SHARPER), "white")
    draw = ImageDraw.Draw(picture)
    xy, z = project(points)
    radius = 0.75 * size / z * picture.width
    order = np.argsort(-z)
    for (x, y), r, color in zip(xy[order], radius[order], colors[order], strict=True):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(map(int, color)))
    height, width = images.shape[-2:]
    for camera, matrix in zip(cameras, intrinsic.double().numpy(), strict=True):
        corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]) @ np.linalg.inv(matrix).T
        rays = np.concatenate((np.zeros((1, 3)), corners * FRUSTUM * distance))
        tip, *base = (tuple(p) for p in project(rays @ camera[:, :3].T + camera[:, 3])[0])
        for a, b in [*zip(base, base[1:] + base[:1], strict=True), *((tip, corner) for corner in base)]:
            draw.line((*a, *b), fill=CAMERA_COLOR, width=2 * SHARPER)
    return picture


def viewer(points: np.ndarray, cameras: np.ndarray, distance: float):
    """A function from world points [N, 3] to the picture's pixels [N, 2] and distances along the viewing axis [N]."""
    right, down, forward = (cameras[:, :, i].mean(axis=0) for i in range(3))
    place = cameras[:, :, 3].mean(axis=0) + distance * (ASIDE * right - ABOVE * down - BEHIND * forward)
    z_axis = np.median(points, axis=0) - place
    z_axis /= np.linalg.norm(z_axis)
    x_axis = np.cross(down, z_axis)
    x_axis /= np.linalg.norm(x_axis)
    rotation = np.stack((x_axis, np.cross(z_axis, x_axis), z_axis))

    def project(world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        local = (world - place) @ rotation.T
        center = np.array([WIDTH, HEIGHT]) * SHARPER / 2
        return local[:, :2] / local[:, 2:] * WIDTH * SHARPER + center, local[:, 2]

    return project


if __name__ == "__main__":
    main()
