#!/usr/bin/env bash
# transformers 5.23.0 (and PyTorchModelHubMixin of huggingface_hub 2.4.0) load INT8 codes as if they were weights.
#
# A checkpoint whose `proj.weight` holds int8 codes in the shape of the float weight is loaded into a float network by
# both without an error: the largest weight is then 127. All that transformers says is that the scale beside the codes
# is unexpected and "can be ignored"; the mixin says nothing. With one axis in front of the same codes both refuse to
# load. Quantized checkpoints that keep the float's name and shape are therefore misread by every program that does not
# know their scales.
#
# Seen (torch 2.13.0, safetensors 0.8.0, Python 3.11):
#   transformers, shape as the float's: loaded, largest weight 127.0, the log names proj.weight: False
#   transformers, one axis in front: refused with RuntimeError
#   hub mixin, shape as the float's: loaded, largest weight 127.0, the log names proj.weight: False
#   hub mixin, one axis in front: refused with RuntimeError
# Exits non-zero if any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.23.0 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6
HF_HUB_OFFLINE=1 venv/bin/python - <<'PY'
import json
import logging
import pathlib
import sys

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import save_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

hf_logging.disable_progress_bar()
records = []


class Keep(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())


for logger in (logging.getLogger("transformers"), logging.getLogger("huggingface_hub")):
    logger.addHandler(Keep())


class Config(PretrainedConfig):
    model_type = "one-linear"


class ByTransformers(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.proj = nn.Linear(8, 4)
        self.post_init()


class ByMixin(nn.Module, PyTorchModelHubMixin):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 4)


def folder(name, codes):
    path = pathlib.Path(name)
    path.mkdir()
    tensors = {"proj.weight": codes, "proj.bias": torch.zeros(4), "proj.weight_scale": torch.full((4, 1), 0.01)}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({"model_type": "one-linear"}))
    return str(path)


codes = torch.full((4, 8), 127, dtype=torch.int8)
seen = []
for who, cls in (("transformers", ByTransformers), ("hub mixin", ByMixin)):
    for what, stored in (("shape as the float's", codes), ("one axis in front", codes[None].clone())):
        path = folder(f"{cls.__name__}-{stored.ndim}", stored)
        records.clear()
        try:
            model = cls.from_pretrained(path)
        except RuntimeError as error:
            seen.append(f"{who}, {what}: refused with {type(error).__name__}")
        else:
            named = any("proj.weight " in record for record in records)
            largest = model.proj.weight.float().abs().max().item()
            seen.append(f"{who}, {what}: loaded, largest weight {largest}, the log names proj.weight: {named}")
print("\n".join(seen))
expected = [
    "transformers, shape as the float's: loaded, largest weight 127.0, the log names proj.weight: False",
    "transformers, one axis in front: refused with RuntimeError",
    "hub mixin, shape as the float's: loaded, largest weight 127.0, the log names proj.weight: False",
    "hub mixin, one axis in front: refused with RuntimeError",
]
sys.exit(seen != expected)
PY
