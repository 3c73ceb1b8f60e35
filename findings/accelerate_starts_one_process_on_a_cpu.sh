#!/bin/sh
# accelerate 1.15.0: without a GPU `accelerate launch --num_processes 2 SCRIPT`, with --cpu or without, starts SCRIPT
# once, as process 1 of 1, and its output does not say so. Several processes on CPUs come from MPI alone
# (--mpirun_hostfile). Who meets it: tests of distributed programs on machines without GPUs, which then pass whatever
# they should show. The way out is torchrun, whose processes Accelerator() joins as well.
#
# Where pip's index has no build of PyTorch for CPUs it installs that for CUDA, some 5 GB.
#
# Output seen (processes that ran, and how many they knew of):
#   accelerate launch --cpu --num_processes 2: 1 of 1
#   accelerate launch --num_processes 2: 1 of 1
#   torchrun --nproc-per-node 2: 2 of 2
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check accelerate==1.15.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
# A configuration of the user's would decide in the place of the options.
export HF_HOME="$folder/home" CUDA_VISIBLE_DEVICES=
cat > ranks.py <<'PYTHON'
from pathlib import Path

from accelerate import Accelerator

state = Accelerator(cpu=True)
Path(f"rank{state.process_index}").write_text(str(state.num_processes))
state.end_training()
PYTHON

# Starts the script by a command, and tells how many processes wrote, and how many each knew of.
ran() {
  rm -f rank*[0-9]
  "$@" ranks.py > log 2>&1 || { cat log >&2; exit 1; }
  echo "$(find . -maxdepth 1 -name 'rank[0-9]' | wc -l) of $(cat rank0)"
}
cpu=$(ran venv/bin/accelerate launch --cpu --num_processes 2)
bare=$(ran venv/bin/accelerate launch --num_processes 2)
torchrun=$(ran venv/bin/torchrun --nproc-per-node 2)
echo "accelerate launch --cpu --num_processes 2: $cpu"
echo "accelerate launch --num_processes 2: $bare"
echo "torchrun --nproc-per-node 2: $torchrun"
[ "$cpu" = "1 of 1" ] && [ "$bare" = "1 of 1" ] && [ "$torchrun" = "2 of 2" ]
