#!/usr/bin/env bash
# Sets up a pod: everything that is to survive a stop goes to the volume. From a checkout there:
#   /workspace/vggt-int8/deploy/runpod/setup.sh && source /workspace/vggt-int8.env
# Started again, after a restart of the pod as well, it does what is left to do.
#
#   WORKSPACE  the volume; default /workspace
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
workspace=${WORKSPACE:-/workspace}
if [[ ! -d "$workspace" || ! -w "$workspace" ]]; then
  echo "$workspace is no folder to write in: attach a volume there, or name it in WORKSPACE" >&2
  exit 2
fi
headers=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')
# Lost at every stop, since they lie on the container's disk. Triton wants both.
if ! command -v gcc >/dev/null || [[ ! -f "$headers/Python.h" ]]; then
  apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev python3-dev
fi
VENV="$workspace/vggt-int8-venv" "$root/deploy/install.sh"
new=$(mktemp "$workspace/.vggt-int8.env.XXXXXX")
cat >"$new" <<ENV
export PATH="$workspace/vggt-int8-venv/bin:\$PATH"
export HF_HOME="$workspace/huggingface"
export XDG_CACHE_HOME="$workspace/cache"
export TRITON_CACHE_DIR="$workspace/triton"
ENV
mv "$new" "$workspace/vggt-int8.env"
echo "source $workspace/vggt-int8.env    # in every shell, then: vggt-int8 doctor"
