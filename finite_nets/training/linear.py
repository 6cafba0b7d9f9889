"""A step of a linear optimiser in place, x <- A x + b D with x = (theta, slots) (`dmft.specs.training`).

D, a sum of products of fields, is never formed: it is added once, to one component k, and from there to the others,

    x <- U x;      x_k <- x_k + b_k D;      x_i <- x_i + r_i x_k   (i != k),      r_i = b_i / b_k,   U_i = A_i - r_i A_k

k being the slot with the largest b, or theta where no slot takes D.  Under a heavy ball U leaves theta as it is, and
these are the steps v <- beta v - lambda theta, v <- v + D, theta <- theta + eta v.  A slot may hold theta itself: the
average m <- (1 - beta) m + beta theta has b = beta eta, and theta <- m / beta - (1 / beta - 1) m, as it is and was,
would lose digits in every step.  So no slot is taken with which theta is made of larger terms than it need be.

Rows of U are taken in an order in which none overwrites what another still needs; where there is none, as in a rotation
of components, one of them is copied.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dmft.specs.training import Recurrence
from dmft.specs.training.recurrence import RECURRENCE

if TYPE_CHECKING:
    from finite_nets.training.state import Fields, State, W
    from finite_nets.training.trainer import Training

ROUNDING = 4 * sys.float_info.epsilon
LARGER = 4.0  # terms by less than this are as good
Numbers = Sequence[Sequence[float]]


class Row(NamedTuple):
    """x_i <- keep x_i + sum_j factor_j x_j, for pairs (j, factor_j); whether x_i is copied first, for other rows."""

    component: int
    keep: float
    others: tuple[tuple[int, float], ...]
    copied: bool = False


class Plan(NamedTuple):
    """Of a step: rows before D is added, to which component and with what factor (none where b is zero), rows after."""

    before: tuple[Row, ...]
    pushed: tuple[int, float] | None
    after: tuple[Row, ...]


@lru_cache(maxsize=1024)
def plan(A: tuple[tuple[float, ...], ...], b: tuple[float, ...]) -> Plan:
    """How a step with these numbers is taken."""
    if not any(b):
        return Plan(_ordered(A), None, ())
    k = _first(A, b)
    U, ratios = _split(A, b, k)
    return Plan(_ordered(U), (k, b[k]), tuple(Row(i, 1.0, ((k, r),)) for i, r in enumerate(ratios) if r))


def _first(A: Numbers, b: Sequence[float]) -> int:
    """The component k to which D is added."""
    slots = sorted((i for i in range(1, len(b)) if b[i]), key=lambda i: -abs(b[i]))
    if not slots or not b[0]:
        return slots[0] if slots else 0
    # what components hold while theta, of size one, rests
    A_ss, A_s0 = np.array(A)[1:, 1:], np.array(A)[1:, 0]
    held = np.abs([1.0, *np.linalg.lstsq(np.eye(len(A_s0)) - A_ss, A_s0, rcond=None)[0]])

    def terms(k: int) -> float:
        """The largest of those that make theta."""
        U, ratios = _split(A, b, k)
        return float(max(*np.abs(U[0] * held), abs(ratios[0]) * held[k]))

    sizes = {k: terms(k) for k in (*slots, 0)}
    return next(k for k, size in sizes.items() if size <= LARGER * min(sizes.values()))


def _split(A: Numbers, b: Sequence[float], k: int) -> tuple[list[list[float]], list[float]]:
    """U and r."""
    ratios = [0.0 if i == k else each / b[k] for i, each in enumerate(b)]
    U = [
        [_difference(a, r * other, float(i == j)) for j, (a, other) in enumerate(zip(row, A[k], strict=True))]
        for i, (row, r) in enumerate(zip(A, ratios, strict=True))
    ]
    return U, ratios


def _difference(a: float, b: float, unit: float) -> float:
    """a - b, without the rounding that cancellation leaves of 0, or of 1 on the diagonal."""
    size = ROUNDING * (abs(a) + abs(b)) if b else 0.0
    return next((value for value in (0.0, unit) if abs(a - b - value) <= size), a - b)


def _ordered(U: Numbers) -> tuple[Row, ...]:
    waiting, rows = [i for i, row in enumerate(U) if any(u != (i == j) for j, u in enumerate(row))], []
    while waiting:
        needed = {i: any(U[j][i] for j in waiting if j != i) for i in waiting}
        i = min(waiting, key=needed.__getitem__)
        rows.append(Row(i, U[i][i], tuple((j, u) for j, u in enumerate(U[i]) if j != i and u), copied=needed[i]))
        waiting.remove(i)
    return tuple(rows)


def plans(recurrence: Recurrence) -> list[Plan]:
    """Of every step."""
    numbers = zip(recurrence.A.tolist(), recurrence.b.tolist(), strict=True)
    return [plan(tuple(map(tuple, A)), tuple(b)) for A, b in numbers]


def copies(recurrence: Recurrence) -> int:
    """How many arrays of the size of the parameters are held at once, the parameters among them."""
    most = max(sum(row.copied for row in each.before) for each in {*plans(recurrence)})
    return 1 + recurrence.slots + most


def moves_weights_alone(training: Any) -> bool:
    """Whether steps are theta <- A theta + b D: of the weights that D was found with, which its pass may move."""
    return training.stepping == RECURRENCE and not training.recurrences.slots


def descend(trainer: Training[W], state: State[W], _: Fields, trained: Fields, t: int) -> None:
    """Step t, in place, from the fields trained on."""
    before, pushed, after = trainer.plans[t]
    if moves_weights_alone(trainer.training) and pushed is not None:
        trainer.descend(state, trained, before[0].keep if before else 1.0, pushed[1])
        return
    x = [state.weights, *state.slots]
    combine(x, before)
    if pushed is not None:
        component, factor = pushed
        trainer.push(state, x[component], trained, trained.delta, factor)
    combine(x, after)


def combine(x: list[W], rows: tuple[Row, ...]) -> None:
    """Take the rows, in place."""
    old = list(x)
    for component, keep, others, copied in rows:
        if copied:
            old[component] = x[component].copy()
        if keep != 1:
            x[component].scale(keep)
        for other, factor in others:
            x[component].add(old[other], factor)
