"""The configs of all network families. A new family is listed here, and its classes in `families.py`."""

from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.omega.config import VGGTOmegaConfig

AnyConfig = VGGTConfig | VGGTOmegaConfig

# By the `model_type` of a config.json.
CONFIGS: dict[str, type[AnyConfig]] = {kind.model_type: kind for kind in (VGGTConfig, VGGTOmegaConfig)}


def network_name(config: type[AnyConfig]) -> str:
    """The name of the network's class: by convention that of the config's without "Config"."""
    return config.__name__.removesuffix("Config")
