"""The meaning of a scene's numbers as text, which accompanies them in every file that people read."""

CONVENTION = {
    "axes": "OpenCV: x right, y down, z forward",
    "extrinsic": "3x4 [R | t], camera from world: x_camera = R x_world + t; the network puts the world "
    "at the first image's camera",
    "camera_center": "position of the camera in the world, -R^T t",
    "scale": "relative: lengths have no metric unit",
    "intrinsic": "3x3 in pixels; the pixel of a depth is its array index (column, row), without half a pixel to the "
    "centre, as VGGT was trained and as points.ply is made; a focal length of null is infinite (field of view zero)",
    "depth": "along the camera's z axis",
    "file": "as it was given; a name that is not UTF-8 stands as a file:// URI with its bytes in percent signs",
    "resolutions": "model: the tensor that the network read; original: the file after its EXIF orientation; "
    "model pixel = original pixel * scale + offset, both (x, y) from the image's top left corner",
}
