#!/usr/bin/env bash
# Installs this checkout of vggt-int8 with the pinned versions into a virtual environment. Images, pods and people share
# it. Started again, it does nothing, unless the checkout has changed.
#
#   VENV         where to; default /opt/vggt-int8
#   PYTHON       which interpreter, 3.11 or newer; default python3
#   TORCH_INDEX  address of another package index for PyTorch alone: that of its CPU builds, or of a CUDA version's
#   EXTRAS       of pyproject.toml, separated by commas; default eval,heif,video
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-/opt/vggt-int8}
python=${PYTHON:-python3}
extras=${EXTRAS-eval,heif,video}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "$python is older than Python 3.11: name another one in PYTHON" >&2
  exit 2
}
state=$(
  {
    echo "$extras ${TORCH_INDEX:-}"
    "$python" --version
    cd "$root" && find pyproject.toml constraints.txt recipes vggt_int8 -type f ! -name '*.pyc' -print0 |
      LC_ALL=C sort -z | xargs -0 sha256sum
  } | sha256sum | cut -d' ' -f1
)
if [[ -f "$venv/installed" && $(<"$venv/installed") == "$state" ]]; then
  echo "$venv is up to date"
  exit 0
fi
if [[ -d "$venv" && ! -f "$venv/pyvenv.cfg" && -n $(ls -A "$venv") ]]; then
  echo "$venv holds files and is no virtual environment: name another place in VENV" >&2
  exit 2
fi
rm -f "$venv/installed"
# Without pip it was cut off while it was made; its interpreter is gone where another image is started on an old volume.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
pip() {
  "$venv/bin/python" -m pip --disable-pip-version-check install --no-cache-dir --quiet -c "$root/constraints.txt" "$@"
}
pip ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
pip "vggt-int8${extras:+[$extras]} @ file://$root"
"$venv/bin/vggt-int8" --version
echo "$state" >"$venv/installed"
