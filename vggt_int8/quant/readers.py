"""Finds layers whose weight is read by another module, which would get codes from an INT8 layer in their place.

`nn.TransformerEncoderLayer` passes `self.linear1.weight` to a fused kernel, `nn.MultiheadAttention` never calls its
`out_proj`, a vision transformer casts its input to `self.projection.weight.dtype`. No list of such classes is ever
complete, so this module searches the source of each module's `forward`, and of the methods that it reaches, for such
reads. It does not see classes without source, nor functions that a layer is passed to, as adapters do.
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from types import FunctionType

from torch import nn

Path = tuple[str, ...]  # attribute names from a module down; ANY stands for each child
ANY = "*"
_HARMLESS = ("device", "is_cuda", "requires_grad")  # the same for codes


def weight_readers(model: nn.Module) -> dict[nn.Module, str]:
    """The modules inside `model` whose weight another module reads, with a description of the reader: "encoder
    (Block)".
    """
    return {
        layer: f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        for path in (*_weights_read_by(type(module)), *_weights_adapted_by(module))  # type: ignore[arg-type]
        for layer in _modules_at(module, path)
    }


def _weights_adapted_by(module: nn.Module) -> tuple[Path, ...]:
    """The path of the layer that a peft adapter wraps, if the adapter does more than call that layer.

    Such adapters pass it to code whose reads are not seen: DoRA takes the norm of its weight. Plain LoRA only calls it.
    """
    adapter = any(base.__name__ == "BaseTunerLayer" for base in type(module).__mro__)
    calls_it = bool(getattr(module, "lora_A", ())) and not getattr(module, "lora_variant", ())
    return (("base_layer",),) if adapter and not calls_it else ()


def _modules_at(module: nn.Module, path: Path) -> Iterator[nn.Module]:
    if not path:
        yield module
        return
    found = module.children() if path[0] == ANY else [module._modules.get(path[0]) or vars(module).get(path[0])]
    for child in found:
        if isinstance(child, nn.Module):
            yield from _modules_at(child, path[1:])


@functools.lru_cache(maxsize=1024)
def _weights_read_by(kind: type) -> frozenset[Path]:
    """Paths of the submodules whose `.weight` a class reads when it is called."""
    read: set[Path] = set()
    reached, waiting = {"forward"}, ["forward"]
    while waiting:
        name = waiting.pop()
        for function in _definitions(kind, name):
            source = _parsed(function)
            if source is None or not source.args.args:
                continue
            names = _names_of_modules(source)
            read |= _reads(source, names)
            used = {
                node.attr
                for node in ast.walk(source)
                if isinstance(node, ast.Attribute) and _path(node.value, names) == ()
            }
            waiting += sorted(used - reached)
            reached |= used
    return frozenset(path for path in read if path)


def _definitions(kind: type, name: str) -> Iterator[FunctionType]:
    """All definitions of a name in the base classes of `kind`, since one may call the next through `super()`."""
    for base in kind.__mro__:
        value = vars(base).get(name)
        value = value.fget if isinstance(value, property) else value
        if base is not nn.Module and isinstance(
            value := inspect.unwrap(value) if callable(value) else value, FunctionType
        ):
            yield value


def _parsed(function: FunctionType) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):  # there is no source, or not of this function alone
        return None
    return tree.body[0] if isinstance(tree.body[0], ast.FunctionDef) else None


def _names_of_modules(function: ast.FunctionDef) -> dict[str, Path]:
    """Local names that refer to the module itself or to a submodule, with their paths."""
    names: dict[str, Path] = {function.args.args[0].arg: ()}
    for _ in range(3):  # a name may be made of another that comes later in this walk
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target, path = node.targets[0], _path(node.value, names)
            elif isinstance(node, ast.For | ast.comprehension):
                target, path = _loop(node.target, node.iter, names)
            else:
                continue
            if isinstance(target, ast.Name) and path is not None:
                names.setdefault(target.id, path)
    return names


def _loop(target: ast.expr, over: ast.expr, names: dict[str, Path]) -> tuple[ast.expr, Path | None]:
    """The loop variable that refers to the modules of an iteration, and their path."""
    match over:
        case ast.Call(func=ast.Name(id="enumerate"), args=[inner, *_]) if isinstance(target, ast.Tuple):
            target, over = target.elts[-1], inner
        case ast.Call(func=ast.Attribute(value=inner, attr="values")):
            over = inner
        case ast.Call(func=ast.Attribute(value=inner, attr="items")) if isinstance(target, ast.Tuple):
            target, over = target.elts[-1], inner
    path = _path(over, names)
    return target, None if path is None else (*path, ANY)


def _path(node: ast.expr, names: dict[str, Path]) -> Path | None:
    """The path that an expression such as `self.blocks[i].mlp` refers to; None for other expressions."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute | ast.Subscript):
        parts.append(node.attr if isinstance(node, ast.Attribute) else ANY)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in names:
        return None
    return (*names[node.id], *reversed(parts))


def _reads(function: ast.FunctionDef, names: dict[str, Path]) -> set[Path]:
    nodes = list(ast.walk(function))
    harmless = {id(n.value) for n in nodes if isinstance(n, ast.Attribute) and n.attr in _HARMLESS}
    weights = (n for n in nodes if isinstance(n, ast.Attribute) and n.attr == "weight" and id(n) not in harmless)
    paths = (_path(node.value, names) for node in weights)
    return {path for path in paths if path is not None}
