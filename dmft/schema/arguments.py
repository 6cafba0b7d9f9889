"""Arguments that producers share, checked: the steps, samples and observables to record."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.errors import SchemaError
from dmft.schema.observable import Observable
from dmft.schema.registry import register, registered
from dmft.specs import Population, Problem

# recorded if nothing is asked for, of a single output
OBSERVABLES = tuple(one.name for one in registered() if not one.on_request)


def saved_steps(problem: Problem, save_steps: Iterable[int] | None) -> NDArray[np.int64]:
    """The recorded steps: all of 0..T, or those asked for, sorted.

    Raises:
        ValueError, TypeError: steps outside 0..T, repeated, or none; not a list.
    """
    last = problem.training.steps
    if save_steps is None:
        return np.arange(last + 1)
    if not isinstance(save_steps, Iterable):
        raise TypeError(f"save_steps={save_steps!r} is not a list; give e.g. save_steps=[0, {last}].")
    given = list(save_steps)
    steps = np.sort(np.asarray(given))
    if len(steps) == 0 or not np.issubdtype(steps.dtype, np.integer) or len(np.unique(steps)) < len(steps):
        raise ValueError(f"save_steps={given} must be different whole numbers, at least one.")
    if steps[0] < 0 or steps[-1] > last:
        outside = steps[(steps < 0) | (steps > last)]
        raise ValueError(f"save_steps holds {outside[0]}; this problem has steps 0..{last}.")
    return steps


def observed_samples(problem: Problem, samples: Iterable[int] | None) -> NDArray[np.int64]:
    """Indices of the samples to record: all that are observed, or those asked for, sorted.

    Raises:
        ValueError, TypeError: samples that are not observed, repeated, or none; not a list.
    """
    observed = np.arange(problem.task.n_samples)[problem.observed]
    if samples is None:
        return observed
    if not isinstance(samples, Iterable):
        raise TypeError(f"samples={samples!r} is not a list; give e.g. samples=[{observed[0]}].")
    given = list(samples)
    found = np.sort(np.asarray(given))
    whole = found.ndim == 1 and np.issubdtype(found.dtype, np.integer)
    if len(found) == 0 or not whole or len(np.unique(found)) < len(found):
        raise ValueError(f"samples={given} must be different whole numbers, at least one.")
    outside = found[~np.isin(found, observed)]
    if len(outside):
        raise ValueError(f"samples holds {outside[0]}; this problem records samples {observed[0]}..{observed[-1]}.")
    return found


def observables(asked: Any, problem: Problem, producer: str) -> tuple[str, ...]:
    """The argument `observables` of a producer, or the error that says what is wrong with it; by default everything
    for a single output, without the kernels between outputs for several, and nothing of what is only on request.

    An observable of a user's own is registered.  `producer` is one of those that observables name.
    """
    if asked is None:
        return tuple(one.name for one in registered() if not one.on_request and not _between_outputs(one, problem))
    listed = not isinstance(asked, str) and isinstance(asked, Collection)
    names = [register(one).name if isinstance(one, Observable) else one for one in asked] if listed else []
    known = sorted(registered(), key=lambda one: one.on_request)
    offered = [one for one in known if producer in one.producers]
    if not names or not all(name in [one.name for one in offered] for name in names):
        elsewhere = [one for one in known if one not in offered and one.name in names]
        only = "".join(f" ({one.name} is recorded by {' and '.join(one.producers)} only)" for one in elsewhere)
        raise ValueError(f"observables={asked!r}: give a list with any of {', '.join(o.name for o in offered)}{only}.")
    wanted = [one for one in offered if one.name in names]
    for one in wanted:
        if refusal := one.refusal(problem):
            raise ValueError(f"observables={names!r}: {refusal}. Leave it out.")
    return tuple(one.name for one in wanted)


def _between_outputs(one: Observable, problem: Problem) -> bool:
    """Whether it is as many times larger as outputs squared."""
    return bool(problem.task.outputs) and one.per_output and one.kernel


def between_steps(names: Collection[str]) -> tuple[Observable, ...]:
    """The observables that two-time results hold between all steps, where these are asked for."""
    return tuple(one for one in registered() if one.fields and (not one.on_request or one.name in names))


def need(names: Collection[str], what: str) -> bool:
    """Whether any of these observables needs that of a pass."""
    return any(one.needs == what for one in registered() if one.name in names)


def require_known(names: Collection[str]) -> None:
    """SchemaError for observables that are not registered in this process, as those of a user's own may be."""
    if unknown := sorted({*names} - {one.name for one in registered()}):
        raise SchemaError(
            f"the observables {unknown} are not known in this process; import the module that makes them first (a "
            "process that is started finds them in a module, not in a notebook)."
        )


def require_no_positions(problem: Problem, what: str) -> None:
    """ValueError if layers have positions, or other numbers of neurons or units than the network has, for which
    preactivations of single neurons have no dimension."""
    positions, name = [count for _, count in problem.sketch.layers], type(problem.network).__name__
    if any(positions):
        raise ValueError(
            f"{what} is for layers without positions, and those of {name} have them: the layers of {name} have "
            f"{positions} positions; kernels average over them."
        )
    other = [of for of, _ in problem.sketch.layers if isinstance(of, Population)]
    if other:
        raise ValueError(
            f"{what} is for layers of the width of the network whose neurons are units of their own; {name} has layers "
            f"of the population {other[0].name!r}, of width {other[0].width:g} and units of {other[0].components}."
        )
