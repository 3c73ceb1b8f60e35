"""VGGT-Ω: the parts in which it differs from VGGT; what both share lies one folder up.

- Queries, keys and values: one linear, whose bias has no part for keys (`constants.py`).
- Positions: rotary embeddings of the patches alone, in the encoder and in frame blocks (`layers.py`, `encoder.py`).
- Between frames: in some layers camera and register tokens alone (`aggregator.py`).
- Cameras: one pass over the camera and register tokens of all frames (`camera_head.py`).
- Depth: maps at a quarter of the size, 1x1 convolutions and a pixel shuffle (`dense_head.py`).
- No points and no tracks; as an option an embedding of the scene to be compared with text (`text_head.py`).

The public code and weights are under a non-commercial research licence. Nothing of them is in here: the network was
written from the names and shapes of its state dict and from outputs of the public code (tests/data/parity_omega).
"""
