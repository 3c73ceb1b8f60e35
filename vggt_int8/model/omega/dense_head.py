"""The depth head: dense maps at a quarter of the size, and a pixel shuffle to full size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.model.dpt_head import Fusion, PlainResidualUnit, Pyramid, add_uv_embedding
from vggt_int8.model.omega.config import MAP_STRIDE, VGGTOmegaConfig


class OmegaDenseHead(Pyramid):
    """Tokens of four layers -> depth [B, S, H, W, 1] and its confidence [B, S, H, W] (above 1), both fp32."""

    def __init__(self, config: VGGTOmegaConfig) -> None:
        channels = config.dpt_features
        super().__init__(config, channels)
        self.shuffle = config.patch_size // MAP_STRIDE
        self.scratch = Fusion(config.dpt_out_channels, channels, PlainResidualUnit)
        self.proj = nn.Conv2d(channels, self.shuffle**2, kernel_size=1)
        self.proj_conf = nn.Conv2d(channels, self.shuffle**2, kernel_size=1)

    def forward(
        self, tokens: dict[int, Tensor], image_size: tuple[int, int], chunk: int | None
    ) -> tuple[Tensor, Tensor]:
        depths, confidences = [], []
        for patches in self.frame_chunks(tokens, image_size, chunk):
            depth, confidence = self.run_chunk(patches, image_size)
            depths.append(depth)
            confidences.append(confidence)
        return torch.cat(depths, dim=1), torch.cat(confidences, dim=1)

    def run_chunk(self, patches: list[Tensor], image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Four tensors [B, s, P, 2C] -> depth [B, s, H, W, 1], confidence [B, s, H, W].

        An fp32 island, since exponentials exceed fp16's range.
        """
        maps = self.maps(patches, image_size, uv=True)
        x = add_uv_embedding(self.scratch(*maps), image_size)
        depth, confidence = (
            F.pixel_shuffle(proj(x).float(), self.shuffle).squeeze(1).unflatten(0, patches[0].shape[:2]).exp()
            for proj in (self.proj, self.proj_conf)
        )
        return depth[..., None], 1 + confidence
