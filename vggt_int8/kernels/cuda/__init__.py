"""The operators on NVIDIA GPUs, in Triton: each kernel with its launcher, and tables of launch parameters."""
