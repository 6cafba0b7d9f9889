"""The posterior of infinitely wide networks with adapted features, to which noisy training with weight decay relaxes.

    p(theta) ~ exp{ -(gamma0^2 N / T) loss(theta) - sum_l |W^l|^2 / (2 v_l) }     loss = (1/P) sum_a |f_a - y_a|^2 / 2

is the law of weights that start from N(0, v_l) (`weight_variance` of the network), have seen the data, and have the
temperature T; d theta = -[gamma0^2 N grad loss + (T/v_l) theta] dt + sqrt(2 T) dB relaxes to it.  With beta = 1/(P T),
C_1 = v_0 K^x and C_{l+1} = v_l Phi^l, at N -> infinity and fixed P,

    p(data, Phi) ~ exp(-N S)
    S = (gamma0^2/2) tr y^T (v_L Phi^L + I/beta)^{-1} y - sum_l [(1/2) tr Phi^l D^l + ln Z_l]
    Z_l = E_{h ~ N(0, C_l)} exp(-phi(h)^T D^l phi(h) / 2),     Phi^l = <phi(h) phi(h)^T>_l in that tilted law        (1)
    D^L = -gamma0^2 v_L r r^T,     r = (v_L Phi^L + I/beta)^{-1} y
    D^l = v_l C^{-1} <h (phi'(h) o D^{l+1} phi(h))^T>_{l+1},     C = C_{l+1}                                         (2)

Test points have no duals D; they follow the training samples by the Gaussian law of their preactivations, and
f(x) = v_L k(x)^T r with the kernels k that come of it.  `dmft.adaptive_kernels.linear` has deep linear networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft.adaptive_kernels.linear import LinearPosterior
from dmft.adaptive_kernels.result import of_sets
from dmft.errors import NotConvergedError
from dmft.running import memory
from dmft.running.progress import progress_bar
from dmft.specs import MLP, Problem, _check
from dmft.specs.adaptable import adaptable, prior

Array = NDArray[np.float64]
ROUNDS = 7  # of sampling at most, each twice as long as the one before
FIRST = 4  # blocks of the first round
RELAXED = 30.0  # time of relaxation of the last round, at least: neurons take some units, rich ones ten
FINER = 4  # populations are extrapolated from N / FINER and N
FIELDS, KERNELS = 8, 16  # of a set, as many arrays of each are held
PER_SAMPLE = 64  # neurons of a population by default, at least
NUMERICS = ("population", "sets", "tolerance", "seed", "device", "progress")  # of sampling
COMPARED = ("feature_kernel", "prediction")  # what has to converge


def bayes_kernel(
    problem: Problem,
    *,
    temperature: float,
    population: int | None = None,
    sets: int = 8,
    tolerance: float = 0.01,
    sampled: bool = False,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = None,
) -> xr.Dataset:
    """Kernels, duals and predictions of the posterior of `problem`, whose training does not matter.

    Deep linear networks have a closed form; of others populations of neurons are sampled
    (`dmft.adaptive_kernels.population`), on the branch of small gamma0.

    Args:
        problem: as of `dmft.adaptive_kernel`; the prior variances are its `weight_variance`.
        temperature: T, of the loss that is a mean over samples.
        population: N, neurons of a layer in each set; 1024 by default, or 64 a training sample.  (N and N/4 are
            extrapolated to infinity.)  Closed forms take none of this and what follows but `sampled`, and refuse it.
        sets: independent ones, at least 2, from which standard errors come.
        tolerance: relative error of each layer's kernel, and of the predictions, at which sampling ends.
        sampled: sample deep linear networks, too.
        seed: of the random numbers.
        device: "auto" (a GPU if JAX has one), "cpu" or "gpu".
        progress: show a bar; by default in terminals and notebooks, elsewhere a line now and then of long work.

    Returns:
        Dataset of kind "adaptive_kernel" (`dmft.schema`): feature_kernel, feature_dual (D), prediction,
        prediction_dual (r), action, losses.  Attributes of deep linear networks: `gains` (chi) and `actions` of all
        branches, least first.  Of sampled ones: `error`, `drift` between the halves of the last round, `correction` by
        the extrapolation, each relative, the largest of kernels and predictions; `acceptance`, `draws` of a set, and
        `relaxation`, the time that they took: half the squared lengths of moves, in units of the prior.

    Raises:
        DivergenceError: populations left the finite numbers, as where training samples coincide.
        MemoryEstimateError: populations that do not fit, with the numbers.
        NotConvergedError: the error or the drift stayed above the tolerance, the correction above ten times that, or
            the time of relaxation below 30; its `estimate` is what was reached.
        ValueError, TypeError: arguments out of range.

    Source: Lauditi, Bordelon & Pehlevan 2025, for the saddle point.
    """
    given = locals()
    network = adaptable(problem)
    temperature, tolerance = _check.positive("temperature", temperature), _check.positive("tolerance", tolerance)
    n, variances = problem.task.n_train, prior(network)
    if network.activation.name == "linear" and not sampled:
        numerics = {name: given[name] for name in NUMERICS}
        _check.without_effect(bayes_kernel, numerics, "deep linear networks, which have a closed form (sampled=False)")
        return _linear(problem, network, temperature, variances)
    least = PER_SAMPLE * n
    population = max(1024, least) if population is None else _check.integer("population", population, minimum=16 * n)
    sets, seed = _check.integer("sets", sets, minimum=2), _check.integer("seed", seed, minimum=0)
    return _sampled(problem, network, temperature, variances, population, sets, tolerance, seed, device, progress)


def _linear(problem: Problem, network: MLP, temperature: float, variances: tuple[float, ...]) -> xr.Dataset:
    task, n = problem.task, problem.task.n_train
    kernel, y = task.input_kernel, task.targets[:n]
    posterior = LinearPosterior(
        kernel[:n, :n], y, network.depth, network.gamma0, temperature * n, variances, network.activation.scale
    )
    branches = sorted(posterior.branches(), key=posterior.action)
    found = posterior.order_parameters(kernel, branches[0])
    attrs = {
        "method": "closed form",
        "temperature": temperature,
        "gains": [np.linalg.eigvalsh(chi).max() for chi in branches],
        "actions": [posterior.action(chi) for chi in branches],
    }
    return of_sets(problem, {name: value[None] for name, value in found.items()}, attrs)


def _sampled(
    problem: Problem,
    network: MLP,
    temperature: float,
    variances: tuple[float, ...],
    population: int,
    count: int,
    tolerance: float,
    seed: int,
    device: str,
    progress: bool | None,
) -> xr.Dataset:
    import jax

    from dmft.adaptive_kernels import population as populations
    from dmft.drivers.machine import available_bytes, find_devices, precision

    n = problem.task.n_train
    of = populations.posterior(problem.task.input_kernel, problem.task.targets[:n], temperature * n, variances)
    (where,) = find_devices(device)
    memory.require(
        8 * count * (FIELDS * network.depth * population * problem.task.n_samples)
        + 8 * count * (KERNELS * network.depth * problem.task.n_samples**2),
        limit=None,
        available=available_bytes(where),
        what=f"{count} sets of {population} neurons a layer at {problem.task.n_samples} samples",
        ways_out="lower sets or population, or take fewer test samples",
    )
    total = 2 * (2 * populations.NODES + 1 + FIRST * (2**ROUNDS - 1))
    with precision("float64", where), progress_bar(total, "adaptive kernel", "block", progress) as bar:
        keys = jax.random.split(jax.random.key(seed))
        both = [
            populations.Sets(of, network.activation, neurons=neurons, depth=network.depth, count=count, key=key)
            for neurons, key in zip((population // FINER, population), keys, strict=True)
        ]
        actions = [each.arrive(network.gamma0, bar) for each in both]
        for turn in range(ROUNDS):
            blocks = FIRST * 2**turn // 2
            halves = [[each.draw(network.gamma0, blocks, bar) for each in both] for _ in range(2)]
            report = _report(halves)
            report |= {"acceptance": both[1].accepted, "draws": 2 * blocks * populations.DRAWS}
            report["relaxation"] = report["draws"] * populations.MOVES * both[1].length ** 2 / 2
            if converged := _converged(report, tolerance):
                break
    coarse, fine = ({name: (a[name] + b[name]) / 2 for name in a} for a, b in zip(*halves, strict=True))
    found = {name: _extrapolated(coarse[name], fine[name]) for name in fine if name != "evidence"}
    attrs = {
        "method": "populations of neurons",
        "result": "success" if converged else "not converged",
        "temperature": temperature,
        "population": population,
        "sets": count,
        "tolerance": tolerance,
        "device": where.platform,
        "seed": seed,
        **report,
    }
    result = of_sets(problem, {**found, "action": _extrapolated(*actions)}, attrs)
    if not converged:
        raise NotConvergedError(
            f"the posterior at temperature={temperature:g} and gamma0={network.gamma0:g} was reached to a relative "
            f"error of {report['error']:.2g}, with a drift of {report['drift']:.2g} and a correction for populations "
            f"of {population} of {report['correction']:.2g}, in {report['relaxation']:.2g} units of time; asked for "
            f"was tolerance={tolerance:g} (ten times that of the correction), and {RELAXED:g} units. Raise population, "
            "sets or tolerance, or take a higher temperature or a smaller gamma0; the error's `estimate` is what was "
            "reached.",
            estimate=result,
        )
    return result


def _extrapolated(coarse: Array, fine: Array) -> Array:
    """To an infinite population."""
    return fine + (fine - coarse) / (FINER - 1)


def _converged(report: dict[str, float], tolerance: float) -> bool:
    """What is no number has not."""
    largest = np.max([report["error"], report["drift"], report["correction"] / 10])
    return bool(largest < tolerance and report["relaxation"] > RELAXED)


def _report(halves: list[list[dict[str, Array]]]) -> dict[str, float]:
    """Relative errors of the last round, the largest of the layers' kernels and the predictions."""
    (first_coarse, first), (second_coarse, second) = halves
    worst = {"error": 0.0, "drift": 0.0, "correction": 0.0}
    for name in COMPARED:
        early, late = _extrapolated(first_coarse[name], first[name]), _extrapolated(second_coarse[name], second[name])
        each = (early + late) / 2
        mean, fine = each.mean(0), (first[name] + second[name]).mean(0) / 2
        axes: Any = (-2, -1)
        size = np.linalg.norm(mean, axis=axes)
        found = {
            "error": np.linalg.norm(each.std(0, ddof=1) / np.sqrt(len(each)), axis=axes),
            "drift": np.linalg.norm((late - early).mean(0), axis=axes) / 2,
            "correction": np.linalg.norm(mean - fine, axis=axes),
        }
        worst = {key: float(np.maximum(value, np.max(found[key] / size))) for key, value in worst.items()}
    return worst
