"""Mixtures of odorants: a target among nontargets that share some of its odorants, and probes that share more.

    x = sqrt(k / n) (o + noise z),   o one of the mixtures of n of k odorants, as zeros and ones,  z ~ N(0, 1)
    target      y = +1    one mixture, drawn once
    nontargets  y = -1    each has m odorants in common with the target, m one of `overlaps`

so that x.x' / k is the number of common odorants over n, up to noise.  Test samples are fresh targets, then probes: new
nontargets of higher overlaps.  `provenance` holds the overlap of every sample, n for targets.

Source: T. Kumar, B. Bordelon, C. Pehlevan, V. Murthy, S. Gershman, arXiv:2411.03541 (synthetic task); noise and numbers
of samples are chosen here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.specs import _check
from dmft.specs.tasks.given import Task

Array = NDArray[np.float64]


def odour_task(
    *,
    n_train: int = 400,
    n_test: int = 60,
    odorants: int = 100,
    active: int = 10,
    overlaps: Sequence[int] = (0, 1, 2, 3, 4),
    probes: Sequence[int] = (5, 6, 7, 8, 9),
    noise: float = 0.15,
    seed: int = 0,
) -> Task:
    """A target mixture of odorants among nontargets, and probes that are closer to it.

    Args:
        n_train: training samples, of which half are noisy copies of the target and half nontargets.
        n_test: fresh targets, and as many probes of every overlap.
        odorants: k, the number of inputs.
        active: n, odorants of a mixture.
        overlaps: how many odorants training nontargets may share with the target, each as likely.
        probes: the overlaps of probes, none of them n.
        noise: standard deviation of the noise of every input, where an odorant is 1.
        seed: of mixtures and noise.

    Returns:
        A `Task` with targets +1 and -1; provenance["overlap"] lists the overlap of every sample.

    Raises:
        ValueError, TypeError: naming the argument that is out of range, overlaps that no mixture has.

    Example:
        >>> task = dmft.odour_task(n_train=8, n_test=2, probes=(5, 9))
        >>> task.provenance["overlap"][-6:]
        [10, 10, 5, 5, 9, 9]
    """
    n_train = _check.integer("n_train", n_train, minimum=2)
    n_test = _check.integer("n_test", n_test, minimum=1)
    active = _check.integer("active", active, minimum=1)
    odorants = _check.integer("odorants", odorants, minimum=active + 1)
    given = {"overlaps": overlaps, "probes": probes}
    shared = {name: _overlaps(name, value, active, odorants) for name, value in given.items()}
    noise = _check.nonnegative("noise", noise)
    rng = np.random.default_rng(_check.integer("seed", seed, minimum=0))
    order = rng.permutation(odorants)
    target, others = order[:active], order[active:]

    def mixture(m: int) -> Array:
        o = np.zeros(odorants)
        o[rng.choice(target, m, replace=False)] = 1
        o[rng.choice(others, active - m, replace=False)] = 1
        return o

    targets = n_train - n_train // 2
    trained = [active] * targets + rng.choice(shared["overlaps"], n_train - targets).tolist()
    tested = [active] * n_test + [m for m in shared["probes"] for _ in range(n_test)]
    clean = np.array([mixture(m) for m in (*trained, *tested)])
    x = (odorants / active) ** 0.5 * (clean + noise * rng.standard_normal(clean.shape))
    y = np.where(np.array([*trained, *tested]) == active, 1.0, -1.0)
    made = {"odorants": odorants, "active": active, "noise": noise, "seed": seed, **shared}
    provenance = {"name": "odours", **made, "overlap": [*trained, *tested]}
    return Task(x[:n_train], y[:n_train], x[n_train:], y[n_train:], provenance=provenance)


def _overlaps(name: str, given: Any, active: int, odorants: int) -> list[int]:
    """Overlaps that mixtures other than the target can have."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"{name}={given!r} is not a list of overlaps; give e.g. {name}=(0, 1, 2).")
    found = [_check.integer(name, m, minimum=0) for m in given]
    least = max(0, 2 * active - odorants)
    if not found or not all(least <= m < active for m in found):
        raise ValueError(
            f"{name}={tuple(found)} must hold overlaps from {least} to {active - 1}: other mixtures of {active} of "
            f"{odorants} odorants share no other number of them with the target."
        )
    return found
