"""The observables that there are: those of `dmft.schema.observed`, and a user's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from dmft.schema import observed
from dmft.schema.observable import NEEDS, PREDICTIONS, Observable
from dmft.schema.words import FOUND, QUANTITIES, in_words
from dmft.specs._kinds import modules_in

_registered: dict[str, Observable] = {}
_built_in: frozenset[str] = frozenset()


def observable(**described: Any) -> Callable[[Callable[..., Any]], Observable]:
    """Make a formula an observable that every producer can be asked for, by itself or by its name.

    Args:
        described: arguments of `Observable` but the formula, whose name is that of the function if it is not given;
            `long_name` is the first line of its docstring.

    Raises:
        ValueError: as `register`.

    Example:
        >>> @dmft.observable(dims=("layer", "step"))
        ... def feature_size(seen):
        ...     return seen.xp.einsum("...aa->...", seen["feature_kernel"])
        >>> nets = finite_nets.train_ensemble(problem, widths=[8], seeds=2, observables=["feature_size"])
        >>> nets["feature_size"].dims
        ('width', 'seed', 'layer', 'step')
    """

    def made(formula: Callable[..., Any]) -> Observable:
        words = (formula.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        given: dict[str, Any] = {"name": formula.__name__, "long_name": words, "formula": formula} | described
        return register(Observable(**given))

    return made


def register(new: Observable) -> Observable:
    """Let results hold an observable, in place of one of the same name that is a user's own.

    Raises:
        ValueError: the name is one of this library, or reads like one.
    """
    if _registered.get(new.name) == new:
        return new
    others = _quantities(tuple(one for one in registered() if one.name != new.name))
    known = QUANTITIES | {name: one.long_name for name, one in others.items()}
    of_test = f"test_{new.name}" in others or new.name.removeprefix("test_") in others
    if new.name in _built_in or of_test or in_words(new.name, known) is not None:
        raise ValueError(f"name={new.name!r} of an observable is taken in results; choose another one.")
    if clash := next((name for name in known if name in {f"{new.name}_{suffix}" for suffix in FOUND}), None):
        raise ValueError(f"name={new.name!r} of an observable would be read into {clash!r}; choose another one.")
    _registered[new.name] = new
    registered.cache_clear()
    return new


@functools.cache
def registered() -> tuple[Observable, ...]:
    """All observables, in the order of results."""

    def place(one: Observable) -> tuple[Any, ...]:
        return NEEDS.index(one.needs), one.on_request, one.name not in _built_in

    return tuple(sorted(_registered.values(), key=place))


def own() -> tuple[Observable, ...]:
    """Those of a user's own."""
    return tuple(one for one in registered() if one.name not in _built_in)


def quantities() -> dict[str, Observable]:
    """What results may hold, by name: observables, those of predictions of test samples too, and between two steps."""
    return dict(_quantities(registered()))


def in_tables() -> dict[str, str]:
    """Labels of the quantities of single steps, by name."""
    return {name: one.label for name, one in quantities().items() if "step_2" not in one.dims}


def kernels() -> tuple[str, ...]:
    """Names of those that compare pairs of samples."""
    return tuple(name for name in in_tables() if quantities()[name].kernel)


@functools.lru_cache(maxsize=8)
def _quantities(known: tuple[Observable, ...]) -> dict[str, Observable]:
    found: dict[str, Observable] = {}
    for one in known:
        each = [one.of(""), one.of("test_")] if one.needs == PREDICTIONS else [one]
        found |= {part.name: part for part in each}
    found |= {two.name: two for one in known if one.fields for two in [one.between_steps()]}
    return found


modules_in(observed)  # which register what they hold
_built_in = frozenset(_registered)
registered.cache_clear()
