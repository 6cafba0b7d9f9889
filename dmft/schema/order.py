"""Functions of several results, which take them in any order: Datasets carry their kind."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import xarray as xr

from dmft.schema.validate import restored

NETWORKS = ("ensemble", "moments")
P = ParamSpec("P")
R = TypeVar("R")


def in_any_order(**roles: tuple[str, ...]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function take the results that are its first arguments in any order.

    Args:
        roles: its first parameters, in their order, and the kinds of results that each may be.

    A result that fits no parameter takes the first that is left, where the function says what is wrong with it.

    >>> @in_any_order(theory=("limit",), nets=("ensemble", "moments"))
    ... def kinds(theory, nets):
    ...     return theory.attrs["kind"], nets.attrs["kind"]
    >>> kinds(xr.Dataset(attrs={"kind": "moments"}), xr.Dataset(attrs={"kind": "limit"}))
    ('limit', 'moments')
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        untyped: Callable[..., R] = function

        @functools.wraps(function)
        def ordered(*args: P.args, **kwargs: P.kwargs) -> R:
            results, rest = args[: len(roles)], args[len(roles) :]
            placed, left = dict[str, Any](), list[Any]()

            def free() -> list[str]:
                return [role for role in roles if role not in placed and role not in kwargs]

            for result in results:
                fits = [role for role in free() if _kind(result) in roles[role]]
                if fits:
                    placed[fits[0]] = result
                else:
                    left.append(result)
            if len(left) > len(free()):
                return function(*args, **kwargs)  # a parameter is given twice, which it says
            placed |= dict(zip(free(), left, strict=False))
            if rest:  # all roles are there
                return untyped(*(placed[role] for role in roles), *rest, **kwargs)
            return untyped(**placed, **kwargs)

        return ordered

    return decorate


def _kind(result: Any) -> str:
    """What a result says that it is; empty of anything else."""
    return str(restored(result).attrs.get("kind", "")) if isinstance(result, xr.Dataset) else ""
