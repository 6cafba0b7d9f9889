"""What second runs say of a result of `dmft.solve`: how far particles that are few are from the limit, what directions
that are forgotten change, and errors by the finite steps of a flow; and what scrambles say of their own bias.

The noise of two estimates is subtracted from their mean square distance; the attribute `<name>_noise` says its size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft import schema
from dmft.drivers.repetitions import repetitions
from dmft.drivers.run import Run
from dmft.drivers.values import values_of
from dmft.errors import DivergenceError, NotConvergedError
from dmft.running.estimates import Estimates
from dmft.running.moments import Arrays, moments_of
from dmft.running.progress import Bar
from dmft.specs import GradientFlow

HALVED = 2  # scrambles with half of the particles, where these are few, or of the directions that are kept
STILL = 1e-12  # of the smallest step, a step that changes nothing


def in_law(
    run: Run, seed: int, observables: tuple[str, ...], bar: Bar, done: Estimates, limit: int | None
) -> dict[str, Any]:
    """Attributes of a result with few particles: what it is in law, and how far it is from the limit
    (`dmft.drivers.solve`)."""
    attrs: dict[str, Any] = {"in_law": f"networks of width {run.particles}"}
    if (name := _compared(done.moments.mean)) is None:
        return attrs
    # passes for the Hessian draw on pseudo-random normals, which are not doubled
    half = _beside(replace(run, doubled=True, curvature=()), seed, observables, bar, done, limit)
    if half is None:
        return attrs | _distance("distance_from_limit", name, np.inf, np.inf)
    found, theirs = done.moments.mean_and_error(), moments_of(half).mean_and_error()
    noise = float(np.mean(found[f"{name}_se"] ** 2 + theirs[f"{name}_se"] ** 2))
    return attrs | _distance("distance_from_limit", name, float(np.mean((theirs[name] - found[name]) ** 2)), noise)


def forgotten(
    run: Run,
    lost: NDArray[np.float64],
    seed: int,
    observables: tuple[str, ...],
    bar: Bar,
    done: Estimates,
    limit: int | None,
    first: list[Arrays],
) -> dict[str, Any]:
    """Attributes of a result whose matrices forget (`dmft.engine.forgetting`): what kernels lack at each step, the most
    of all matrices and sides; how far half of the directions are from it, in the same scrambles, `first`, which are
    trained again if a checkpoint has no more than their means."""
    assert run.kept is not None
    attrs: dict[str, Any] = {"kept": run.kept, "kernels_lost": lost.max(axis=(1, 2)).tolist()}
    attrs |= _of_scatter(run, observables, done)
    name = _compared(done.moments.mean)
    halves = _beside(run.keeping(run.kept // 2), seed, observables, bar, done, limit)
    wholes = first if len(first) == HALVED else _beside(run, seed, observables, bar, done, limit)
    if halves is None or wholes is None:
        return attrs | ({} if name is None else _distance("truncation_error", name, np.inf, np.inf))
    changes = [{q: half[q] - whole[q] for q in half} for half, whole in zip(halves, wholes, strict=True)]
    change = moments_of(changes).mean_and_error()
    if name is not None:
        square, noise = (float(np.mean(change[f"{name}{end}"] ** 2)) for end in ("", "_se"))
        attrs |= _distance("truncation_error", name, square, noise)
    for q, mean in changes[0].items():
        if mean.ndim == 1:
            attrs |= {f"truncation_{q}{end}": change[f"{q}{end}"].tolist() for end in ("", "_se")}
    return attrs


def _of_scatter(run: Run, observables: tuple[str, ...], done: Estimates) -> dict[str, Any]:
    """What losses and accuracies have by the scatter of predictions of S particles, which is that of networks of S
    neurons: their means over n scrambles less those of the mean prediction, in which 1 / n of it is left.  Without bias
    of a squared error, to leading order in the scatter of others; an estimate of n - 1 degrees of freedom."""
    mean, n = done.moments.mean, done.moments.count
    if "prediction" not in mean:
        return {}
    of_mean = schema.of_predictions(run.problem, mean["prediction"], observables)
    return {f"noise_{q}": ((mean[q] - found) * (n / (n - 1))).tolist() for q, found in of_mean.items()}


def step_error(run: Run, prediction: NDArray[np.float64], bar: Bar, memory_limit: int | None) -> float:
    """The largest error of predictions (recorded step, ...) of a flow by its finite steps.

    Steps two by two are one step of a second run, of as many steps (those left over stand still), so that nothing is
    compiled anew; an odd last one stays as it is.
    """
    training = run.problem.training
    assert isinstance(training, GradientFlow)
    sizes = np.broadcast_to(np.asarray(training.step_size), training.steps)
    pairs = np.add.reduceat(sizes[: run.last], np.arange(0, run.last, 2))
    still = np.full(training.steps - len(pairs), STILL * pairs.min())
    coarse = replace(training, step_size=tuple(np.concatenate([pairs, still])))
    other = replace(run, problem=replace(run.problem, training=coarse), curvature=())
    try:
        (trained,) = repetitions(other, 0, 1, bar, memory_limit=memory_limit)
    except DivergenceError:
        return float("inf")
    common = np.flatnonzero((run.steps % 2 == 0) | (run.steps == run.last))
    seen = np.asarray(trained.history.vitals.prediction)[-(-run.steps[common] // 2)]
    return float(abs(seen - prediction[common]).max() / (2**training.stepping.order - 1))


def _beside(
    run: Run, seed: int, observables: tuple[str, ...], bar: Bar, done: Estimates, limit: int | None
) -> list[Arrays] | None:
    """What another run finds in the compiled code of `done`, the first scrambles of its seed; None if it fails."""
    others, found = Estimates(capacity=done.capacity), []
    bar.total = bar.n + HALVED * (run.last + 1)
    try:
        for trained in repetitions(run, seed, HALVED, bar, memory_limit=limit, done=others, beside=True):
            found.append(values_of(run, trained, observables))
            del trained
    except (DivergenceError, NotConvergedError):
        return None
    return found


def _compared(found: Arrays) -> str | None:
    """The first variable of the schema, which says how far two results are from each other."""
    names = (name for name in schema.quantities() if name in found)
    return next((name for name in names if not schema.need([name], schema.HESSIAN)), None)


def _distance(attribute: str, name: str, square: float, noise: float) -> dict[str, Any]:
    """Attributes that say how far a variable is from what it is compared with: the root of a mean square over entries,
    without the share of the noise, a variance, whose size comes with it; infinite if that has failed."""
    return {
        attribute: float(np.sqrt(max(square - noise, 0.0))) if np.isfinite(square) else np.inf,
        f"{attribute}_noise": float(np.sqrt(noise)),
        f"{attribute}_of": name,
    }


def said(in_law: dict[str, Any]) -> str:
    """The attributes of `in_law` as a sentence."""
    if "distance_from_limit" not in in_law:
        return f"This is, in law, the result of {in_law['in_law']}."
    distance, noise = in_law["distance_from_limit"], in_law["distance_from_limit_noise"]
    by = f"about {distance:.2g} +- {noise:.1g}" if distance else f"less than the noise, {noise:.1g}"
    return (
        f"This is, in law, the result of {in_law['in_law']}, whose {in_law['distance_from_limit_of']} differs from the "
        f"limit's {f'by {by} (root mean square)' if np.isfinite(distance) else 'much: half as many particles diverge'}."
    )
