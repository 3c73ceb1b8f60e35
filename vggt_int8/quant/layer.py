"""What every INT8 layer answers, whichever kind it is: how it is made, what it asks for, what runs it and why."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from vggt_int8.recipe import Scheme


class Choice(NamedTuple):
    """The backend that a layer is to ask for, a name or "auto"; and why, where it is not the one of the model."""

    backend: str
    reason: str = ""


class Int8Layer:
    """Base of the INT8 layers, beside `nn.Module`; `layer_types.py` has the table of them.

    scheme: how it computes. backend: what it asks for, a name or "auto". backend_reason: see `Choice`.
    """

    scheme: Scheme
    backend: str
    backend_reason: str = ""

    @classmethod
    def of(cls, layer: Any, scheme: Any, backend: str, input_scale: Tensor | None = None) -> Self:
        """The INT8 layer for a float layer, which is not changed. input_scale: where the scheme has a static one."""
        raise NotImplementedError

    @classmethod
    def unfilled(cls, layer: Any, scheme: Any, backend: str) -> Self:
        """The same with tensors on the meta device, ready to be loaded."""
        raise NotImplementedError

    @classmethod
    def narrowed(cls, scheme: Scheme) -> Scheme:
        """The scheme that this kind of layer computes with where a recipe asks for `scheme`."""
        return scheme

    @classmethod
    def choose(cls, scheme: Any, backend: str, beside_codes: bool) -> Choice:
        """What a layer of this kind asks for in a model whose backend is to be `backend`.

        beside_codes: it is weight-only in a recipe for INT8 activations, where another backend may take its place.
        """
        raise NotImplementedError

    @classmethod
    def check(cls, scheme: Any, backend: str, device_type: str) -> None:
        """Raise `BackendError` if what is asked for cannot be done on "cpu" or "cuda"."""
        raise NotImplementedError

    def ask(self, choice: Choice) -> Self:
        """Ask for another backend from now on."""
        self.backend, self.backend_reason = choice
        return self

    def runs_on(self, device_type: str) -> str:
        """Name of the backend that computes the layer on "cpu" or "cuda", called by itself."""
        raise NotImplementedError

    def kernel(self, device_type: str) -> str:
        """What multiplies there, in words."""
        raise NotImplementedError

    def reason(self, device_type: str) -> str:
        """Why that backend, in words."""
        return self.backend_reason or "requested"


def int8_layers(model: nn.Module) -> Iterator[tuple[str, Int8Layer]]:
    """All INT8 layers of a model, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Int8Layer))
