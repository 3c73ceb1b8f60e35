"""The track head: follows query points of the first frame through all frames.

Feature maps are correlated with each point's feature in a window around its current position, at several scales; a
transformer turns the correlations into updates of position and feature. This repeats a few times.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.dpt_head import DPTFeatures
from vggt_int8.model.layers import Mlp, first_and_other_frames
from vggt_int8.model.tables import displacement_frequencies, pixel_table, search_window
from vggt_int8.model.track_former import UpdateFormer
from vggt_int8.shards import FrameShard

STRIDE = 2  # image pixels per feature pixel
DISPLACEMENT_UNIT = 518.0  # displacements also enter the transformer relative to this


def sample(maps: Tensor, points: Tensor, padding: str) -> Tensor:
    """Bilinear samples of maps [F, C, h, w] at pixels [F, N, K, 2] (x, y) -> [F, C, N, K], in fp32.

    padding: "zeros" or "border", for points outside.
    """
    height, width = maps.shape[-2:]
    x, y = points.float().unbind(-1)
    grid = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], dim=-1)
    return F.grid_sample(maps.float(), grid, mode="bilinear", padding_mode=padding, align_corners=True)


def interpolate_rows(table: Tensor, positions: Tensor) -> Tensor:
    """Linear interpolation between the rows of a table [L, C] at positions [...], clamped at the ends -> [..., C]."""
    last = table.shape[0] - 1
    positions = positions.clamp(0, last)
    below = positions.floor().long().clamp(0, last)
    above = (below + 1).clamp(max=last)
    return torch.lerp(table[below], table[above], (positions - below)[..., None])


def position_embedding(points: Tensor, size: tuple[int, int], channels: int) -> Tensor:
    """Embedding [..., channels] of pixels [..., 2] in a map of size (h, w): x in the first half, then y."""
    height, width = size
    x, y = points.unbind(-1)
    columns = pixel_table(width, channels // 2, device=points.device)
    rows = pixel_table(height, channels // 2, device=points.device)
    return torch.cat([interpolate_rows(columns, x), interpolate_rows(rows, y)], dim=-1)


def displacement_embedding(displacement: Tensor, channels: int) -> Tensor:
    """Displacements [..., 2] in pixels -> [..., 2 * channels + 4], with interleaved sines and cosines."""
    angles = displacement[..., None] * displacement_frequencies(channels, device=displacement.device)
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)
    relative = displacement / DISPLACEMENT_UNIT
    return torch.cat([waves, relative, relative], dim=-1)


class Tracker(nn.Module):
    """Feature maps and query points -> tracks, visibility and confidence; shapes as in `TrackHead`.

    Positions, displacements, correlations and the points' features are fp32 throughout.
    """

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        channels = config.track_features
        self.channels, self.iterations = channels, config.track_iterations
        self.levels, self.radius = config.track_corr_levels, config.track_corr_radius
        self.token_dim = 3 * channels + 4
        window = (2 * self.radius + 1) ** 2
        self.corr_mlp = Mlp(self.levels * window, config.track_hidden_size, channels)
        self.query_ref_token = nn.Parameter(torch.zeros(1, 2, self.token_dim))
        self.updateformer = UpdateFormer(self.token_dim, config.track_hidden_size, channels + 2)
        self.fmap_norm = nn.LayerNorm(channels)
        self.ffeat_norm = nn.GroupNorm(1, channels)
        self.ffeat_updater = nn.Sequential(nn.Linear(channels, channels), nn.GELU())
        self.vis_predictor = nn.Sequential(nn.Linear(channels, 1))
        self.conf_predictor = nn.Sequential(nn.Linear(channels, 1))

    def forward(
        self, feature_maps: Tensor, query_points: Tensor, chunk: int | None, shard: FrameShard | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """With a shard, the maps are those of its frames: each process correlates its own frames, and all update all
        points.
        """
        dtype, frames = feature_maps.dtype, feature_maps.shape[1] if shard is None else shard.frames
        own = slice(None) if shard is None else shard.own
        feature_maps = self.fmap_norm(feature_maps.movedim(2, -1)).movedim(-1, 2)
        pyramid = self.pyramid(feature_maps)
        start = query_points[:, :, None] / STRIDE  # [B, N, 1, 2] in feature pixels
        features = sample(feature_maps[:, 0], start, "border").movedim(1, -1)  # [B, N, 1, C]
        if shard is not None:  # the first frame is on rank 0
            counts = [int(rank == 0) for rank in range(len(shard.counts))]
            features = shard.gather(features[:, None][:, : counts[shard.rank]], counts)[:, 0]
        features = features.expand(-1, -1, frames, -1)
        # Displacements are accumulated instead of positions: small numbers keep the digits that their embedding needs.
        displacement = torch.zeros_like(start).expand(-1, -1, frames, -1)
        constant = self.constant_embedding(start, frames, (feature_maps.shape[-2], feature_maps.shape[-1]))
        tracks = []
        for _ in range(self.iterations):
            displacement = displacement.detach()
            correlation = self.correlate(pyramid, features[:, :, own], (start + displacement)[:, :, own], chunk)
            if shard is not None:
                correlation = shard.gather(correlation.transpose(1, 2)).transpose(1, 2)
            moved = displacement_embedding(displacement, self.channels // 2)
            tokens = torch.cat([moved, self.corr_mlp(correlation.to(dtype)), features], dim=-1) + constant
            move, change = self.updateformer(tokens.to(dtype)).split([2, self.channels], dim=-1)
            change = self.ffeat_norm(change.flatten(0, 2)).unflatten(0, change.shape[:3])
            features = features + self.ffeat_updater(change)
            # In the first frame, the point stays at its query position.
            move = torch.cat([torch.zeros_like(move[:, :, :1]), move[:, :, 1:]], dim=2)
            displacement = displacement + move
            tracks.append((STRIDE * (start + displacement)).transpose(1, 2))
        features = features.transpose(1, 2).to(dtype)  # [B, S, N, C]
        visibility, confidence = self.vis_predictor(features), self.conf_predictor(features)
        return tracks, visibility.squeeze(-1).float().sigmoid(), confidence.squeeze(-1).float().sigmoid()

    def constant_embedding(self, start: Tensor, frames: int, size: tuple[int, int]) -> Tensor:
        """[B, N, 1, 2] -> [B, N, S, token_dim]: embeds where a point starts, in maps of size (h, w), and whether a
        frame is the first.
        """
        place = position_embedding(start, size, self.token_dim)
        return place + first_and_other_frames(self.query_ref_token, 1, frames)[:, None]

    def pyramid(self, feature_maps: Tensor) -> list[Tensor]:
        """[B, S, C, h, w] -> `levels` maps, each at half the size of the one before."""
        maps = [feature_maps]
        for _ in range(self.levels - 1):
            halved = F.avg_pool2d(maps[-1].flatten(0, 1), kernel_size=2)
            maps.append(halved.unflatten(0, feature_maps.shape[:2]))
        return maps

    def correlate(self, pyramid: list[Tensor], features: Tensor, points: Tensor, chunk: int | None) -> Tensor:
        """Dot products of features [B, N, S, C] with the maps around points [B, N, S, 2] -> [B, N, S, levels * window].

        Map values are sampled before the product, which equals sampling a whole correlation map without storing one map
        per point.
        """
        frames = features.shape[2]
        size = frames if chunk is None else chunk
        window = search_window(self.radius, device=points.device)
        parts = []
        for start in range(0, frames, size):
            feature, center = (x[:, :, start : start + size].transpose(1, 2) for x in (features, points))
            levels = []
            for level, maps in enumerate(pyramid):
                around = center[..., None, :] / 2**level + window  # [B, s, N, K, 2]
                values = sample(maps[:, start : start + size].flatten(0, 1), around.flatten(0, 1), "zeros")
                levels.append(torch.einsum("fcnk,fnc->fnk", values, feature.flatten(0, 1)))
            parts.append(torch.cat(levels, dim=-1).unflatten(0, feature.shape[:2]).transpose(1, 2))
        return torch.cat(parts, dim=2) / self.channels**0.5


class TrackHead(nn.Module):
    """Tokens and query points [B, N, 2] (x, y in image pixels, first frame) -> tracks, visibility, confidence.

    Tracks [B, S, N, 2] in image pixels, one per iteration, the last is the result; visibility and confidence
    [B, S, N] in (0, 1); all fp32.
    """

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        self.feature_extractor = DPTFeatures(config)
        self.tracker = Tracker(config)

    def forward(
        self,
        tokens: dict[int, Tensor],
        image_size: tuple[int, int],
        query_points: Tensor,
        chunk: int | None,
        shard: FrameShard | None = None,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        feature_maps = self.feature_extractor(tokens, image_size, chunk)
        return self.tracker(feature_maps, query_points, chunk, shard)
