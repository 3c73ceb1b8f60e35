"""The network to measure: its sizes, one set of weights that all variants start from, and the images.

Time does not depend on the values of weights, so random ones with VGGT-1B's shapes serve without a checkpoint. They are
drawn such that errors show: every branch contributes, and depth and points vary over the image instead of being nearly
constant, as those of an untrained head.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.configs import CONFIGS, AnyConfig
from vggt_int8.model.families import AnyNetwork, network_class, pose_output
from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.model.omega.config import VGGTOmegaConfig
from vggt_int8.model.vggt import VGGT
from vggt_int8.plain_data import shown
from vggt_int8.pretrained.kinds import config_class
from vggt_int8.pretrained.model import int8_class_of
from vggt_int8.saves.plain_files import read_json
from vggt_int8.scenes import render_scenes, scene_seeds

RANDOM = "random:"
SIZES: dict[str, dict[str, Any]] = {
    "vggt-1b": {},
    "vggt-omega": {"model_type": VGGTOmegaConfig.model_type},
    "small": {
        "img_size": 112,
        "embed_dim": 192,
        "encoder_depth": 4,
        "encoder_num_heads": 3,
        "depth": 4,
        "num_heads": 3,
        "camera_depth": 2,
        "camera_num_heads": 6,
        "dpt_features": 64,
        "dpt_out_channels": [48, 96, 192, 192],
        "dpt_layers": [0, 1, 2, 3],
    },
}
NAMES = {"vggt-1b": "VGGT-1B", "vggt-omega": "VGGT-Omega"}
LOGIT_SPREAD = 0.5  # standard deviation of what goes into the exponentials of depth, points and confidences
FIELD_OF_VIEW = 1.0  # radians, about 60 degrees
SCENE = 4  # images of a scene that static scales are found on


@dataclass(frozen=True)
class Source:
    """weights: fp32 by name, on the host (pinned if a GPU will read them). No track head, since tracks are not
    measured.
    """

    name: str
    config: AnyConfig
    weights: dict[str, Tensor]

    @property
    def is_random(self) -> bool:
        return self.name.startswith(RANDOM)

    def images(self, frames: int, size: tuple[int, int], device: torch.device) -> Tensor:
        """[S, 3, H, W]: noise for random weights, a rendered scene for trained ones. The same on each call."""
        if not self.is_random:
            return render_scenes(scene_seeds("demo", [0]), frames, size, device=device, supersample=1).images[0]
        return torch.rand(frames, 3, *size, generator=torch.Generator().manual_seed(frames)).to(device)

    def calibration(self, images: int) -> list[Tensor]:
        """Scenes [S, 3, H, W] of so many images together, for recipes with static scales; none that is measured. Of the
        size that the network was made for, since ranges of activations depend on no other. Random weights get one
        scene at most: their ranges are those of any image.
        """
        images = min(images, SCENE) if self.is_random else images
        scenes, size = -(-images // SCENE), (self.config.img_size, self.config.img_size)
        if self.is_random:
            generator = torch.Generator().manual_seed(1 << 40)
            found = torch.rand(scenes, SCENE, 3, *size, generator=generator)
        else:
            found = render_scenes(scene_seeds("calibration", range(scenes)), SCENE, size, supersample=1).images
        return [scene[: images - i * SCENE] for i, scene in enumerate(found)]


def describe_source(name: str) -> str:
    """What a source's name means, for the captions of tables."""
    size = name.removeprefix(RANDOM)
    if size == name:
        return name
    return f"random weights of {NAMES.get(size, size)}'s shapes"


def default_source(device: torch.device) -> str:
    """What is measured where nothing is asked for: a CPU would take minutes for VGGT-1B."""
    return RANDOM + ("vggt-1b" if device.type == "cuda" else "small")


