#!/bin/sh
# PyTorch 2.11.0: torch.compile gives gradients of zero, without a warning, for a torch.autograd.Function whose forward
# ends in a cast that changes nothing, such as y.to(x.dtype) where y has that dtype. Eager mode gives the right ones,
# and so does PyTorch 2.13.0. Who meets it: straight-through estimators, which end like that to be right for all dtypes,
# so that quantization-aware training of a compiled model stands still. The way out is to return y itself where the
# dtype fits, or to compute y under torch.no_grad() before the function and hand it over.
#
# It installs PyTorch with all that a CUDA build needs: some 5 GB.
#
# Output seen:
#   with the cast:    eager 24.0, compiled 0.0
#   without the cast: eager 24.0, compiled 24.0
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check torch==2.11.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch


class Rounded(torch.autograd.Function):
    """x rounded, times a weight; the gradient is that of x times the weight."""

    @staticmethod
    def forward(ctx, x, weight, cast):
        ctx.save_for_backward(weight)
        y = x.round() @ weight.t()
        return y.to(x.dtype) if cast else y

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return grad @ weight, None, None


def gradient(call, cast):
    x = torch.full((4, 9), 2.0, requires_grad=True)
    call(x, torch.ones(4, 9), cast).sum().backward()
    return x.grad.norm().item()


found = {}
for cast, name in ((True, "with the cast:   "), (False, "without the cast:")):
    compiled = torch.compile(Rounded.apply, backend="eager", fullgraph=True)
    found[cast] = gradient(Rounded.apply, cast), gradient(compiled, cast)
    print(name, "eager {}, compiled {}".format(*found[cast]))
assert found == {True: (24.0, 0.0), False: (24.0, 24.0)}, "PyTorch has changed"
PYTHON
