"""How much the outputs of two models differ."""
