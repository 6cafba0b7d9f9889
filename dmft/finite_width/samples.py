"""The loss of networks of finite width along a grid of values, by the engine of the limit (`dmft.drivers.in_law`) with
ordinary weight matrices: no derivatives.

Networks of the same width and index begin with the same weights at every value, so that most of their scatter is common
to the values and cancels in slopes.  (Without weight matrices every one of them would have the right law, but not two
of them together: of the digits of the tests the scatter of the best rate came out 9, 10 and 41 % too large at N = 128,
64 and 32.)  With m_N(v) the mean and Cov_N(v, v') the covariance over networks of width N, which hold all orders,

    m_N - L = b / N + c / N^2         N Cov_N = C + C' / N

by least squares over the widths, with weights of the noise of N m_N; of one width, without c and C'.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import jax
import numpy as np
from numpy.typing import NDArray

from dmft import schema
from dmft.drivers.in_law import sampled
from dmft.drivers.machine import find_devices, precision
from dmft.drivers.numerics import TOLERANCES, check_numerics
from dmft.drivers.run import Run
from dmft.errors import DivergenceError, exploded
from dmft.finite_width.curves import Expansion, limits_along
from dmft.running import effort
from dmft.running.progress import Bar, progress_bar
from dmft.specs import Problem, vary

Array = NDArray[np.float64]
GROUPS = 32  # of networks, for errors
METHOD = "networks of every width, by the engine of the limit with ordinary matrices"


@dataclass(frozen=True)
class Samples:
    """Losses of the limit (scramble, value) and of networks (sequence, width, member, value), nan where one
    diverges; of one sequence of batches, or of several, over which curves and covariances are means.

    run: of the limit, of one of the values; directions: the most that its matrices met; attrs: how it was made.
    """

    limit: Array
    losses: Array
    widths: Array
    run: Run
    directions: int
    attrs: dict[str, Any]
    leading: ClassVar[bool] = False  # order in 1/N

    @classmethod
    def mean(cls, several: Sequence[Samples]) -> Samples:
        """Of problems whose scrambles and networks are the same."""
        limit = np.mean([one.limit for one in several], axis=0)
        losses = np.concatenate([one.losses for one in several])
        return replace(several[0], limit=limit, losses=losses, directions=max(one.directions for one in several))

    @property
    def independent(self) -> tuple[int, ...]:
        """Numbers of scrambles, and of groups of networks."""
        return len(self.limit), GROUPS

    def expansion(self, kept: Sequence[NDArray[np.bool_]]) -> Expansion:
        """Of some of the scrambles, and of the groups."""
        L = self.limit[kept[0]].mean(0)
        count, first, second = (part[:, :, kept[1]].sum(2) for part in self._moments)
        off = first / count[..., None]
        mean, networks = (self._origin + off).mean(0), count.mean(0)
        outer = off[..., :, None] * off[..., None, :]
        covariance = (second - count[..., None, None] * outer) / (count - 1)[..., None, None]
        spread = self.widths[:, None, None] * covariance.mean(0)
        b = _at_infinity(self.widths, self.widths[:, None] * (mean - L), networks / self.widths)
        return Expansion(L, b, _at_infinity(self.widths, spread, networks), mean, spread)

    @cached_property
    def _valid(self) -> NDArray[np.bool_]:
        """(sequence, width, member): those that converge at all values."""
        return _converged(self.losses)

    @cached_property
    def _origin(self) -> Array:
        """(sequence, width, value): the mean over all networks, from which moments are taken."""
        valid = self._valid[..., None]
        return np.asarray(np.where(valid, self.losses, 0.0).sum(2) / valid.sum(2))

    @cached_property
    def _moments(self) -> tuple[Array, Array, Array]:
        """Number of networks, sums of their losses and of products of these, of every sequence, width and group."""
        valid = self._valid.astype(float)
        off = np.where(self._valid[..., None], self.losses - self._origin[:, :, None], 0.0)
        parts = [np.arange(valid.shape[2]) % GROUPS == group for group in range(GROUPS)]
        count = np.stack([valid[:, :, part].sum(2) for part in parts], axis=2)
        first = np.stack([off[:, :, part].sum(2) for part in parts], axis=2)
        second = np.stack([off[:, :, part].swapaxes(2, 3) @ off[:, :, part] for part in parts], axis=2)
        return count, first, second


def _converged(losses: Array) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(losses).all(-1))


def _at_infinity(widths: Array, values: Array, weights: Array) -> Array:
    """The constant of a + a' / N through values (width, ...), by least squares; of one width its value."""
    terms = np.stack([np.ones_like(widths), 1 / widths], axis=1)[:, : len(widths)]
    root = np.sqrt(weights)[:, None]
    constant = np.linalg.pinv(root * terms)[0] * root[:, 0]
    return np.tensordot(constant, values, 1)


