"""The best value of a hyperparameter of trained networks: with width, from network to network, and what it costs.

Networks of the same seed index start from the same weights at every value, so that most of their scatter is common to
the values and cancels in differences between them.  Of losses l_e(v) of networks e of width N:

    optimum     where the mean over networks, through a cubic spline on the grid, is lowest: u*_N, of u = log v or v
    scatter     standard deviation over networks of the optimum of each by itself
    regret      loss that the optimum of another width has at this one, above the lowest

Errors are those of bootstraps over networks, each taken or left at all values together.  Of a network whose loss is
lowest at an end of the grid the optimum is not known: it counts in `at_end`, and in no scatter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from comparisons import inputs
from comparisons.results import Variables, dataset
from dmft.errors import SchemaError
from dmft.finite_width import optimum
from dmft.running.host import usual_errors
from dmft.schema.sources import kind_of
from dmft.schema.stacking import value_of
from dmft.schema.validate import restored
from dmft.specs import _check

Array = NDArray[np.float64]
BOOTSTRAPS = 400
FEWEST = 8  # networks of a width


@usual_errors
def transfer(
    nets: Sequence[xr.Dataset] | Mapping[float, xr.Dataset],
    theory: xr.Dataset | None = None,
    *,
    over: str | None = None,
    of: str | None = None,
    step: int | None = None,
    scale: str | None = None,
    bootstraps: int = BOOTSTRAPS,
    seed: int = 0,
) -> xr.Dataset:
    """The best value of a hyperparameter, measured on networks that were trained at several.

    Args:
        nets: ensembles of the same widths, seeds and root seed, one for each value: a list, with the values of the
            field `over` of their problems, or a dictionary by value.
        theory: what `dmft.transfer` predicts of the same problem and values; says `over`, `of`, `step` and `scale`
            where they are not given.
        over: the hyperparameter.
        of: "loss", the default, or "test_loss".
        step: of training; the last recorded one by default.
        scale: "log" (by default, if all values are positive) or "linear".
        bootstraps: resamples of networks, for the errors.
        seed: of these.

    Returns:
        Dataset of the analysis "transfer", with `_se` of what is not counted:

            loss_mean(width, value)                     mean loss (of a test loss: test_loss_mean)
            optimum, scatter, curvature (width)         as above, d^2 / du^2 of the mean loss at the optimum
            regret(source, width)                       sources are the widths and, with the theory, inf: its optimum
            at_end(width), count(width)                 share of networks that are best at an end; networks that count:
                                                        those that diverge at no value
            optimum_limit, loss_limit, optimum_predicted, scatter_predicted, loss_mean_predicted
                                                        with the theory: what it says
            optimum_shift, optimum_z (width)            with it: u*_N off the limit's; v*_N off the predicted one, in
                                                        errors of both

        nan where a mean is lowest at an end of the grid.

    Raises:
        SchemaError, ValueError, TypeError: no ensembles with every network; fewer than three values, or eight networks;
            other widths, seeds or root seeds; problems that differ in more; a theory of another problem, other
            values, another step, or of means over several networks.

    Example:
        >>> rates = dmft.vary(problem, learning_rate=[1.0, 2.0, 4.0])
        >>> ensembles = [finite_nets.train_ensemble(one, widths=[8, 16], seeds=16) for one in rates]
        >>> comparisons.transfer(ensembles, over="learning_rate")["optimum"].dims
        ('width',)
    """
    theory = restored(theory) if isinstance(theory, xr.Dataset) else theory  # selected from several depths
    settings = _settings(theory, over=over, of=of, step=step, scale=scale)
    at, each = _ensembles(nets, settings["over"])
    bootstraps = _check.integer("bootstraps", bootstraps, minimum=2)
    of, scale = settings["of"] or "loss", settings["scale"] or ("log" if at[0] > 0 else "linear")
    if scale not in optimum.SCALES or (scale == "log" and at[0] <= 0):
        raise ValueError(f"scale={scale!r}: choose one of {', '.join(optimum.SCALES)}; values at 0 need 'linear'.")
    for value, one in zip(at, each, strict=True):
        inputs.check_quantities(one, f"the ensemble at {settings['over']}={value:g}", [of])
    step = each[0]["step"].values[-1] if settings["step"] is None else settings["step"]
    if any(step not in one["step"].values for one in each):
        raise ValueError(f"step={step} is not among the recorded ones of all ensembles; name it in save_steps.")
    order = np.argsort(each[0]["width"].values)
    widths = each[0]["width"].values[order]
    losses = np.stack([one[of].sel(step=step).transpose("width", "seed").values[order] for one in each], axis=-1)

    predicted = None if theory is None else _predicted(theory, at, widths, of, scale)
    _require_same(theory, each, settings["over"], int(step))
    u, rng = optimum.coordinate(at, scale), np.random.default_rng(seed)
    rows = [
        _resampled(u, loss[np.isfinite(loss).all(-1)], bootstraps, rng, width)
        for width, loss in zip(widths, losses, strict=True)
    ]
    curves, places = np.stack([row[0] for row in rows], axis=1), np.stack([row[1] for row in rows], axis=1)
    variables = _found(u, curves, places, of, scale, predicted)
    variables |= {
        "at_end": (("width",), np.array([row[2] for row in rows])),
        "count": (("width",), np.array([row[3] for row in rows])),
    }
    sources = np.array([*widths, *[np.inf] * (theory is not None)], float)
    coords = {"width": widths, "value": at, "source": sources}
    return dataset("transfer", variables, coords, each[0], **settings | {"of": of, "scale": scale, "step": int(step)})


def _settings(theory: xr.Dataset | None, **given: Any) -> dict[str, Any]:
    """What is given, or what the theory says."""
    if theory is not None and (not isinstance(theory, xr.Dataset) or kind_of(theory) != "predicted_transfer"):
        raise SchemaError(f"theory={type(theory).__name__}: give what dmft.transfer returns.")
    known = {} if theory is None else theory.attrs
    return {name: known.get(name) if value is None else value for name, value in given.items()}


def _ensembles(nets: Any, over: str | None) -> tuple[Array, list[xr.Dataset]]:
    """Values, ascending, and the ensemble of each."""
    if isinstance(nets, xr.Dataset) or not isinstance(nets, (Sequence, Mapping)):
        raise TypeError(f"nets={type(nets).__name__}: give a list of ensembles, or a dictionary of them by value.")
    if over is None:
        raise TypeError("over is missing: name the hyperparameter in which the ensembles differ.")
    checked = [inputs.check_networks(one, members="the optimum of each network") for one in _listed(nets)]
    labels = list(nets) if isinstance(nets, Mapping) else [value_of(one, over) for one in checked]
    if not all(isinstance(label, (int, float, np.number)) for label in labels):
        raise ValueError(f"the ensembles have {over}={labels}, not numbers; give a dictionary of ensembles by value.")
    if len(set(labels)) < max(len(labels), optimum.FEWEST):
        raise ValueError(f"the ensembles have {over}={labels}; give at least {optimum.FEWEST} different values.")
    first, *others = checked
    for label, one in zip(labels[1:], others, strict=True):
        for name in ("width", "seed"):
            if not np.array_equal(one[name].values, first[name].values):
                raise ValueError(f"ensembles of {over}={labels[0]} and {label} have other labels along {name}.")
        if one.attrs["seed"] != first.attrs["seed"]:
            raise ValueError(
                f"the root seeds of {over}={labels[0]} and {label}, {first.attrs['seed']} and {one.attrs['seed']}, "
                "differ; train all with the same seed, so that networks begin with the same weights."
            )
    order = np.argsort(np.array(labels, float))
    return np.array(labels, float)[order], [checked[i] for i in order]


def _listed(nets: Sequence[xr.Dataset] | Mapping[float, xr.Dataset]) -> list[xr.Dataset]:
    return list(nets.values() if isinstance(nets, Mapping) else nets)


def _require_same(theory: xr.Dataset | None, nets: Sequence[xr.Dataset], over: str, step: int) -> None:
    """ValueError for results that differ in more than one hyperparameter."""
    alike = {_besides(one, over) for one in nets}
    if len(alike) > 1 and _is_field(over, nets[0]):  # not a name that the caller has given
        raise ValueError(f"the ensembles are of problems that differ in more than {over}; vary that alone.")
    if theory is None:
        return
    if theory.attrs["over"] != over or _besides(theory, over) not in alike:
        raise ValueError(
            f"the theory is of another problem than the networks, or over {theory.attrs['over']}, not {over}; give "
            "dmft.transfer the problem that the networks are trained on."
        )
    if theory.attrs["step"] != step:
        raise ValueError(f"the theory is of step {theory.attrs['step']}, the networks of {step}; give the same step=.")
    if theory.attrs.get("orders", 1) != 1:
        raise ValueError(
            f"the theory is of means over orders={theory.attrs['orders']} sequences of batches, the networks of one; "
            "take dmft.transfer(..., orders=1)."
        )
    if theory.attrs["seeds"] != 1:
        raise ValueError(
            f"the theory is of means over seeds={theory.attrs['seeds']} networks, and optima of single ones are "
            "measured; take dmft.transfer(..., seeds=1)."
        )


def _besides(result: xr.Dataset, over: str) -> str:
    """The description of a problem without one field of its own, of its network or its training."""
    problem = json.loads(result.attrs["problem"])
    for part in (problem, problem["network"], problem["training"]):
        part.pop(over, None)
    return json.dumps(problem, sort_keys=True)


def _is_field(name: str, result: xr.Dataset) -> bool:
    try:
        value_of(result, name)
    except ValueError:
        return False
    return True


def _resampled(
    u: Array, losses: Array, bootstraps: int, rng: np.random.Generator, width: int
) -> tuple[Array, Array, float, int]:
    """Mean curves (sample, value) and scatters (sample,) of all networks (network, value), then of bootstraps; the
    share whose optimum is not known; how many there are."""
    count = len(losses)
    if count < FEWEST:
        raise ValueError(
            f"{count} networks of width {width} converge at all values; train at least {FEWEST} that do, or leave out "
            "the largest values."
        )
    weights = np.concatenate([np.ones((1, count)), rng.multinomial(count, np.full(count, 1 / count), bootstraps)])
    each = optimum.lowest(u, losses).at
    inside = np.isfinite(each)
    counted, known = weights[:, inside], np.where(inside, each, 0.0)[inside]
    total = counted.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = counted @ known / total
        square = ((known - mean[:, None]) ** 2 * counted).sum(1) / (total - 1)
    return weights @ losses / count, np.sqrt(square), float(1 - inside.mean()), count


def _predicted(theory: xr.Dataset, at: Array, widths: NDArray[Any], of: str, scale: str) -> xr.Dataset:
    """What the theory says of these widths."""
    if theory["value"].shape != at.shape or not np.allclose(theory["value"], at):
        raise ValueError(f"the theory has the values {theory['value'].values}, the networks {at}; use the same ones.")
    if theory.attrs["of"] != of:
        raise ValueError(f"the theory is of {theory.attrs['of']}, the networks of {of}; give the same.")
    if not np.isin(widths, theory["width"]).all() or theory.attrs["scale"] != scale:
        raise ValueError(
            f"the theory has the widths {theory['width'].values} on a scale {theory.attrs['scale']}, the networks "
            f"{widths} on {scale}; name all widths in dmft.transfer(..., widths=...)."
        )
    return theory.sel(width=widths)


def _found(u: Array, curves: Array, scatters: Array, of: str, scale: str, theory: xr.Dataset | None) -> Variables:
    """Of curves (sample, width, value) and scatters (sample, width), the first sample that of all networks."""
    best = optimum.lowest(u, curves)
    here = optimum.value_at(best.at, scale)
    sources = best.at
    if theory is not None:
        limit = optimum.coordinate(theory["optimum_limit"].values, scale)
        sources = np.concatenate([sources, np.full((len(sources), 1), limit)], axis=1)
    regret = np.stack([optimum.regrets(u, curve, at) for curve, at in zip(curves, sources, strict=True)])
    found: Variables = {}
    for name, dims, samples in (
        (f"{of}_mean", ("width", "value"), curves),
        ("optimum", ("width",), here),
        ("scatter", ("width",), scatters),
        ("curvature", ("width",), best.curvature),
        ("regret", ("source", "width"), regret),
    ):
        found |= {name: (dims, samples[0]), f"{name}_se": (dims, samples[1:].std(axis=0, ddof=1))}
    if theory is None:
        return found
    for name in ("optimum", "scatter", f"{of}_mean"):
        for end in ("", "_se"):
            found[f"{name}_predicted{end}"] = found[name][0], theory[f"{name}{end}"].values
    error = np.hypot(found["optimum_se"][1], theory["optimum_se"].values)
    limit_se = theory["optimum_limit_se"].values / (theory["optimum_limit"].values if scale == "log" else 1.0)
    return found | {
        f"{of}_limit": (("value",), theory[f"{of}_limit"].values),
        f"{of}_limit_se": (("value",), theory[f"{of}_limit_se"].values),
        "optimum_limit": ((), theory["optimum_limit"].values),
        "optimum_limit_se": ((), theory["optimum_limit_se"].values),
        "optimum_shift": (("width",), best.at[0] - limit),
        "optimum_shift_se": (("width",), np.hypot(best.at[1:].std(axis=0, ddof=1), limit_se)),
        "optimum_z": (("width",), (here[0] - theory["optimum"].values) / error),
    }
