"""VGGT-Ω on fused blocks: what its call has of its own; blocks, linears, graphs and plans are those of VGGT."""
