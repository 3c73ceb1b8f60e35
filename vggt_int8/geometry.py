"""Camera geometry on plain tensors: pose encodings, rotations, projection, and errors between poses.

Conventions, the same as the reference network's:
- OpenCV axes: x right, y down, z forward.
- An extrinsic [..., 3, 4] is `[R | t]`, camera from world: `x_cam = R @ x_world + t`. Names like `b_from_a` state the
  direction.
- An intrinsic [..., 3, 3] is in pixels and has no skew: `[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]`.
- A quaternion is scalar last, (x, y, z, w).
- A pose encoding [..., 9] is translation (3), quaternion (4), field of view (2: **height first**, radians). Its
  principal point is implicit: the image center, (W / 2, H / 2).
- An image size is (H, W).

All operations are elementwise: no matrix product whose precision autocast or TF32 could reduce, no host
synchronization, no branch on data. fp32 and float64 are preserved; shorter floats are computed in fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pose_encoding_to_camera(pose_enc: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pose encoding [..., 9], image size (H, W) -> extrinsic [..., 3, 4], intrinsic [..., 3, 3].

    A field of view of 0 gives that focal length as inf; all other values stay finite.
    """
    height, width = image_size
    pose_enc = _at_least_fp32(pose_enc)
    translation, quaternion, fov = pose_enc.split([3, 4, 2], dim=-1)
    extrinsic = torch.cat([quaternion_to_rotation(quaternion), translation[..., None]], dim=-1)
    half_tan = torch.tan(fov / 2)
    fx, fy = width / 2 / half_tan[..., 1], height / 2 / half_tan[..., 0]
    return extrinsic, _intrinsic_matrix(fx, fy, width / 2, height / 2)


