#!/bin/bash
# safetensors 0.8.0: saving the same tensors with the same metadata twice writes different bytes, at random.
#
# `save_file(tensors, path, metadata={"format": "pt", "id": "x"})` puts the entries of `__metadata__` into the header in
# an order that changes from process to process. With one entry, as nearly everybody writes, files are
# reproducible; with two, a checkpoint has two possible hashes, with three six. Whoever compares digests of checkpoints, or
# relies on the Hub to store equal files once, has to put the header into order after writing: its length does not change.
#
# Seen, of 24 processes: "2 different files". Exits with 1 if all are equal.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6
cat > "$folder/write.py" <<'PYTHON'
import sys

import numpy
from safetensors.numpy import save_file

save_file({"a": numpy.zeros(4, numpy.float32)}, sys.argv[1], metadata={"format": "pt", "id": "x"})
PYTHON
for i in $(seq 24); do "$folder/venv/bin/python" "$folder/write.py" "$folder/$i.safetensors"; done
count=$(sha256sum "$folder"/*.safetensors | cut -d' ' -f1 | sort -u | wc -l)
echo "$count different files"
test "$count" -gt 1
