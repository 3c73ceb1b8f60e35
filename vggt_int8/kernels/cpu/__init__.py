"""The operators on a CPU: kernels in C (`csrc/`), compiled on the machine that runs them, or PyTorch's functions."""
