"""VGGT in INT8."""
