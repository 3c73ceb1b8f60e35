"""The number of parameters of a config's network, by arithmetic, to refuse a size before anything is built."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vggt_int8.model.config import VGGTConfig
    from vggt_int8.model.dpt_head import DenseSizes

# Parameters per byte of the files above which a config must belong to other weights; below it, comparing names and
# shapes explains better what does not fit.
FAR_LARGER = 8
_TRACK_BLOCKS = 24  # of the track head's transformer: four lists of `track_former.DEPTH`


def least_parameters(config: "VGGTConfig") -> int:
    """Number of weights in matrices and kernels: a lower bound, at most 3 % below the number of parameters."""
    dim, ratio = config.embed_dim, config.mlp_ratio
    count = 3 * config.patch_size**2 * dim + (config.img_size // config.patch_size) ** 2 * dim
    count += config.num_register_tokens * 3 * dim
    count += (config.encoder_depth + 2 * config.depth) * block_parameters(dim, ratio)
    if config.enable_camera:
        count += config.camera_depth * block_parameters(2 * dim, ratio) + 3 * (2 * dim) ** 2 + 2 * dim * dim
    if config.enable_depth:
        count += _dpt(config, config.dpt_features)
    if config.enable_point:
        count += _dpt(config, config.dpt_features)
    if config.enable_track:
        window = (2 * config.track_corr_radius + 1) ** 2
        hidden = config.track_hidden_size
        count += _dpt(config, config.track_features)
        count += (config.track_corr_levels * window + config.track_features) * hidden
        count += _TRACK_BLOCKS * block_parameters(hidden, 4.0)
    return count


def block_parameters(dim: int, ratio: float) -> int:
    """Parameters in the matrices of a transformer block of width `dim`."""
    return 4 * dim * dim + 2 * dim * int(dim * ratio)


def fusion_parameters(config: "DenseSizes", channels: int) -> int:
    """Parameters of a dense head's projections, resizes and fusion to `channels`, without its output layers."""
    widths = config.dpt_out_channels
    resized = 16 * widths[0] ** 2 + 4 * widths[1] ** 2 + 9 * widths[3] ** 2
    fused = 14 * 9 * channels**2 + 4 * channels**2
    return 2 * config.embed_dim * sum(widths) + resized + 9 * sum(widths) * channels + fused


def _dpt(config: "VGGTConfig", channels: int) -> int:
    return fusion_parameters(config, channels) + 9 * channels * channels // 2
