"""The operators on NVIDIA GPUs, in Triton: a kernel each with its launcher, and tables of what they run with."""