def camera_to_pose_encoding(extrinsic: Tensor, intrinsic: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Extrinsic [..., 3, 4], intrinsic [..., 3, 3], image size (H, W) -> pose encoding [..., 9].

    The quaternion has w >= 0. The principal point is dropped: an encoding implies the image center.
    """
    height, width = image_size
    extrinsic, intrinsic = _at_least_fp32(extrinsic), _at_least_fp32(intrinsic)
    fov_height = 2 * torch.atan(height / 2 / intrinsic[..., 1, 1])
    fov_width = 2 * torch.atan(width / 2 / intrinsic[..., 0, 0])
    quaternion = rotation_to_quaternion(extrinsic[..., :3])
    return torch.cat([extrinsic[..., 3], quaternion, torch.stack([fov_height, fov_width], dim=-1)], dim=-1)


def invert_pose_encoding(pose_enc: Tensor) -> Tensor:
    """[..., 9] of poses world-from-camera -> the same poses camera-from-world, or back; fields of view stay."""
    translation, quaternion, fov = _at_least_fp32(pose_enc).split([3, 4, 2], dim=-1)
    inverse = torch.cat([-quaternion[..., :3], quaternion[..., 3:]], dim=-1)
    moved = -_rotate(quaternion_to_rotation(inverse), translation)
    return torch.cat([moved, inverse, fov], dim=-1)


def quaternion_to_rotation(quaternion: Tensor) -> Tensor:
    """Quaternion [..., 4] (x, y, z, w) of any length -> rotation [..., 3, 3]; NaN if the length is 0."""
    quaternion = _at_least_fp32(quaternion)
    # Normalize the largest entry to 1, so that the squared length neither overflows nor underflows.
    quaternion = quaternion / quaternion.abs().amax(dim=-1, keepdim=True)
    x, y, z, w = quaternion.unbind(-1)
    s = 2 / quaternion.square().sum(-1)
    rows = (
        (1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)),
        (s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)),
        (s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def rotation_to_quaternion(rotation: Tensor) -> Tensor:
    """Rotation matrix [..., 3, 3] -> unit quaternion [..., 4] (x, y, z, w) with w >= 0.

    The matrix gives all products `4 * q_i * q_j` without division. Each row of that 4x4 table is the
    quaternion times one of its own entries; the row of the largest entry is well conditioned for every angle.
    """
    r = _at_least_fp32(rotation)
    (r00, r01, r02), (r10, r11, r12), (r20, r21, r22) = (row.unbind(-1) for row in r.unbind(-2))
    xy, xz, yz = r10 + r01, r20 + r02, r21 + r12
    xw, yw, zw = r21 - r12, r02 - r20, r10 - r01
    products = (
        (1 + r00 - r11 - r22, xy, xz, xw),
        (xy, 1 - r00 + r11 - r22, yz, yw),
        (xz, yz, 1 - r00 - r11 + r22, zw),
        (xw, yw, zw, 1 + r00 + r11 + r22),
    )
    table = torch.stack([torch.stack(row, dim=-1) for row in products], dim=-2)  # [..., 4, 4]
    best = table.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    quaternion = torch.take_along_dim(table, best[..., None, None], dim=-2).squeeze(-2)
    quaternion = F.normalize(quaternion, dim=-1)
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def invert_extrinsic(extrinsic: Tensor) -> Tensor:
    """[..., 3, 4] b-from-a -> [..., 3, 4] a-from-b."""
    extrinsic = _at_least_fp32(extrinsic)
    inverse_rotation = extrinsic[..., :3].mT
    return torch.cat([inverse_rotation, camera_center(extrinsic)[..., None]], dim=-1)


def compose_extrinsics(c_from_b: Tensor, b_from_a: Tensor) -> Tensor:
    """[..., 3, 4] c-from-b after [..., 3, 4] b-from-a -> [..., 3, 4] c-from-a."""
    c_from_b, b_from_a = _at_least_fp32(c_from_b), _at_least_fp32(b_from_a)
    columns = _rotate(c_from_b[..., None, :, :3], b_from_a.mT)  # [..., 4 columns, 3]
    translation = columns[..., 3, :] + c_from_b[..., 3]
    return torch.cat([columns[..., :3, :].mT, translation[..., None]], dim=-1)


def relative_pose(extrinsic_a: Tensor, extrinsic_b: Tensor) -> Tensor:
    """Two extrinsics [..., 3, 4] in the same world -> camera-b-from-camera-a [..., 3, 4]."""
    return compose_extrinsics(extrinsic_b, invert_extrinsic(extrinsic_a))


def camera_center(extrinsic: Tensor) -> Tensor:
    """Extrinsic [..., 3, 4] -> the camera's position in the world [..., 3]."""
    extrinsic = _at_least_fp32(extrinsic)
    return -_rotate(extrinsic[..., :3].mT, extrinsic[..., 3])


def transform_points(points: Tensor, extrinsic: Tensor) -> Tensor:
    """World points [..., N, 3] and extrinsic [..., 3, 4] -> points in camera coordinates [..., N, 3]."""
    points, extrinsic = _at_least_fp32(points), _at_least_fp32(extrinsic)
    return _rotate(extrinsic[..., None, :, :3], points) + extrinsic[..., None, :, 3]


def project_points(points: Tensor, extrinsic: Tensor, intrinsic: Tensor) -> tuple[Tensor, Tensor]:
    """World points [..., N, 3] -> pixels [..., N, 2] (x, y) and depth [..., N] along the camera's z axis.

    The pixel of a point with depth <= 0 (behind the camera) is meaningless: mask by the depth.
    """
    camera_points, intrinsic = transform_points(points, extrinsic), _at_least_fp32(intrinsic)
    depth = camera_points[..., 2]
    x, y = camera_points[..., 0] / depth, camera_points[..., 1] / depth
    u = x * intrinsic[..., None, 0, 0] + intrinsic[..., None, 0, 2]
    v = y * intrinsic[..., None, 1, 1] + intrinsic[..., None, 1, 2]
    return torch.stack([u, v], dim=-1), depth


def unproject_depth(depth: Tensor, extrinsic: Tensor, intrinsic: Tensor, *, pixel_center: float = 0.0) -> Tensor:
    """Depth [..., H, W] or [..., H, W, 1] along the z axis -> world points [..., H, W, 3].

    extrinsic, intrinsic: [..., 3, 4] and [..., 3, 3], with the leading dimensions of `depth`.
    pixel_center: the coordinate of the first pixel's center. 0.0 uses array indices as coordinates, as VGGT was
        trained; 0.5 suits intrinsics whose origin is the image's corner (COLMAP).
    """
    depth, extrinsic, intrinsic = map(_at_least_fp32, (depth, extrinsic, intrinsic))
    depth = _drop_channel(depth, num_leading=extrinsic.dim() - 2)
    height, width = depth.shape[-2:]
    u = torch.arange(width, device=depth.device, dtype=depth.dtype) + pixel_center
    v = torch.arange(height, device=depth.device, dtype=depth.dtype) + pixel_center
    ray_x = (u - intrinsic[..., 0, 2, None]) / intrinsic[..., 0, 0, None]  # [..., W]
    ray_y = (v - intrinsic[..., 1, 2, None]) / intrinsic[..., 1, 1, None]  # [..., H]
    camera_points = torch.stack([ray_x[..., None, :] * depth, ray_y[..., :, None] * depth, depth], dim=-1)
    world_from_camera = invert_extrinsic(extrinsic)[..., None, None, :, :]
    return _rotate(world_from_camera[..., :3], camera_points) + world_from_camera[..., 3]


def rotation_error_degrees(rotation_a: Tensor, rotation_b: Tensor) -> Tensor:
    """Angle of the rotation between two rotation matrices [..., 3, 3] -> degrees [...] in [0, 180]."""
    a, b = _at_least_fp32(rotation_a), _at_least_fp32(rotation_b)
    between = torch.stack([_rotate(b, column) for column in a.unbind(-2)], dim=-1)  # b @ a^T
    skew = between - between.mT
    axis = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], dim=-1)
    trace = between.diagonal(dim1=-2, dim2=-1).sum(-1)
    # axis| = 2 sin and trace - 1 = 2 cos: accurate at both ends, where acos would lose half of the digits.
    return torch.rad2deg(torch.atan2(axis.norm(dim=-1), trace - 1))


