"""Results by what they are, and functions that take several of them in any order.

A Dataset carries its kind, so that a function of several results need not rely on where each of them stands:

    @by_kind(theory="theory", nets="networks")
    def representations(theory, nets, quantity="feature_kernel"): ...

    representations(theory, nets)   representations(nets, theory, "ntk")   representations(nets=nets, theory=theory)

Documented is one order: theory, nets, fluctuations.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import xarray as xr

from dmft.errors import SchemaError
from dmft.schema.validate import restored

P = ParamSpec("P")
T = TypeVar("T")


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()  # the default of a result that must be given, after one that need not be


class Source(NamedTuple):
    """The kinds of a result, and the call that makes one."""

    kinds: tuple[str, ...]
    call: str

    def __str__(self) -> str:
        return f"a result of kind {' or '.join(map(repr, self.kinds))}, from {self.call}"


SOURCES = {
    "theory": Source(("limit",), "dmft.solve(problem)"),
    "networks": Source(("ensemble", "moments"), "finite_nets.train_ensemble(problem, widths, seeds)"),
    "fluctuations": Source(("fluctuations",), "dmft.fluctuations(problem)"),
    "particles": Source(("particles",), "dmft.neurons(problem)"),
    "neurons": Source(("neurons",), "finite_nets.neurons(problem, widths)"),
    "adaptive": Source(("adaptive_kernel",), "dmft.adaptive_kernel(problem)"),
    "chains": Source(("posterior",), "finite_nets.sample_posterior(problem, widths, seeds)"),
}


def kind_of(ds: xr.Dataset) -> str:
    """What a Dataset says that it is: its analysis, or its kind; empty where it says nothing."""
    return str(ds.attrs.get("analysis", ds.attrs.get("kind", "")))


def source_of(ds: xr.Dataset) -> str | None:
    """The name in `SOURCES` of a Dataset, by its kind; None for what follows from several results."""
    return next((name for name, source in SOURCES.items() if kind_of(ds) in source.kinds), None)


def by_kind(**arguments: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator of functions whose first arguments are results, which then come in any order, or by their names.

    Args:
        arguments: the name in `SOURCES` of each of these arguments.  Those without a default must be given; None stands
            for one that is not.

    The function raises SchemaError, which says what was got, what is expected and which call makes it, for Datasets of
    other kinds, twice the same, none where there must be one, and other objects.
    """

    def decorated(function: Callable[P, T]) -> Callable[P, T]:
        parameters = inspect.signature(function).parameters
        required = [name for name in arguments if parameters[name].default in (REQUIRED, inspect.Parameter.empty)]
        others = [name for name, p in parameters.items() if name not in arguments and p.kind is p.POSITIONAL_OR_KEYWORD]

        @functools.wraps(function)
        def sorting(*args: P.args, **kwargs: P.kwargs) -> T:
            ahead = 0
            while ahead < len(args) and (args[ahead] is None or isinstance(args[ahead], xr.Dataset)):
                ahead += 1
            named = {name: kwargs.pop(name) for name in arguments if name in kwargs}
            given = _sorted(function.__name__, arguments, args[:ahead], named)
            results, further = [*args[:ahead], *named.values()], args[ahead:]
            missing = [name for name in required if name not in given]
            if missing or len(further) > len(others):
                lacks = f": {missing[0]} is missing" if missing else ""
                raise SchemaError(f"{_got(function.__name__, [*results, *further])}{lacks}. {_way(arguments)}")
            placed = dict(zip(others, further, strict=False))
            return function(**given, **placed, **kwargs)  # type: ignore[arg-type, call-arg]

        return sorting

    return decorated


def _sorted(
    function: str, arguments: dict[str, str], places: Sequence[Any], named: dict[str, Any]
) -> dict[str, xr.Dataset]:
    """Results by the names of the arguments that they are, without those that are None."""
    found: dict[str, xr.Dataset] = {}
    by_source = {source: name for name, source in arguments.items()}
    labelled = [(None, ds) for ds in places] + list(named.items())
    everything = [ds for _, ds in labelled if ds is not None]
    for name, ds in labelled:
        if ds is None:
            continue
        if not isinstance(ds, xr.Dataset):
            raise SchemaError(f"{function} got {name}={_described(ds)}. {_way(arguments)}")
        ds = restored(ds)
        is_one = by_source.get(source_of(ds) or "")
        if is_one is None or name not in (None, is_one):
            as_one = f"{name}=" if name else ""
            raise SchemaError(f"{function} got {as_one}{_described(ds)}. {_way(arguments)}")
        if is_one in found:
            raise SchemaError(f"{_got(function, everything)}: {is_one} is there twice. {_way(arguments)}")
        found[is_one] = ds
    return found


def _got(function: str, results: Sequence[Any]) -> str:
    return f"{function} got {', '.join(_described(ds) for ds in results if ds is not None) or 'nothing'}"


def _described(ds: Any) -> str:
    """What was given, as a message names it."""
    if not isinstance(ds, xr.Dataset):
        return repr(ds) if isinstance(ds, int | float | str) else type(ds).__name__
    return f"a Dataset of kind {kind_of(ds)!r}" if kind_of(ds) else "a Dataset without a kind"


def _way(arguments: dict[str, str]) -> str:
    expected = "; ".join(f"{name}, {SOURCES[source]}" for name, source in arguments.items())
    return f"Expected, in any order: {expected}."
