"""Optimisers of one's own: what they have to be, how they are described, and how they are found again
(`dmft.specs._own`).

Their digest is that of the numbers A (of theta, A - 1) and b of all steps, of the times between steps and of the
batches: of each to eight digits, however small beside others, as far as rounding leaves them; of an entrywise rule
besides of what it makes of gradients in general position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from dmft.specs import _own
from dmft.specs.training.entrywise import ENTRYWISE, Entrywise
from dmft.specs.training.recurrence import RECURRENCE, Array, Training

STEPS = 3  # of an entrywise rule, by which it is known
ROUNDING = 1e-13  # of sums and products of a few numbers, with room
SORT = _own.Sort(Training, "training", "optimiser", "recurrence")


def require_sound(training: Any) -> None:
    """The checks of an optimiser of one's own.

    Raises:
        TypeError: not a frozen dataclass, not found again by its name; fields that JSON does not hold.
        ValueError: no recurrence, or one of other shapes; values of what engines read beside it.
    """
    name = type(training).__name__
    _own.require_frozen_dataclass(training)
    _own.path(type(training), SORT)
    if training.stepping != (ENTRYWISE if isinstance(training, Entrywise) else RECURRENCE):
        raise ValueError(f"{name} has stepping={training.stepping!r}; an optimiser of one's own leaves it as it is.")
    named = {each.name for each in fields(training)}
    for each in ("steps", "learning_rate"):
        if not hasattr(training, each):
            raise TypeError(f"{name} has no {each}; give it a field of that name.")
    for each, value in training.checked(named | {"batches", "observe"}).items():
        if type(value) is not type(given := getattr(training, each)) or value != given:
            raise TypeError(
                f"{each}={given!r} of {name} is to be {value!r}; begin its __post_init__ with super().__post_init__()."
            )
    _own.written(training)
    try:
        training.recurrences  # noqa: B018
    except (ValueError, NotImplementedError):
        raise
    except Exception as error:
        raise ValueError(f"the recurrence of {name} fails: {type(error).__name__}: {error}") from error
    if isinstance(training, Entrywise):
        _require_rule(training)


def _require_rule(training: Any) -> None:
    """ValueError for an `update` that fails, or gives other arrays than it is to."""
    name = type(training).__name__
    if isinstance(training.slots, bool) or not isinstance(training.slots, int) or training.slots < 0:
        raise ValueError(
            f"slots={training.slots!r} of {name} is not the number of arrays that it remembers, 0 or more."
        )
    try:
        found = _moved(training)
    except (ValueError, NotImplementedError):
        raise
    except Exception as error:
        raise ValueError(f"the update of {name} fails: {type(error).__name__}: {error}") from error
    if (bad := next((a for a in found if not np.isfinite(a).all()), None)) is not None:
        raise ValueError(
            f"the update of {name} gives {bad[~np.isfinite(bad)][0]} for finite gradients, zeros among them."
        )
    zeros = np.zeros(2)
    if np.any(training.stepped(np, 0, (zeros,) * training.slots, zeros)[1]):
        raise ValueError(
            f"the update of {name} moves entries that have met no gradient; Q has to be 0 there, as of neurons that "
            "are off and of inputs that are 0."
        )


def _moved(training: Any) -> list[Array]:
    """Q of some steps, and what is remembered at the end, for gradients in general position and zeros."""
    state: tuple[Any, ...] = (np.zeros((4, 3)),) * training.slots
    found: list[Array] = []
    for t in range(STEPS):
        G = _own.in_general_position(f"G({t})", (4, 3))
        G[0] = 0.0
        state, Q = training.stepped(np, t, state, G)
        shapes = [np.shape(each) for each in (Q, *state)]
        if len(shapes) != 1 + training.slots or any(shape != G.shape for shape in shapes):
            raise ValueError(
                f"the update of {type(training).__name__} gives Q and states of shapes {shapes} for gradients of shape "
                f"{G.shape} with slots={training.slots}; expected Q and as many states, all of that shape."
            )
        found.append(np.asarray(Q, np.float64))
    return [*found, *(np.asarray(each, np.float64) for each in state)]


def described(training: Any) -> dict[str, Any]:
    """For JSON."""
    return _own.described(training, SORT, digest(training))


def from_described(content: Mapping[str, Any]) -> Any:
    """What `described` gave.

    Raises:
        ValueError: a module that is not imported, or has no such optimiser; fields that it does not have; a recurrence
            that has other numbers.
    """
    training = _own.made(content, SORT)
    require_sound(training)
    _own.require_digest(content, digest(training), SORT)
    return training


def digest(training: Any) -> str:
    """Of the numbers that it makes."""
    found = training.recurrences
    change, b = found.step
    times = np.asarray(training.times, np.float64)
    numbers = (
        _above_rounding(change, abs(found.A).max(axis=0)),
        _above_rounding(b, abs(b).max(axis=0)),
        _above_rounding(np.diff(times, prepend=0.0), abs(times).max()),
    )
    rule = _moved(training) if isinstance(training, Entrywise) else []
    return _own.digest_of(repr((training.batches, training.observe)), (*numbers, *rule))


def _above_rounding(values: Array, size: Array) -> Array:
    """The values, without what is below ROUNDING of the numbers, up to `size`, that they were made of."""
    unit = ROUNDING * np.where(size > 0, size, 1.0)
    return np.round(values / unit) * unit
