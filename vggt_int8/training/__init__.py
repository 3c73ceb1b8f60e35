"""Training on procedural scenes: losses of the VGGT paper, a loop on accelerate, validation, resumable checkpoints.

    python -m vggt_int8.training run --config vggt_int8/assets/mini/training.toml --out runs/mini

`accelerate launch -m vggt_int8.training run ...` does the same on several GPUs. See `__main__` for the commands.
"""