def direction_error_degrees(direction_a: Tensor, direction_b: Tensor) -> Tensor:
    """Angle between two vectors [..., 3] of any length -> degrees [...] in [0, 180]; 0 if either is zero."""
    a, b = _at_least_fp32(direction_a), _at_least_fp32(direction_b)
    cross = torch.linalg.cross(a, b).norm(dim=-1)
    return torch.rad2deg(torch.atan2(cross, (a * b).sum(-1)))


def relative_center_distance(extrinsic_a: Tensor, extrinsic_b: Tensor) -> Tensor:
    """Two sets of cameras [..., S, 3, 4] in the same world -> distances [..., S] between their centers.

    In units of a's extent: the largest distance of one of its centers from the first. If that is 0, a camera at another
    position has distance inf, and one at the same position 0.
    """
    a, b = camera_center(extrinsic_a), camera_center(extrinsic_b)
    extent = (a - a[..., :1, :]).norm(dim=-1).amax(dim=-1, keepdim=True)
    distance = (b - a).norm(dim=-1)
    return torch.where(distance == 0, torch.zeros_like(distance), distance / extent)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _rotate(rotation: Tensor, points: Tensor) -> Tensor:
    """`rotation @ point` without a matrix product: rotation [..., 3, 3], points [..., 3] -> [..., 3], broadcasting."""
    x, y, z = points.split(1, dim=-1)
    return rotation[..., 0] * x + rotation[..., 1] * y + rotation[..., 2] * z


def _intrinsic_matrix(fx: Tensor, fy: Tensor, cx: float, cy: float) -> Tensor:
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = (
        (fx, zero, torch.full_like(fx, cx)),
        (zero, fy, torch.full_like(fx, cy)),
        (zero, zero, one),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _drop_channel(depth: Tensor, num_leading: int) -> Tensor:
    """[..., H, W, 1] -> [..., H, W]. The camera's leading dimensions tell the two layouts apart."""
    if depth.dim() == num_leading + 2:
        return depth
    if depth.dim() == num_leading + 3 and depth.shape[-1] == 1:
        return depth.squeeze(-1)
    raise ValueError(
        f"depth has shape {tuple(depth.shape)}; with {num_leading} leading camera dimensions it must be "
        f"[..., H, W] or [..., H, W, 1] with the same leading dimensions"
    )
