"""VGGT-Ω: the parts that differ from VGGT; what both share is one folder up.

- Queries, keys and values: one linear, whose bias has no part for keys (`constants.py`).
- Positions: rotary embeddings of the patches only, in the encoder and in frame blocks (`layers.py`, `encoder.py`).
- Between frames: in some layers only camera and register tokens (`aggregator.py`).
- Cameras: one pass over the camera and register tokens of all frames (`camera_head.py`).
- Depth: maps at a quarter of the size, 1x1 convolutions and a pixel shuffle (`dense_head.py`).
- No points and no tracks; optionally an embedding of the scene to compare with text (`text_head.py`).

The public code and weights are under a non-commercial research licence. Nothing of them is included here: the network
was written from the names and shapes of its state dict and from outputs of the public code (tests/data/parity_omega).
"""
