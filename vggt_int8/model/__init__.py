"""The network. It knows nothing of quantization: see `vggt_int8.quant` and `vggt_int8.pretrained`.

`VGGTConfig` lies in `config.py`, `VGGT` and `VGGTOutput` in `vggt.py`. They are not imported here: the config alone is
cheap, the model brings all of transformers' model code along.
"""
