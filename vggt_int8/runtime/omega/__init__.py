"""VGGT-Ω on fused blocks: what differs from VGGT. Blocks, linears, graphs and plans are shared."""
