"""The interface of all INT8 layers: construction, choice of backend, and what runs the layer and why."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from vggt_int8.recipe import Scheme


class Choice(NamedTuple):
    """The backend that a layer requests, a name or "auto"; and why, if it is not the model's."""

    backend: str
    reason: str = ""


class Int8Layer:
    """Base of the INT8 layers, beside `nn.Module`; `layer_types.py` lists them.

    scheme: how the layer computes.
    backend: the requested backend, a name or "auto".
    backend_reason: see `Choice`.
    """

    scheme: Scheme
    backend: str
    backend_reason: str = ""

    @classmethod
    def of(cls, layer: Any, scheme: Any, backend: str, input_scale: Tensor | None = None) -> Self:
        """Quantize a float layer, which is not changed. input_scale: for schemes with a static scale."""
        raise NotImplementedError

    @classmethod
    def unfilled(cls, layer: Any, scheme: Any, backend: str) -> Self:
        """The same layer with its tensors on the meta device, ready to be loaded."""
        raise NotImplementedError

    @classmethod
    def narrowed(cls, scheme: Scheme) -> Scheme:
        """The scheme that this kind of layer uses if a recipe asks for `scheme`."""
        return scheme

    @classmethod
    def choose(cls, scheme: Any, backend: str, beside_codes: bool) -> Choice:
        """The backend that a layer of this kind requests in a model with backend `backend`.

        beside_codes: the layer is weight-only in a recipe with INT8 activations, where another backend may run it.
        """
        raise NotImplementedError

    @classmethod
    def check(cls, scheme: Any, backend: str, device_type: str) -> None:
        """Raise `BackendError` if the requested backend cannot run the scheme on "cpu" or "cuda"."""
        raise NotImplementedError

    def ask(self, choice: Choice) -> Self:
        """Request another backend from now on."""
        self.backend, self.backend_reason = choice
        return self

    def runs_on(self, device_type: str) -> str:
        """Name of the backend that runs the layer on "cpu" or "cuda" when it is called as a module."""
        raise NotImplementedError

    def kernel(self, device_type: str) -> str:
        """Description of the kernel there."""
        raise NotImplementedError

    def reason(self, device_type: str) -> str:
        """Why that backend runs it."""
        return self.backend_reason or "requested"


def int8_layers(model: nn.Module) -> Iterator[tuple[str, Int8Layer]]:
    """All INT8 layers of a model, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Int8Layer))
