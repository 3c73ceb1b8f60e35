"""Training on procedural scenes: losses of the VGGT paper, a loop on accelerate, validation, resumable checkpoints.

    vggt-int8 train run --config vggt_int8/assets/mini/training.toml --out runs/mini

`accelerate launch -m vggt_int8 train run ...` does the same on several GPUs.
"""
