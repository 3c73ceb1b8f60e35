#!/usr/bin/env bash
# Makes a template for pods that run vggt-int8, in the account that runpodctl (2 or newer) is signed in to:
#   deploy/runpod/template.sh IMAGE [NAME]
# IMAGE: one with Python 3.11 or newer, git and ssh, as RunPod's own of PyTorch. Everything else comes by setup.sh, onto
# the volume at /workspace: a pod of this template is started with one (`runpodctl pod create --template-id ID
# --network-volume-id ID`), for without it nothing survives a stop.
set -euo pipefail

if (($# < 1 || $# > 2)); then
  echo "usage: $0 IMAGE [NAME]" >&2
  exit 2
fi
command -v runpodctl >/dev/null || {
  echo "runpodctl is not there: install version 2 or newer, and sign in" >&2
  exit 2
}
# The variables are those of /workspace/vggt-int8.env, so that a shell that did not read it fills the volume, too.
runpodctl template create --name "${2:-vggt-int8}" --image "$1" \
  --container-disk-in-gb 20 --volume-mount-path /workspace --ports 22/tcp \
  --env '{"HF_HOME": "/workspace/huggingface", "XDG_CACHE_HOME": "/workspace/cache", "TRITON_CACHE_DIR": "/workspace/triton"}'
