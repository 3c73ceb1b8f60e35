#!/usr/bin/env bash
# transformers 5.23.0: cached_file raises for a file that a checkpoint lacks, but returns None for config.json.
#
# `cached_file` finds a file of a folder or of a Hub repository, and is told to raise where there is none
# (`_raise_exceptions_for_missing_entries`, True by default). For every name it does, except for config.json, in a
# subfolder as well: there it returns None, which a path made of it turns into a file called "None". Repositories without
# a config.json are common among 3D networks, whose weights are a single .pt file. Who calls it looks for None.
#
# Seen (huggingface_hub 2.4.0, Python 3.11):
#   model.safetensors: OSError
#   config.json: None
#   inner/config.json: None
# Exits non-zero if any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q transformers==5.23.0 huggingface_hub==2.4.0
HF_HUB_OFFLINE=1 venv/bin/python - <<'PY'
import pathlib
import sys

from transformers.utils import cached_file

pathlib.Path("checkpoint/inner").mkdir(parents=True)
pathlib.Path("checkpoint/weights.pt").write_bytes(b"")


def found(name, subfolder=""):
    try:
        return cached_file("checkpoint", name, subfolder=subfolder)
    except OSError:
        return "OSError"


seen = {
    "model.safetensors": found("model.safetensors"),
    "config.json": found("config.json"),
    "inner/config.json": found("config.json", "inner"),
}
for name, result in seen.items():
    print(f"{name}: {result}")
sys.exit(seen != {"model.safetensors": "OSError", "config.json": None, "inner/config.json": None})
PY
