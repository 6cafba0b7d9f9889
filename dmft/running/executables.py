"""Executables kept from one process to the next, found without tracing what they were made from.

JAX's own cache of compiled code (`dmft.running.compiling`) is asked by the code that tracing and lowering give, which
takes seconds for derivatives of a whole training.  Here an executable is known by all that the code follows from:

    the function, its static arguments, and the structure, shapes and types of the others; options of the compiler
    the source of this library, versions, settings and flags of JAX and XLA, the device and the processor

What is not of this library among these (functions of a user's own: activations, observables, architectures) has no such
name; what has none, and what runs on several devices, is traced as ever.  Files lie in the folder of JAX's cache, as
long as there is one, and what is wrong with one of them costs the time of compilation.

    DMFT_EXECUTABLES=off    nothing is kept: for whoever changes functions of this library in a running process, which
                            its source does not tell
    DMFT_EXECUTABLES=on     also where it was not tried: an executable that does not fit its process ends it, so that by
                            default only devices with versions of JAX of `TRIED` keep them
"""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, partial, update_wrapper
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import jax
import numpy as np
from jax.experimental.serialize_executable import deserialize_and_load, serialize

from dmft.running import effort
from dmft.running.compiling import ENTRY, ours, setting, without
from dmft.running.paths import replacing

SWITCH = "DMFT_EXECUTABLES"
TRIED = {"cpu": ((0, 10), (0, 11)), "gpu": ((0, 11),)}  # versions of JAX that read what they wrote, by platform
PACKAGE = __name__.partition(".")[0]
loaded: dict[Any, Any] = {}  # executables of this process; None where there is none to keep
PLAIN = (bool, int, float, str, bytes, type(None), type(...))


class NamelessError(Exception):
    """Of what has no name that another process would give it."""


def kept(
    *, static: Sequence[str] = (), donated: Sequence[str] = (), brief: bool = False
) -> Callable[[Callable[..., Any]], Kept]:
    """A decorator: `jax.jit` of a function whose `static` arguments are keywords, its executables kept; compiled with
    the effort that the computation around it is worth (`dmft.running.effort`), with little if it is `brief` anyway."""
    return lambda function: Kept(function, static, donated, brief=brief)


class Kept:
    """A compiled function; under transformations, and where nothing can be kept, that of `jax.jit`."""

    def __init__(
        self, function: Callable[..., Any], static: Sequence[str], donated: Sequence[str], *, brief: bool = False
    ) -> None:
        update_wrapper(self, function)
        self._jit = partial(jax.jit, function, static_argnames=tuple(static), donate_argnames=tuple(donated))
        self.jitted = self._jit()
        # by options of the compiler, which only code that is not traced can have
        self.by_options: dict[Any, Any] = {(): self.jitted}
        self._brief = brief
        self._name = f"{function.__module__}.{function.__qualname__}"
        self._names = list(inspect.signature(function).parameters)
        self._static = frozenset(static)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self._names, args, strict=False)) | kwargs
        static = {name: given.pop(name) for name in self._static & given.keys()}
        leaves, tree = jax.tree.flatten(given)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self.jitted(**given, **static)
        options, folder = tuple(effort.options(brief=self._brief).items()), _folder()
        if folder is None or not all(map(_here, leaves)):
            return self._with(options)(**given, **static)
        numbers = tuple(sorted(static.items())), setting("enable_x64"), setting("default_matmul_precision"), options
        key, device = (self._name, tree, *numbers, *map(_seen, leaves)), effort.device()
        if (key, device) not in loaded:
            loaded[key, device] = self._made(folder, given, static, key, dict(options))
        found = loaded[key, device]
        return self._with(options)(**given, **static) if found is None else found(**given)

    def clear_cache(self) -> None:
        """Of this process."""
        for key in [key for key in loaded if key[0][0] == self._name]:
            del loaded[key]
        for jitted in self.by_options.values():
            jitted.clear_cache()

    @property
    def compiled(self) -> int:
        """How often what is not kept was."""
        return sum(jitted._cache_size() for jitted in self.by_options.values())

    def _with(self, options: tuple[tuple[str, Any], ...]) -> Any:
        """That of `jax.jit` with these options."""
        if options not in self.by_options:
            self.by_options[options] = self._jit(compiler_options=dict(options))
        return self.by_options[options]

    def _made(self, folder: Path, given: dict[str, Any], static: dict[str, Any], key: Any, options: Any) -> Any:
        """The executable, read or compiled and kept; None where it has no name, or cannot be kept."""
        if _changed():
            return None
        try:
            file = folder / f"{self._name}-{digest(key)}{ENTRY}"
        except NamelessError:
            return None
        device = effort.device()
        _bind_kernels(device.platform)
        with suppress(Exception):  # not there, or damaged
            content, given_tree, found_tree = pickle.loads(file.read_bytes())
            here: dict[str, Any] = {"backend": device.client, "execution_devices": [device]}
            return deserialize_and_load(content, given_tree, found_tree, **here)
        lowered = self.jitted.lower(**given, **static)
        with without():  # what was read from JAX's cache cannot be written again
            compiled = lowered.compile(options or None)
        with suppress(Exception):  # what cannot be written is compiled again
            written = pickle.dumps(serialize(compiled))
            with replacing(file) as new:
                new.write_bytes(written)
        return compiled


