"""How much memory a call of VGGT-Ω takes: blocks as in VGGT, depth maps at a quarter of the size.

A frame in the head has about six maps of 256 channels at 4 x 4 pixels per patch (416 x 624: 8.3 MB each), and both
predictions in fp32 twice, before and after the exponential.
"""

from dataclasses import dataclass
from typing import Any

from vggt_int8.model.omega.network import layers_read
from vggt_int8.runtime.memory import Plan, Shape, longest_part

_MAPS = 6
_PREDICTED = 4  # fp32 values a pixel: two predictions, twice


@dataclass(frozen=True)
class OmegaShape(Shape):
    """What the memory of a call depends on; see `Shape`."""

    def _head_bytes(self, config: Any, plan: Plan) -> int:
        pixels, all_frames = self.height * self.width, self.batch * self.frames
        total = self.tokens(config) * config.embed_dim * self.number_bytes * 2 * self._layers_on_device(config, plan)
        if "depth" in self.heads:
            if not plan.outputs_on_host:
                total += 2 * 4 * all_frames * pixels
            coarse = 16 * pixels // config.patch_size**2
            frame = _MAPS * config.dpt_features * coarse * self.number_bytes + 4 * _PREDICTED * pixels
            total += longest_part(all_frames, plan.head_frames) * frame
        return total

    def _layers_on_device(self, config: Any, plan: Plan) -> int:
        return max(0, len(layers_read(self.heads, config)) - plan.layers_on_host)
