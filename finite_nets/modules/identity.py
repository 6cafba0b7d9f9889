"""What a module is, in text and numbers that tell it from others: source, structure, and outputs at fixed weights.

The structure and the outputs are those of the first `PROBES` at which the module can be made and run, whatever widths
are trained.  Outputs are in float64, and rounded, so that they are the same on every machine.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dmft.specs import _check
from finite_nets.modules.rates import MakeModule, made

PROBES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # widths, of which the first two that work are taken
DIGITS = 6  # of outputs, relative to the largest
LIBRARIES = {*sys.stdlib_module_names, "numpy", "scipy"}  # known by name, as PyTorch: what they do does not change


def source_of(of: Any) -> str:
    """Text of a function, class or value that says what it is; also of the values that it takes from around it."""
    return "\n".join(_texts(of, set()))


def _texts(of: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(of, (Tensor, np.ndarray)):
        array = _check.real_array("a value", of) if isinstance(of, Tensor) else of
        yield f"{array.dtype} {array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
    elif isinstance(of, (list, tuple, set, frozenset)):
        parts = ["\n".join(_texts(each, seen)) for each in of]
        yield from [type(of).__name__, *(sorted(parts) if isinstance(of, (set, frozenset)) else parts)]
    elif isinstance(of, Mapping):
        for key, value in of.items():
            yield from [repr(key), *_texts(value, seen)]
    elif id(of) in seen:
        yield getattr(of, "__qualname__", type(of).__qualname__)
    elif isinstance(of, functools.partial):
        yield from ["partial", *_texts([of.func, of.args, of.keywords], seen)]
    elif inspect.ismodule(of):
        yield of.__name__
    elif _of_library(of):
        yield f"{of.__module__} {of.__qualname__}"
    elif inspect.ismethod(of):
        yield from ["method", *_texts([of.__self__, of.__func__], seen)]
    elif inspect.isfunction(of):
        seen.add(id(of))
        yield from _of_function(of, seen)
    elif inspect.iscode(of):
        yield from [of.co_code.hex(), *_texts([of.co_names, of.co_consts], seen)]
    elif inspect.isclass(of):
        seen.add(id(of))
        yield _written(of)
        for each in (*of.__bases__, *(part for part in vars(of).values() if inspect.isfunction(part))):
            yield from _texts(each, seen)
    elif isinstance(of, nn.Module) or not hasattr(of, "__dict__"):
        yield _plain(of)
    else:
        seen.add(id(of))
        lasting = {name: value for name, value in vars(of).items() if not _is_cached(type(of), name)}
        yield from ["object", getattr(of, "__name__", ""), *_texts([type(of), lasting], seen)]


def _of_function(of: Any, seen: set[int]) -> Iterator[str]:
    text = _written(of)
    if (of.__name__ == "<lambda>" and text.count("lambda") > 1) or text == of.__qualname__:
        yield from _texts(of.__code__, seen)  # the text does not say which
    yield text
    try:
        around = inspect.getclosurevars(of)
    except ValueError:  # of itself, not yet bound
        return
    values = {**around.globals, **around.nonlocals, "defaults": of.__defaults__, "keywords": of.__kwdefaults__}
    for name in sorted(values):
        yield from [name, *_texts(values[name], seen)]


def _is_cached(kind: type, name: str) -> bool:
    return isinstance(getattr(kind, name, None), functools.cached_property)


def _of_library(of: Any) -> bool:
    package = (getattr(of, "__module__", None) or "").split(".")[0]
    named = inspect.isclass(of) or inspect.isroutine(of)
    return named and (package.startswith("torch") or package in LIBRARIES)


def _written(of: Any) -> str:
    """The source; the name of what has none."""
    try:
        return inspect.getsource(of)
    except (OSError, TypeError):
        return str(of.__qualname__)


def _plain(of: Any) -> str:
    """Without addresses in memory."""
    return re.sub(r"( at)? 0x[0-9a-f]+", "", repr(of))


def probed(make_module: MakeModule, seen: Tensor, numbers: int) -> list[Any]:
    """Structure and outputs of a module; none of them if it is made for widths other than `PROBES`.

    seen: inputs, whose shape and type are taken.  numbers: of different tokens.
    """
    found: list[Any] = []
    for width in PROBES:
        try:
            found.append([width, *_probe(make_module, width, seen, numbers)])
        except Exception:  # whatever the user's own module raises at a width that is not meant
            continue
        if len(found) == 2:
            break
    return found


def _probe(make_module: MakeModule, width: int, seen: Tensor, numbers: int) -> tuple[Any, Any, Any]:
    module = made(make_module, width)
    first = [p.detach().flatten()[0] for p in module.parameters()]
    constant = [
        float(f"{a:.{DIGITS}g}") if (p == a).all() else "" for a, p in zip(first, module.parameters(), strict=True)
    ]
    structure = [(name, _kind(part), part.extra_repr()) for name, part in module.named_modules()]
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            module = module.double()
            for i, p in enumerate(module.parameters()):
                fan_in = max(1, p[0].numel() if p.ndim > 1 else 1)
                p.copy_(_fixed(tuple(p.shape), i + 1) * (3 / fan_in) ** 0.5)
            shape = (2, *seen.shape[1:])
            x = _fixed(shape, 0) if seen.is_floating_point() else torch.arange(2 * shape[1]).reshape(shape) % numbers
            output = module(x)
    finally:
        torch.set_default_dtype(usual)
    values = output.numpy()
    size = abs(values).max() or 1.0
    digits = (values / size).round(DIGITS) + 0.0
    return structure, constant, [float(f"{size:.{DIGITS}g}"), digits.tolist()]


def _kind(part: nn.Module) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _fixed(shape: tuple[int, ...], which: int) -> Tensor:
    """Numbers between -1 and 1 without a pattern."""
    count = int(np.prod(shape))
    return torch.from_numpy(np.sin(np.arange(1, count + 1) ** 2 * 0.7 + 1.3 * which)).reshape(shape)