def _folder() -> Path | None:
    """Of our cache, not the host's, if there is one and executables are wanted."""
    switch = os.environ.get(SWITCH, "").lower()
    tried = jax.__version_info__[:2] in TRIED.get(effort.device().platform, ())
    return ours() if switch == "on" or (tried and switch != "off") else None


@cache
def _bind_kernels(platform: str) -> None:
    """Let code of this platform, where computations are, call LAPACK: JAX binds its functions when it first lowers code
    with such a call; without, a crash."""
    del platform
    jax.jit(jax.lax.linalg.cholesky).lower(np.eye(1, dtype=np.float32))


def _here(leaf: Any) -> bool:
    """Whether it is a number or an array on the device that computations are on by default."""
    return not isinstance(leaf, jax.Array) or leaf.devices() == {effort.device()}


def _seen(leaf: Any) -> Any:
    """What of an argument shapes the code."""
    if not isinstance(leaf, jax.Array):
        return type(leaf).__name__, np.shape(leaf), str(np.asarray(leaf).dtype)
    return leaf.shape, str(leaf.dtype), getattr(leaf, "weak_type", False)


def digest(content: Any) -> str:
    """Of what shapes the code, and of all that surrounds it.

    Raises:
        NamelessError.
    """
    settings = [(n, repr(v)) for n, v in sorted(jax.config.values.items()) if "cache" not in n]
    return hashlib.sha256(repr((described(content), _surroundings(effort.device()), settings)).encode()).hexdigest()


@cache
def _files() -> list[Path]:
    """Of this library, when it was imported."""
    return sorted(file for file in Path(sys.modules[PACKAGE].__path__[0]).rglob("*") if file.suffix in (".py", ".cu"))


def _stamps() -> list[tuple[int, int]]:
    return [(status.st_mtime_ns, status.st_size) for status in (file.stat() for file in _files())]


def _changed() -> bool:
    """Whether what runs may no longer be what is written there."""
    try:
        return _stamps() != STAMPS
    except OSError:  # one is gone
        return True


# as they were imported
STAMPS = _stamps()
SOURCE = hashlib.sha256(b"".join(file.read_bytes() for file in _files())).hexdigest()


@cache
def _surroundings(device: jax.Device) -> tuple[str, ...]:
    return (
        *(SOURCE, sys.version, jax.__version__, version("jaxlib"), np.__version__),
        *(device.platform, device.device_kind, str(device.id), device.client.platform_version, _processor()),
        *(os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")),
    )


def _processor() -> str:
    """Whose instructions code may use."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    return f"{platform.node()} {platform.machine()} {platform.processor()}"


def described(x: Any) -> Any:
    """As numbers, words and tuples of these, the same in every process; two that differ have others."""
    if isinstance(x, Enum):
        return _path(type(x)), x.name
    if isinstance(x, PLAIN):
        return type(x).__name__, x
    if isinstance(x, np.ndarray | np.generic):
        return str(x.dtype), np.shape(x), np.asarray(x).tobytes()
    if isinstance(x, jax.tree_util.PyTreeDef):
        node = x.node_data()
        return node and (_path(node[0]), described(node[1])), tuple(map(described, x.children()))
    if isinstance(x, tuple | list):
        return type(x).__name__, tuple(map(described, x))
    if isinstance(x, frozenset):
        return "frozenset", tuple(sorted(map(repr, map(described, x))))
    if isinstance(x, dict):
        return "dict", tuple((described(name), described(value)) for name, value in x.items())
    if isinstance(x, type):
        return _path(x)
    if isinstance(x, FunctionType):
        try:
            cells = tuple(described(cell.cell_contents) for cell in x.__closure__ or ())
        except ValueError as error:  # an empty one
            raise NamelessError(repr(x)) from error
        return _path(x), _code(x.__code__), described(x.__defaults__), described(x.__kwdefaults__), cells
    if is_dataclass(x):
        return _path(type(x)), tuple((f.name, described(getattr(x, f.name))) for f in fields(x))
    raise NamelessError(repr(x))


def _code(x: CodeType) -> Any:
    """Of a function: where and what it is, constants too."""
    constants = tuple(_code(c) if isinstance(c, CodeType) else repr(c) for c in x.co_consts)
    return x.co_firstlineno, x.co_code, x.co_names, constants


def _path(x: Any) -> str:
    """Of a type or function whose source is known."""
    if x.__module__.partition(".")[0] not in (PACKAGE, "builtins"):
        raise NamelessError(repr(x))
    return f"{x.__module__}:{x.__qualname__}"
