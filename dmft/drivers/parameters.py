"""The numbers of a problem that its losses have derivatives in, and how those of a step change with them.

r, the numbers of a step (`dmft.engine.form.Rule`), depend on p, a field of the network or the training, by a short
function of NumPy, whose derivatives dr/dp are differences: exact to rounding where r is a polynomial of second degree
or less, as of rates, momentum, decay, richness and scales; to 1e-6 of variances, of which it has roots.  Variances of 0
are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from dmft.drivers.run import Run
from dmft.engine import loop
from dmft.specs import Problem, vary

Array = NDArray[np.float64]
DIFFERENCE = 1e-3  # of a number, relative to its size, or to one for 0
STENCILS = (((-1, 1), (-0.5, 0.5)), ((0, 1, 2), (-1.5, 2.0, -0.5)), ((0, -1, -2), (1.5, -2.0, 0.5)))


def parameters(problem: Problem, by: Sequence[str]) -> dict[str, Any]:
    """Coordinates of all entries of these fields: parameter, field, entry.

    Raises:
        ValueError, TypeError: a field that is no number.
    """
    entries = [(name, index) for name in by for index in np.ndindex(number(problem, name).shape)]
    if not entries:
        raise ValueError('by=[] names no field; give e.g. by="learning_rate".')
    labels = [name + "".join(f"[{i}]" for i in index) for name, index in entries]
    return {
        "parameter": labels,
        "field": ("parameter", [name for name, _ in entries]),
        "entry": ("parameter", [index[0] if index else 0 for _, index in entries]),
    }


def number(problem: Problem, name: str) -> Array:
    """The field of this name, a number or several.

    Raises:
        ValueError, TypeError: there is none.
    """
    specs: tuple[Any, ...] = (problem.network, problem.training)
    known = {field.name: getattr(spec, field.name) for spec in specs for field in fields(spec)}
    numbers = {n: v for n, v in known.items() if _is_number(v)}
    if name not in known:
        raise ValueError(f"by={name!r} is no field of this problem; numbers of it are {', '.join(sorted(numbers))}.")
    if name not in numbers:
        raise TypeError(f"by={name!r} is {known[name]!r}, no number; numbers are {', '.join(sorted(numbers))}.")
    return np.asarray(known[name], np.float64)


def stored(value: Array) -> Any:
    """A number or several, as a field has them."""
    return tuple(value.tolist()) if value.shape else float(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(map(_is_number, value))
    return isinstance(value, float)


def changes_of(problem: Problem, run: Run, name: str) -> list[Any]:
    """dr/dp of every entry of a field, in the order of its entries."""
    value, form = number(problem, name), loop.form_of(problem, run.observables)

    def rule(entries: Array) -> Any:
        (other,) = vary(problem, **{name: [stored(entries)]})
        if loop.form_of(other, run.observables) != form:
            raise TypeError(f"by={name!r} shapes the compiled code, which has no derivative in it.")
        found = loop.rule_of(other, length=len(run.rule.rows))
        return jax.tree.map(lambda a: np.asarray(a, np.float64), found)

    return [_difference(rule, name, value, index) for index in np.ndindex(value.shape)]


def _difference(rule: Callable[[Array], Any], name: str, value: Array, index: tuple[int, ...]) -> Any:
    """dr/dp of one entry, on trees of NumPy arrays, None for those that do not change: a central difference, or where
    one side is out of range that of three points on the other."""
    h = DIFFERENCE * (abs(float(value[index])) or 1.0)

    if name == "weight_variance" and not value[index]:
        raise ValueError("weight_variance=0 has no derivative: deviations are its root. Take a small one.")

    def at(offset: float) -> Any:
        moved = value.copy()
        moved[index] += offset
        return rule(moved)

    for points, weights in STENCILS:
        try:
            parts = [at(point * h) for point in points]
        except ValueError:
            continue
        shapes = {tuple(a.shape for a in jax.tree.leaves(part)) for part in parts}
        if len(shapes) > 1:
            break

        def changed(*a: Array, weights: Any = weights) -> Any:
            if all(np.array_equal(a[0], x) for x in a[1:]):
                return None
            return sum(w * x for w, x in zip(weights, a, strict=True)) / h

        return jax.tree.map(changed, *parts)
    raise ValueError(
        f"{name}={value[index]:g} cannot be changed by a little: it shapes what is computed there. Take another value."
    )


def chained(numbers: Any, change: Any) -> float:
    """sum_r (dV/dr) (dr/dp)."""
    slopes, changes = (jax.tree.leaves(tree, is_leaf=lambda a: a is None) for tree in (numbers, change))
    pairs = zip(slopes, changes, strict=True)
    return float(sum(np.sum(np.asarray(a) * b) for a, b in pairs if a is not None and b is not None))
