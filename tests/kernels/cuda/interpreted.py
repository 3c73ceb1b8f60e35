"""Changes to Triton's interpreter: what NumPy no longer takes, and what it would do anew for every call in a kernel.

A kernel sees a module `triton.language` whose functions compute. Triton 3.6 searches whole modules for what to replace,
when a kernel begins and whenever it calls a function, although all is replaced by then: half of the tests' time. Half
of the rest are sums of integers that are computed again in 64 bits, to compare, and to drop the answer unless kernels
are debugged; a third of what is left then, types of tensors that are described anew for every result.
"""

import functools
import inspect
from collections.abc import Callable, Iterable

from triton.language import core
from triton.runtime import interpreter

_replaced_for: set[int] = set()  # modules of functions, by their globals, since the kernel began


def prepare() -> None:
    """Once in a process, before the first kernel runs."""
    patch_tensor, patch_lang = interpreter._patch_lang_tensor, interpreter._patch_lang

    def patch_index(tensor: type, scope: object) -> None:
        """Triton 3.6 reads loop bounds with int(array of one value), which NumPy 2.4 no longer takes."""
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def patch_once(function: Callable[..., object]) -> Scope:
        if id(function.__globals__) in _replaced_for:
            return Scope()
        _replaced_for.add(id(function.__globals__))
        return patch_lang(function)

    unchecked = functools.partial(interpreter.InterpreterOptions, sanitize_overflow=False)
    interpreter.InterpreterOptions, interpreter.interpreter_builder.options = unchecked, unchecked()
    interpreter._patch_lang_tensor = patch_index
    interpreter._patch_lang = patch_once
    interpreter._patch_builtin = _patch_builtin
    interpreter._LangPatchScope = Scope
    _keep_types()


class Scope(interpreter._LangPatchScope):
    def restore(self) -> None:  # of a kernel, at its end; those of functions are never restored
        super().restore()
        _replaced_for.clear()


@functools.cache
def _builtins(package: object) -> tuple[str, ...]:
    """Names of what is to be replaced. Asked for before anything there is."""
    return tuple(name for name, member in inspect.getmembers(package) if core.is_builtin(member))


def _patch_builtin(package: object, builder: object, scope: Scope) -> None:
    for name in _builtins(package):
        member = getattr(package, name)
        if core.is_builtin(member):  # not yet replaced
            interpreter._patch_attr(package, name, member, builder, scope)


def _keep_types() -> None:
    """Describe each type of blocks, and what tensors of one type have in common, once: nothing changes them later."""
    begin_block, begin_tensor, numpy_type = core.block_type.__init__, core.tensor.__init__, interpreter._get_np_dtype
    blocks: dict[tuple[object, ...], core.block_type] = {}

    def new_block(kind: type, element: core.dtype, shape: Iterable[object]) -> core.block_type:
        return blocks.setdefault((element, *map(core._unwrap_if_constexpr, shape)), object.__new__(kind))

    def init_block(block: core.block_type, element: core.dtype, shape: Iterable[object]) -> None:
        if not vars(block):
            begin_block(block, element, shape)

    def init_tensor(tensor: core.tensor, handle: object, kind: core.dtype) -> None:
        if "_of_tensors" not in vars(kind):
            begin_tensor(tensor, None, kind)
            kind._of_tensors = dict(vars(tensor))
        vars(tensor).update(kind._of_tensors, handle=handle)

    core.pointer_type.__hash__ = core.dtype.__hash__  # of the name, as other types'
    core.block_type.__hash__ = object.__hash__  # there is one of each
    core.block_type.__new__, core.block_type.__init__ = new_block, init_block
    core.tensor.__init__ = init_tensor
    interpreter._get_np_dtype = functools.cache(numpy_type)