def load_source(name: str, device: torch.device) -> Source:
    """`random:vggt-1b` or another of `SIZES`, `random:<config.json>`, or a floating-point checkpoint: a folder, file or
    Hub id.

    Raises ValueError for an unknown size, a file that describes no network, or a quantized checkpoint;
    `CheckpointError` as `from_pretrained`.
    """
    if name.startswith(RANDOM):
        config = _config(name.removeprefix(RANDOM))
        weights = draw_weights(config, device)
    else:
        kind = int8_class_of(name)
        model = kind.from_pretrained(name, dtype=torch.float32, **_left_out(kind.config_class))
        quantization = getattr(model.config, "quantization_config", None)
        if quantization is not None:
            raise ValueError(
                f"{name} is quantized already (recipe {quantization.recipe['name']}): pass the floating-point "
                "checkpoint, from which every variant is made"
            )
        config, weights = model.config, model.state_dict()
    pinned = {key: tensor.pin_memory() if device.type == "cuda" else tensor for key, tensor in weights.items()}
    return Source(name, config, pinned)


def _left_out(kind: type[NetworkConfig]) -> dict[str, Any]:
    """Fields that switch off what is not measured: nothing here tracks."""
    return {"enable_track": False} if "enable_track" in kind.__annotations__ else {}


def _config(name: str) -> AnyConfig:
    """Of a name in `SIZES`, or of a file, in which an unknown field is no oversight: it would time another network."""
    if name not in SIZES and not name.endswith(".json"):
        choices = ", ".join(RANDOM + size for size in SIZES)
        raise ValueError(f"there are no random weights {RANDOM + name!r}: choose {choices} or {RANDOM}<config.json>")
    kind: type[AnyConfig] = VGGTConfig
    try:
        fields = SIZES[name] if name in SIZES else read_json(Path(name))
        if not isinstance(fields, dict):
            raise ValueError(f"it holds {shown(fields)}, not an object of a config's fields")
        kind = config_class(fields)
        if (said := fields.get("model_type", kind.model_type)) != kind.model_type:
            raise ValueError(f"its model_type is {shown(said)}; it can be {', '.join(CONFIGS)}")
        of_its_weights = ("save", "license", "base_model", "model_type")
        fields = {key: value for key, value in fields.items() if key not in of_its_weights}
        if unknown := sorted(fields.keys() - kind().to_dict().keys()):
            raise ValueError(f"a {kind.kind}'s config has no {', '.join(f'{key:.60}' for key in unknown[:8])}")
        config: AnyConfig = kind(**fields | _left_out(kind))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} describes no {kind.kind}: {error}") from error
    return config


@torch.no_grad()
def draw_weights(config: AnyConfig, device: torch.device) -> dict[str, Tensor]:
    """Random fp32 weights on the host; the same on each call on one kind of device."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(0)
        model = network_class(config)(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                nn.init.uniform_(parameter, 0.05, 0.2)
            elif name.endswith(("_token", "_tokens")):
                nn.init.normal_(parameter, std=0.3)
        images = torch.rand(2, 3, 5 * config.patch_size, 6 * config.patch_size)
    if (poses := pose_output(model)) is not None:
        poses.bias[7:] = FIELD_OF_VIEW
    for convolution in _logits(model):
        _spread_logits(model, convolution, images)
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def _logits(model: AnyNetwork) -> list[nn.Module]:
    """The convolutions that write what goes into the exponentials of depth, points and confidences."""
    if isinstance(model, VGGT):
        heads = (model.depth_head, model.point_head)
        return [list(head.scratch.output_conv2.children())[-1] for head in heads if head is not None]
    return [] if model.dense_head is None else [model.dense_head.proj, model.dense_head.proj_conf]


def _spread_logits(model: nn.Module, last: nn.Module, images: Tensor) -> None:
    """Scale and shift a last convolution so that its outputs have mean 0 and the spread wanted, per channel."""
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    seen: list[Tensor] = []
    hook = last.register_forward_hook(lambda *call: seen.append(call[2]))
    model(images)
    hook.remove()
    logits = torch.cat(seen).transpose(0, 1).flatten(1)
    factor = LOGIT_SPREAD / logits.std(dim=1)
    last.weight *= factor[:, None, None, None]
    last.bias.copy_((last.bias - logits.mean(dim=1)) * factor)
