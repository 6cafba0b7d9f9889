"""Spectra of the NTK of networks and of the limit: the mechanism behind the bias of narrower width.

`spectra`: K the NTK of the training samples at a step, K v_k = P lambda_k v_k, the largest first (gradient flow relaxes
a mode with the rate eta lambda_k), of every network, of the mean kernel over networks, and of the limit:

    eigenvalue      lambda_k
    power           share of |y|^2 in the modes 1 .. k
    overlap         (u_j . v_k)^2, u_j of the mean kernel of networks, v_k of the limit
    angle           principal angles between the spaces of the first m modes of both, in degrees
    deformation     root mean square sine of these angles: of one network's space, and of that of the mean kernel
    mode_loss       of mode k of the limit, (v_k . (f - y))^2 / (2 P), which add up to the loss: of a network, of the
                    infinite ensemble (without variance), and of the limit

`after_kernel`: kernel regression with the NTK at a step, from the training targets to the test samples (Long 2021;
Atanasov et al. 2022): the test loss of the predictor of every network's kernel, of the mean kernel, of the limit's, and
the distance of their predictions from those of the limit's kernel.

Eigenvalues, and losses, of the mean kernel are free of their bias of order 1 / (number of networks) (jackknife); what
has bounds (power, overlap, angle) is as it comes out.  Errors of what follows from the limit's kernel are those of
entries that err independently.  From squares of deformations and distances the noise of networks is taken off by the
jackknife, and that of the limit as of such entries: in fact they err together, and what was taken off stands in the
error once more.  (Measured, 30 images: a quarter to six tenths of it is taken off for deformations, one to two
times it for distances.)  It is common to all widths; more particles lower it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from comparisons import estimators, inputs, kernels
from comparisons.results import Variables, dataset, pair, stacked
from comparisons.samples import Members, jackknife, mean_of, members, pseudo_values, require_enough, samples
from dmft.running.host import usual_errors
from dmft.schema.order import NETWORKS, in_any_order
from dmft.specs import _check
from dmft.specs.loss import LOSSES

Array = NDArray[np.float64]
Function = Callable[[Array], Array]


@usual_errors
@in_any_order(theory=("limit",), nets=NETWORKS)
def spectra(
    theory: xr.Dataset, nets: xr.Dataset, *, modes: int | None = None, subspace: int | None = None
) -> xr.Dataset:
    """Eigenvalues, power and eigenfunctions of the NTK at every width and step, beside those of the limit.

    Args:
        theory: the limit of the same problem; it and the networks may be given in any order.
        nets: of kind "ensemble", with the NTK, at least eight networks a width.
        modes: how many, the largest first; by default at most twelve.
        subspace: m of the principal angles and the deformation, at most `modes`; by default the smallest multiple of
            the outputs above two (eigenvalues at initialisation are degenerate as many times).

    Returns:
        Dataset over mode = 1, 2, ..., each with `_se`: eigenvalue, power (width, step, mode), means over networks;
        eigenvalue_of_mean, power_of_mean; eigenvalue_limit, power_limit (step, mode); overlap(width, step, mode,
        mode_2), angle(width, step, angle_index); deformation and deformation_of_mean (width, step); for the squared
        loss, where predictions are there, mode_loss and mode_loss_infinite (width, step, mode) and
        mode_loss_limit(step, mode).

    Raises:
        SchemaError: inputs of another form.
        ValueError, TypeError: moments; no NTK, no training samples; more modes than training events; different
            problems.
    """
    nets, theory, counts = _checked(nets, theory, "spectra of networks")
    train, y = _events(theory, "train")
    most, count = len(train), int((theory["split"] == "train").sum())
    modes = min(12, most) if modes is None else _check.integer("modes", modes, minimum=1)
    outputs = theory.sizes.get("output", 1)
    subspace = -(-3 // outputs) * outputs if subspace is None else _check.integer("subspace", subspace, minimum=1)
    subspace = min(subspace, modes)
    if modes > most:
        raise ValueError(f"modes={modes}, but the NTK of the training samples has {most}; give at most that.")
    limit, limit_se = (_of(train, kernels.by_event(theory[f"ntk{end}"])) for end in ("", "_se"))
    basis = kernels.modes(limit)[1][..., :modes]
    parts = {"eigenvalue": (modes,), "power": (modes,), "overlap": (modes, modes), "angle": (subspace,)}
    ends = np.cumsum([np.prod(shape) for shape in parts.values()])

    def found(K: Array) -> Array:
        """All parts of the spectrum of K, (..., number)."""
        values, vectors = kernels.modes(K)
        cosines = np.einsum("...ej,...ek->...jk", vectors[..., :modes], basis)
        own = np.linalg.svd(cosines[..., :subspace, :subspace], compute_uv=False)
        angle = np.degrees(np.arccos(np.clip(own, -1.0, 1.0)))
        overlap = (cosines**2).reshape(*cosines.shape[:-2], -1)
        power = kernels.power(vectors, y)[..., :modes]
        return np.concatenate([values[..., :modes] / count, power, overlap, angle], axis=-1)

    def named(estimate: tuple[Any, Any]) -> dict[str, tuple[Any, Any]]:
        """Its parts (..., mode, ...) by name, and their errors."""
        value, se = (np.split(np.asarray(each), ends[:-1], axis=-1) for each in estimate)
        return {
            name: (v.reshape(*v.shape[:-1], *shape), e.reshape(*v.shape[:-1], *shape))
            for (name, shape), v, e in zip(parts.items(), value, se, strict=True)
        }

    ensembles = [Members(_of(train, _kernels(nets, i))) for i in range(len(counts))]
    networks = named(stacked([Members(found(x.x)).mean() for x in ensembles]))
    without_bias, errors = stacked([_of_mean(found, x) for x in ensembles])
    unbiased = named((without_bias, errors))
    plain = named((np.stack([found(x.x.mean(axis=0)) for x in ensembles]), errors))
    of_limit = named((found(limit), kernels.noise_of(found, limit, limit_se)))
    each, limit_dims = ("width", "step", "mode"), ("step", "mode")
    variables: Variables = {}
    for name, best in (("eigenvalue", unbiased), ("power", plain)):
        variables |= pair(name, each, networks[name])
        variables |= pair(f"{name}_of_mean", each, best[name])
        variables |= pair(f"{name}_limit", limit_dims, of_limit[name])
    variables |= pair("overlap", (*each, "mode_2"), plain["overlap"])
    variables |= pair("angle", ("width", "step", "angle_index"), plain["angle"])

    def projector(K: Array) -> Array:
        """(..., entry), in units in which the distance of two is the root mean square sine."""
        P = kernels.projector(K, subspace) / np.sqrt(2 * subspace)
        return np.asarray(P.reshape(*P.shape[:-2], -1))

    variables |= _off_the_limit("deformation", projector, ensembles, limit, limit_se)
    if LOSSES[json.loads(nets.attrs["problem"])["loss"]].quadratic and "prediction" in nets and "prediction" in theory:
        variables |= _mode_losses(nets, theory, train, y, basis)
    index = np.arange(1, modes + 1)
    coords = {"mode": index, "mode_2": index, "angle_index": np.arange(1, subspace + 1)}
    return dataset("spectra", variables, coords, nets, theory, seeds=counts, subspace=subspace)


def _mode_losses(nets: xr.Dataset, theory: xr.Dataset, train: NDArray[np.intp], y: Array, basis: Array) -> Variables:
    def projected(f: Array) -> Array:
        """(..., step, mode) of predictions (..., step, sample[, output])."""
        events = f.reshape(*f.shape[: f.ndim - len(theory["prediction"].dims) + 1], -1)[..., train]
        return np.asarray(np.einsum("...te,tek->...tk", events - y, basis))

    scale = 1 / (2 * int((theory["split"] == "train").sum()))
    # of residuals: their variance is that of predictions
    x = [Members(projected(members(nets, "prediction", i))) for i in range(nets.sizes["width"])]
    limit = projected(theory["prediction"].values)
    spread = theory["prediction_se"].values.reshape(len(basis), -1)[:, train]
    limit_se = np.sqrt(np.einsum("tek,te->tk", basis**2, spread**2))
    single = [jackknife(lambda m, v, n: scale * (m**2 + v * (1 - 1 / n)), one) for one in x]
    infinite = [jackknife(lambda m, v, n: scale * (m**2 - v / n), one) for one in x]
    each = ("width", "step", "mode")
    return (
        pair("mode_loss", each, stacked(single))
        | pair("mode_loss_infinite", each, stacked(infinite))
        | pair("mode_loss_limit", ("step", "mode"), (scale * limit**2, 2 * scale * abs(limit) * limit_se))
    )


@usual_errors
@in_any_order(theory=("limit",), nets=NETWORKS)
def after_kernel(theory: xr.Dataset, nets: xr.Dataset, *, ridge: float = 1e-6) -> xr.Dataset:
    """Test loss of regression with the NTK of networks of every width, at every step, beside that of the limit.

    Args:
        theory: the limit of the same problem; it and the networks may be given in any order.
        nets: of kind "ensemble", with the NTK of training and test samples, at least eight networks a width.
        ridge: added to the diagonal of the kernel of training samples, relative to its mean.

    Returns:
        Dataset, each with `_se`: test_loss(width, step), squared loss of the predictor of one network's kernel, mean
        over networks; test_loss_of_mean, of the mean kernel; test_loss_limit(step); distance and distance_of_mean, root
        mean square of their predictions off those of the limit's kernel, over test samples (0 where its unbiased square
        is negative); network_test_loss(width,
        step) and network_test_loss_limit(step), of the networks themselves, for the squared loss.

    Raises:
        SchemaError: inputs of another form.
        ValueError: moments; no NTK; no training or no test samples; different problems; ridge not positive.

    Source: Long 2021; Atanasov, Bordelon & Pehlevan 2022 (after-kernel); Vyas et al. 2023 (across widths).
    """
    nets, theory, counts = _checked(nets, theory, "the after-kernel")
    ridge = _check.positive("ridge", ridge)
    train, y = _events(theory, "train")
    test, y_test = _events(theory, "test")
    limit, limit_se = (kernels.by_event(theory[f"ntk{end}"]) for end in ("", "_se"))
    samples_of_test = int((theory["split"] == "test").sum())

    def predicted(K: Array) -> Array:
        return kernels.regression(K, train, test, y, ridge)

    def loss(K: Array) -> Array:
        return np.asarray(((predicted(K) - y_test) ** 2).sum(-1) / (2 * samples_of_test))

    x = [Members(_kernels(nets, i)) for i in range(len(counts))]
    each = ("width", "step")
    variables = pair("test_loss", each, stacked([Members(loss(one.x)).mean() for one in x]))
    variables |= pair("test_loss_of_mean", each, stacked([_of_mean(loss, one) for one in x]))
    variables |= pair("test_loss_limit", ("step",), (loss(limit), kernels.noise_of(loss, limit, limit_se)))

    def scaled(K: Array) -> Array:
        return np.asarray(predicted(K) / np.sqrt(samples_of_test))

    variables |= _off_the_limit("distance", scaled, x, limit, limit_se)
    if LOSSES[json.loads(nets.attrs["problem"])["loss"]].quadratic and "test_loss" in nets and "test_loss" in theory:
        own = [samples(nets, "test_loss", i).mean() for i in range(len(counts))]
        variables |= pair("network_test_loss", each, stacked(own))
        limits = tuple(theory[f"test_loss{end}"].values for end in ("", "_se"))
        variables |= pair("network_test_loss_limit", ("step",), (limits[0], limits[1]))
    return dataset("after_kernel", variables, {}, nets, theory, seeds=counts, ridge=ridge)


# ---- shared ----------------------------------------------------------------------------------------------------------


def _checked(nets: xr.Dataset, theory: xr.Dataset, what: str) -> tuple[xr.Dataset, xr.Dataset, list[int]]:
    """Networks and theory, and how many networks each width has."""
    nets = inputs.check_networks(nets, members=what)
    inputs.check_quantities(nets, "the ensemble", ["ntk"])
    counts = require_enough(nets)
    return nets, inputs.check_theory(theory, nets, ["ntk"]), counts


def _kernels(nets: xr.Dataset, i: int) -> Array:
    """NTK of the healthy networks of the i-th width, (member, step, event, event_2)."""
    K = members(nets, "ntk", i)
    events = nets.sizes["sample"] * nets.sizes.get("output", 1)
    return K.reshape(*K.shape[:2], events, events)


def _events(theory: xr.Dataset, split: str) -> tuple[NDArray[np.intp], Array]:
    """Which events of the NTK belong to a split, and their targets."""
    found = kernels.events_of(theory, split)
    if len(found[0]) == 0:
        raise ValueError(f"the results hold no {split} samples, which this needs; the task must have some.")
    return found


def _of(train: NDArray[np.intp], K: Array) -> Array:
    return K[..., train[:, None], train]


def _of_mean(function: Function, x: Members) -> tuple[Array, Array]:
    """Of the mean kernel, without the bias of order 1 / members."""
    return mean_of(pseudo_values(lambda mean, _variance, _n: function(mean), x))


def _off_the_limit(name: str, function: Function, x: list[Members], limit: Array, limit_se: Array) -> Variables:
    """Distance of function(K), (..., entry), from that of the limit's kernel: root mean square over networks, and
    <name>_of_mean."""
    reference = function(limit)
    moved = [function(K) for K in kernels.noisy(limit, limit_se)]
    excess = np.mean([((F - reference) ** 2).sum(-1) for F in moved], axis=0)

    def from_reference(F: Array) -> Array:
        return np.asarray(((F - reference) ** 2).sum(-1))

    def freed(square: tuple[Array, Array], centre: Array) -> tuple[Array, Array]:
        """The root of a mean square of networks about `centre`, without what the limit's noise adds to it."""
        value, se = square
        from_limit = np.std([((centre - F) ** 2).sum(-1) for F in moved], axis=0, ddof=1)
        return estimators.root(value - excess, np.sqrt(se**2 + from_limit**2 + excess**2))

    single, of_mean = [], []
    for one in x:
        of_each = function(one.x)
        single.append(freed(Members(from_reference(of_each)).mean(), of_each.mean(axis=0)))
        mean_square = _of_mean(lambda K: from_reference(function(K)), one)
        of_mean.append(freed(mean_square, function(one.x.mean(axis=0))))
    each = ("width", "step")
    return pair(name, each, stacked(single)) | pair(f"{name}_of_mean", each, stacked(of_mean))