def samples_along(
    problem: Problem,
    over: str,
    at: Array,
    of: str,
    widths: Sequence[int],
    settings: Mapping[str, Any],
    members: int,
) -> Samples:
    """Of one problem over the values `at` of a field, with these settings of `dmft.fluctuations`."""
    particles, scrambles, seed, tolerance, memory_limit = check_numerics(
        *(settings[name] for name in ("particles", "scrambles", "seed", "tolerance", "memory_limit"))
    )
    steps, where = schema.saved_steps(problem, settings["save_steps"]), find_devices(settings["device"])
    each, exact, progress = vary(problem, **{over: at.tolist()}), problem.linear, settings["progress"]
    runs = [
        Run(
            one,
            steps,
            None if exact else particles,
            TOLERANCES[0] if exact else tolerance,
            one.training.observe == "all",
            observables=(),
            devices=where,
            entries="float32",
        )
        for one in each
    ]
    with precision("float64", where[0]), effort.for_work(len(each) * runs[0].work(scrambles)):
        limit, done = limits_along(
            runs,
            over,
            at,
            of,
            seed=seed,
            scrambles=1 if exact else scrambles,
            memory_limit=memory_limit,
            progress=progress,
        )
        with progress_bar(len(widths) * len(at) * members, f"networks over {over}", "net", progress) as bar:
            losses = np.array(
                [
                    [_losses(one, width, members, seed, steps, of, where[0], memory_limit, bar) for one in each]
                    for width in widths
                ]
            ).swapaxes(1, 2)
    _require_networks(losses, widths, over)
    attrs = {"mode": "networks", "method": METHOD, "members": members}
    return Samples(limit, losses[None], np.array(widths, float), runs[0], done.directions, attrs)


def _losses(
    problem: Problem,
    width: int,
    members: int,
    seed: int,
    steps: NDArray[np.int64],
    of: str,
    device: jax.Device,
    memory_limit: int | None,
    bar: Bar,
) -> Array:
    """(member,): of the last step; nan of those that diverge."""
    found = []
    settings: dict[str, Any] = {"steps": steps, "observables": (), "two_time": False, "device": device}
    for _, seen in sampled(problem, width, range(members), seed, **settings, memory_limit=memory_limit, whole=True):
        loss, every = schema.of_predictions(problem, seen["prediction"][:, -1])[of], seen["every_loss"]
        found.append(np.where(exploded(every, every[:, :1]).any(1), np.nan, loss))
        bar.update(len(loss))
    return np.concatenate(found)


def _require_networks(losses: Array, widths: Sequence[int], over: str) -> None:
    """DivergenceError where most networks (width, member, value) diverge at one of the values; a warning where some do.

    Groups of networks are to have some of them, each.
    """
    for width, bad in zip(widths, ~_converged(losses), strict=True):
        if not bad.any():
            continue
        said = f"{bad.sum()} of {len(bad)} networks of width {width} diverge at one of the values of {over}"
        if bad.mean() > 0.5:
            raise DivergenceError(f"{said}; leave out the largest.")
        warnings.warn(f"{said} and are left out at all of them.", stacklevel=5)
