"""A ROS 2 node that publishes depth of the last images of a topic. `Core` is all that computes, poses too, without ROS.

    ros2 run … vggt_node --ros-args -p model:=vggt-1b-int8 -p frames:=8 -r image:=/camera/image_raw

Depth is relative: its unit is one for all images of a window, and another one in the next.
"""

from collections import deque

import numpy as np
import torch
import torch.nn.functional as F

from vggt_int8 import VGGTInt8


class Core:
    """Keeps the last `frames` RGB images (uint8 [H, W, 3], all of one size) and reconstructs them together."""

    def __init__(self, model: str, frames: int = 8, device: str = "cuda") -> None:
        self.model = VGGTInt8.from_pretrained(model, device_map=device).eval()
        self.images: deque[np.ndarray] = deque(maxlen=frames)

    def add(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Depth [H, W] fp32 of this image, and camera-from-first [3, 4]; None until there are two images."""
        self.images.append(image)
        if len(self.images) < 2:
            return None
        config, (height, width) = self.model.config, image.shape[:2]
        rows = max(1, round(height * config.img_size / width / config.patch_size)) * config.patch_size
        pixels = torch.from_numpy(np.stack(self.images)).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, (rows, config.img_size), mode="bilinear", antialias=True).clamp(0, 1)
        with torch.inference_mode():
            pred = self.model(pixels.to(self.model.device), heads=("camera", "depth"))
        depth = F.interpolate(pred.depth[0, -1:, ..., 0][None], (height, width), mode="nearest")
        return depth[0, 0].cpu().numpy(), pred.extrinsic[0, -1].cpu().numpy()


def main() -> None:
    import rclpy
    from cv_bridge import CvBridge
    from rclpy.node import Node
    from sensor_msgs.msg import Image

    rclpy.init()
    node, bridge = Node("vggt_int8"), CvBridge()
    core = Core(node.declare_parameter("model", "facebook/VGGT-1B").value, node.declare_parameter("frames", 8).value)
    depth_topic = node.create_publisher(Image, "depth", 1)

    def on_image(message: Image) -> None:
        found = core.add(bridge.imgmsg_to_cv2(message, "rgb8"))
        if found is not None:
            depth_topic.publish(bridge.cv2_to_imgmsg(found[0], "32FC1", header=message.header))

    node.create_subscription(Image, "image", on_image, 1)
    rclpy.spin(node)


if __name__ == "__main__":
    main()
