"""What goes on in representations after training errors have vanished: overtraining, and the reversal of labels.

Of predictions f and the kernel Phi of the last layer, at every recorded step:

    train_error        share of training samples with y f <= 0          margin     min over them of y f
    hit_rate           share of fresh targets (test samples, y = +1) with f > 0
    probe_accuracy     share of probes (test samples, y = -1) of an overlap with f < 0
    fisher             (mu_T - mu_P)^2 / (s_T^2 + s_P^2) of f, over targets T and probes P
    cosine             mean of the centred kernel between targets and nontargets, over that of its diagonal
    feature_alignment  y Phi y / (|Phi| |y|^2)
    feature_margin     largest margin of a linear classifier (without bias) of the features, over their size,
                       max_w min_mu y_mu w . phi_mu / (|w| rms |phi|), by its dual: the shortest vector in the convex
                       hull of y_mu phi_mu, which non-negative least squares find
    relearning_steps   gradient steps on flipped labels to an accuracy of `level`, of a readout that starts at zero on
                       features as they are at that step: f <- f + (eta / P) Phi Delta

Reversal with the readout kept is training itself: `dmft.reversal_problem`, of whose results `reversal` reads the steps.

Source: T. Kumar, B. Bordelon, C. Pehlevan, V. Murthy, S. Gershman, arXiv:2411.03541; definitions here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import nnls

from comparisons.kernels import alignment, centred
from comparisons.results import Variables, dataset
from dmft.specs import _check, loss

Array = NDArray[np.float64]
LEVEL = 0.95  # accuracy at which flipped labels count as learned
MOST_STEPS = 20_000
KERNEL = "feature_kernel"


def overtraining(
    result: xr.Dataset, *, learning_rate: float | None = None, level: float = LEVEL, margins: bool = True
) -> xr.Dataset:
    """The quantities above, of the limit or of networks.

    Args:
        result: of `dmft.solve` or `finite_nets.train_ensemble` on targets -1 and +1, with prediction and, for what
            follows from kernels, feature_kernel.
        learning_rate: of relearning; that of training by default.
        level: accuracy at which flipped labels count as learned.
        margins: whether to find feature_margin, which costs some P^3 operations for each network and step.

    Returns:
        Dataset of the analysis "overtraining": variables (..., step), probe_accuracy (..., overlap, step); the overlaps
        are those that the task names (`dmft.odour_task`), else all probes have the overlap nan.  relearning_steps is
        nan where `MOST_STEPS` do not do.

    Raises:
        ValueError: no predictions, targets that are not -1 and +1, no training samples of both; results of a
            `dmft.reversal_problem`.

    Example:
        >>> found = comparisons.overtraining(theory)
        >>> found["train_error"].values, found["relearning_steps"].dims
        (array([1., 0., 0.]), ('step',))
    """
    f, y, train = _predictions(result)
    problem = json.loads(result.attrs["problem"])
    if _reversed_after(problem) is not None:
        raise ValueError(
            "the result is of a reversal, which has every training sample with both labels; give comparisons.reversal "
            "this one, and comparisons.overtraining a result of the problem before its labels were flipped."
        )
    rate = problem["training"].get("learning_rate") if learning_rate is None else learning_rate
    rate = _check.positive("learning_rate", rate, hint="Give the one of relearning.")
    lead = tuple(str(dim) for dim in result["prediction"].dims if dim not in ("step", "sample"))
    signed = y * f
    found: dict[str, Array] = {
        "train_error": (~(signed[..., train] > 0)).mean(-1),  # what is no number is no success
        "margin": signed[..., train].min(-1),
    }
    coords: dict[str, Any] = {}
    variables: Variables = {}
    targets, probes = ~train & (y > 0), ~train & (y < 0)
    if targets.any() and probes.any():
        T, P = f[..., targets], f[..., probes]
        found |= {
            "hit_rate": (T > 0).mean(-1),
            "fisher": (T.mean(-1) - P.mean(-1)) ** 2 / (T.var(-1) + P.var(-1) + np.finfo(float).tiny),
        }
        overlap = _overlaps(result, problem)
        each = np.unique(overlap[probes])
        right = np.stack([(f[..., probes & _same(overlap, m)] < 0).mean(-1) for m in each], axis=-2)
        variables["probe_accuracy"] = ((*lead, "overlap", "step"), right)
        coords["overlap"] = each
    if KERNEL in result:
        phi = result[KERNEL].isel(layer=-1).transpose(*lead, "step", "sample", "sample_2").values
        phi = np.asarray(phi, np.float64)[..., train, :][..., train]
        found |= _of_kernels(phi, y[train], rate=rate, level=level, name=problem["loss"], margins=margins)
    variables |= {name: ((*lead, "step"), value) for name, value in found.items()}
    return dataset("overtraining", variables, coords, result, learning_rate=rate, level=level)


def reversal(result: xr.Dataset, *, level: float = LEVEL) -> xr.Dataset:
    """How many steps after the reversal the flipped labels are learned, of results of a `dmft.reversal_problem`.

    Args:
        result: of `dmft.solve` or `finite_nets.train_ensemble`, with prediction; its recorded steps are the resolution.
        level: accuracy at which they count as learned.

    Returns:
        Dataset of the analysis "reversal": reversal_steps (...), nan where they are not learned; accuracy (..., step)
        on flipped labels, of the steps from the reversal on.

    Raises:
        ValueError: results of another problem.

    Example:
        >>> flipped = dmft.reversal_problem(problem, after=2, steps=20)
        >>> found = comparisons.reversal(dmft.solve(flipped, particles=256, scrambles=2))
        >>> bool(found["reversal_steps"] > 0), found["accuracy"].sizes["step"]
        (True, 21)
    """
    after = _reversed_after(json.loads(result.attrs["problem"]))
    if after is None:
        raise ValueError("the result is not of a reversal; make its problem by dmft.reversal_problem(problem, ...).")
    later = result.sel(step=result["step"] >= after)
    f, y, train = _predictions(later)
    flipped = np.flatnonzero(train)[train.sum() // 2 :]
    accuracy = (y[flipped] * f[..., flipped] > 0).mean(-1)
    learned = accuracy >= level
    steps = np.where(learned.any(-1), later["step"].values[learned.argmax(-1)] - after, np.nan)
    lead = tuple(str(dim) for dim in later["prediction"].dims if dim not in ("step", "sample"))
    variables: Variables = {"reversal_steps": (lead, steps), "accuracy": ((*lead, "step"), accuracy)}
    return dataset("reversal", variables, {}, later, level=level, after=after)


def _predictions(result: xr.Dataset) -> tuple[Array, Array, NDArray[np.bool_]]:
    """f (..., step, sample), y (sample,), and which samples are trained on."""
    if not isinstance(result, xr.Dataset) or "prediction" not in result or "output" in result.dims:
        raise ValueError("predictions of one output are needed; give a result of solve or train_ensemble with them.")
    y, train = result["target"].values, result["split"].values == "train"
    if set(np.unique(y[train])) != {-1.0, 1.0}:
        raise ValueError(f"targets of training samples are {np.unique(y[train])[:5]}; they must be -1 and +1, both.")
    ordered = result["prediction"].transpose(..., "step", "sample")
    return np.asarray(ordered.values, np.float64), y, train


def _reversed_after(problem: dict[str, Any]) -> int | None:
    """The step after which labels are flipped."""
    found: int | None = problem["task"].get("provenance", {}).get("reversed_after")
    return found


def _overlaps(result: xr.Dataset, problem: dict[str, Any]) -> Array:
    """Of the samples of a result, nan where the task names none."""
    named = problem["task"].get("provenance", {}).get("overlap")
    samples = result["sample"].values
    return np.full(len(samples), np.nan) if named is None else np.asarray(named, float)[samples]


def _same(overlap: Array, m: float) -> NDArray[np.bool_]:
    return np.isnan(overlap) if np.isnan(m) else overlap == m


def _of_kernels(phi: Array, y: Array, *, rate: float, level: float, name: str, margins: bool) -> dict[str, Array]:
    """What follows from kernels (..., sample, sample_2) of training samples."""
    c = centred(phi)
    across = c[..., y > 0, :][..., y < 0].mean((-2, -1))
    found = {
        "cosine": across / np.einsum("...aa->...a", c).mean(-1),
        "feature_alignment": alignment(phi, np.outer(y, y)),
        "relearning_steps": _each(phi, lambda K: _relearned(K, -y, rate, level, name)),
    }
    if margins:
        found["feature_margin"] = _each(phi, lambda K: _margin(K, y))
    return found


def _each(kernels: Array, number: Callable[[Array], float]) -> Array:
    """A number of each of kernels (..., sample, sample_2); nan of those that are."""
    flat = kernels.reshape(-1, *kernels.shape[-2:])
    found = np.array([number(K) if np.isfinite(K).all() else np.nan for K in flat])
    return found.reshape(kernels.shape[:-2])


def _margin(K: Array, y: Array) -> float:
    """The distance from 0 of the convex hull of y_mu phi_mu, over the root mean square of |phi|."""
    size = float(np.trace(K)) / len(y)
    values, vectors = np.linalg.eigh(K * np.outer(y, y) / size)
    root = np.sqrt(values.clip(min=0.0))[:, None] * vectors.T
    # |root a|^2 + (1 - sum a)^2 over a >= 0 is least at (1 + m^2)^-1 times the weights of the shortest vector, |.| = m
    a, _ = nnls(np.vstack([root, np.ones(len(y))]), np.concatenate([np.zeros(len(y)), [1.0]]), maxiter=50 * len(y))
    return float(np.linalg.norm(root @ a) / a.sum())


def _relearned(K: Array, y: Array, rate: float, level: float, name: str) -> float:
    """Steps of the readout alone, from zero, to the accuracy `level` on labels y (sample,)."""
    f = np.zeros(len(y))
    for step in range(MOST_STEPS + 1):
        if (y * f > 0).mean() >= level:
            return float(step)
        f = f + rate / len(y) * (K @ loss.descent(np, name, f[:, None], y[:, None])[:, 0])
    return np.nan
