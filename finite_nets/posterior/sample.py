"""`sample_posterior`: chains of networks of several widths, what their draws have on average, and whether they mix.

With c chains in two halves of n draws each, of means m and variances within s^2, W = mean s^2 and B = Var m,

    R-hat           sqrt((W (n-1)/n + B) / W)                       1 where halves and chains agree
    effective size  min(2 c n, 2 c W / B)                           independent draws that all of them are worth
    se              standard deviation of the means of chains / sqrt(c)

(Gelman et al., Bayesian Data Analysis, split chains.)  Sampling has converged where the R-hat of the predictions, and
of each layer's kernel, is small enough, with W and B summed over entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.errors import DivergenceError, NotConvergedError
from dmft.running import memory
from dmft.running.host import usual_errors
from dmft.running.progress import Bar, progress_bar
from dmft.specs import Problem, _check
from dmft.specs.adaptable import adaptable, prior
from finite_nets.device.free_memory import free_memory
from finite_nets.device.host import usual_torch
from finite_nets.device.precision import precision
from finite_nets.ensembles.collection import Members, check_members
from finite_nets.ensembles.ensemble import device_name, find_device
from finite_nets.ensembles.runner import memory_given_back
from finite_nets.posterior.chains import Chains

Array = NDArray[np.float64]
Halves = dict[str, tuple[Array, Array]]  # means and variances (half, member, ...) by variable
LARGEST = 1.1  # R-hat of what has converged
COPIES = 4  # of weights: those of now, proposed ones, momenta, and what makes them


@usual_errors
def sample_posterior(
    problem: Problem,
    *,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    temperature: float,
    draws: int = 400,
    burn_in: int | None = None,
    length: float = 1.0,
    leapfrogs: int | None = None,
    largest_r_hat: float = LARGEST,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    progress: bool | None = None,
) -> xr.Dataset:
    """Sample the posterior of networks of the given widths, with `seeds` chains of each.

    Args:
        problem: a perceptron without biases, with the squared loss; its training does not matter, and its
            `weight_variance` is the prior's.  Predictions are f, whether the network is `centered` or not.
        widths: N, different whole numbers.
        seeds: how many chains a width, at least 2, or their seed indices.
        temperature: T, as of `dmft.adaptive_kernel(kind="bayes")`.
        draws: of every chain, that count; an even number.
        burn_in: draws before these; half as many by default.  Steps adapt in them, those of all chains together.
        length: of a trajectory, in standard deviations of the prior.
        leapfrogs: steps of a trajectory, in place of its length; 1 is the Langevin algorithm (MALA).
        largest_r_hat: above which chains have not converged; at least 1.
        seed: the root seed.
        device: "cpu", "gpu", "cuda:1", ...; "auto" takes a GPU if there is one.
        dtype: "float32", "float64" or "tf32".
        progress: show a bar; by default on a terminal only.

    Returns:
        Dataset of kind "posterior" (`dmft.schema`): means of every chain over its draws, prediction, loss, test_loss
        (those of the mean prediction), feature_kernel, acceptance (width, seed, ...), and of all chains of a width the
        standard errors `_se`, of predictions and kernels `_r_hat` and `_effective_size` too.  Attributes: `r_hat`, the
        largest; `steps` and `step_sizes` of a trajectory, by width.

    Raises:
        NotConvergedError: R-hat of the predictions or a layer's kernel is too large; `estimate` is what was reached.
        DivergenceError: chains left the finite numbers.
        MemoryEstimateError: when the chains do not fit, with the numbers.
        ValueError, TypeError: arguments out of range; another network or loss.

    Example:
        >>> chains = finite_nets.sample_posterior(
        ...     problem, widths=[8], seeds=4, temperature=0.5, draws=40, largest_r_hat=2.0
        ... )
        >>> chains["feature_kernel"].dims
        ('width', 'seed', 'layer', 'sample', 'sample_2')
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"sample_posterior expects a dmft.Problem, got {type(problem).__name__}.")
    network = adaptable(problem)
    members = check_members(widths, seeds, seed, problem)
    if len(members.seeds) < 2:
        raise ValueError(f"seeds={seeds!r}: errors come from at least 2 chains.")
    if _check.integer("draws", draws, minimum=4) % 2:
        raise ValueError(f"draws={draws} are compared in halves; give an even number.")
    burn_in = draws // 2 if burn_in is None else _check.integer("burn_in", burn_in, minimum=1)
    leapfrogs = None if leapfrogs is None else _check.integer("leapfrogs", leapfrogs, minimum=1)
    numbers = precision(dtype)
    if numbers.name == "bf16":
        raise ValueError('dtype="bf16" is too coarse for the energies of chains; choose float32, tf32 or float64.')
    settings: dict[str, Any] = {
        "variances": prior(network),
        "temperature": _check.positive("temperature", temperature),
        "members": members.seeds,
        "root": members.root,
        "length": _check.positive("length", length),
        "leapfrogs": leapfrogs,
        "dtype": numbers.fields,
        "device": find_device(device),
    }
    if _check.positive("largest_r_hat", largest_r_hat) < 1:
        raise ValueError(f"largest_r_hat={largest_r_hat}: chains that agree have 1; give more, as 1.1.")
    where, found = settings["device"], []
    _require_memory(problem, members, numbers.fields.itemsize, where)
    total = len(members.widths) * (burn_in + draws)
    usual = usual_torch(where, tf32=numbers.name == "tf32")
    with memory_given_back(where), usual, progress_bar(total, "posterior", "draw", progress) as bar:
        for width in members.widths:
            chains = Chains(problem, width=width, **settings)
            found.append((*_run(chains, draws, burn_in, bar), chains.steps, chains.step))
    attrs = {
        "producer": "finite_nets.sample_posterior",
        "dtype": dtype,
        "device": device_name(where),
        "seed": members.root,
        "temperature": settings["temperature"],
        "draws": draws,
        "burn_in": burn_in,
        "steps": [steps for *_, steps, _ in found],
        "step_sizes": [step for *_, step in found],
    }
    return _result(problem, members, [each[:2] for each in found], attrs, largest_r_hat)


def _run(chains: Chains, draws: int, burn_in: int, bar: Bar) -> tuple[Halves, Array]:
    """Means and variances of both halves of the draws, by variable, and the acceptance (member,)."""
    for turn in range(burn_in):
        chains.adapt(float(chains.draw().mean()), rate=(1 + turn / 4) ** -0.5)
        bar.update()
    halves, accepted = [], []
    for _ in range(2):
        sums, squares = (list[Any]() for _ in range(2))
        for _ in range(draws // 2):
            accepted.append(chains.draw())
            seen = chains.observed()
            sums = [a + b for a, b in zip(sums, seen, strict=True)] if sums else list(seen)
            squares = [a + b**2 for a, b in zip(squares, seen, strict=True)] if squares else [a**2 for a in seen]
            bar.update()
        means = [a.cpu().numpy() / (draws // 2) for a in sums]
        spreads = [np.maximum(b.cpu().numpy() / (draws // 2) - m**2, 0) for b, m in zip(squares, means, strict=True)]
        halves.append((means, spreads))
    found = {
        name: (np.stack([means[i] for means, _ in halves]), np.stack([spread[i] for _, spread in halves]))
        for i, name in enumerate(("prediction", "feature_kernel"))
    }
    return found, np.mean([each.cpu().numpy() for each in accepted], 0)


def _mixed(means: Array, spreads: Array, draws: int) -> tuple[Array, Array, Array]:
    """W and B of halves (half, member, ...) of so many draws, and the effective size."""
    n = draws // 2
    within = spreads.mean((0, 1)) * n / (n - 1)
    between = means.reshape(-1, *means.shape[2:]).var(0, ddof=1)
    count = means.shape[0] * means.shape[1]
    worth = np.where(between > 0, count * within / np.where(between > 0, between, 1.0), np.inf)
    return within, between, np.minimum(count * n, worth)


def _result(
    problem: Problem, members: Members, found: list[tuple[Halves, Array]], attrs: dict[str, Any], largest: float
) -> xr.Dataset:
    """The Dataset, if chains of all widths agree."""
    outputs, n = bool(problem.task.outputs), attrs["draws"] // 2
    by_width: dict[str, list[Array]] = {}
    worst = 0.0

    def put(name: str, value: Array) -> None:
        by_width.setdefault(name, []).append(value)

    for halves, accepted in found:
        put("acceptance", accepted)
        for name, (means, spreads) in halves.items():
            within, between, worth = _mixed(means, spreads, attrs["draws"])
            axes = (-2, -1)  # (sample, output) of predictions, (sample, sample_2) of each layer's kernel
            pooled = 1 - 1 / n + between.sum(axes) / np.maximum(within.sum(axes), 1e-300)
            worst = float(np.maximum(worst, np.sqrt(pooled.max())))  # nan where one is
            r_hat = np.sqrt(1 - 1 / n + between / np.maximum(within, 1e-300))
            chain = means.mean(0)
            for suffix, value in (
                ("", chain),
                ("_se", chain.std(0, ddof=1) / np.sqrt(len(chain))),
                ("_r_hat", r_hat),
                ("_effective_size", worth),
            ):
                put(f"{name}{suffix}", value[..., 0] if name == "prediction" and not outputs else value)
    values = {name: np.stack(each) for name, each in by_width.items()}
    for name, value in schema.of_predictions(problem, values["prediction"]).items():
        values |= {name: value, f"{name}_se": value.std(1, ddof=1) / np.sqrt(value.shape[1])}
    if not np.isfinite(worst):
        raise DivergenceError(
            f"chains left the finite numbers: R-hat={worst}. Raise the temperature, or take dtype='float64'."
        )
    converged = worst <= largest
    attrs |= {"r_hat": worst, "result": "success" if converged else "not converged"}
    coords = {"width": list(members.widths), "seed": list(members.seeds)}
    result = schema.build("posterior", problem, values, attrs=attrs, coords=coords)
    if not converged:
        raise NotConvergedError(
            f"chains of {attrs['draws']} draws after {attrs['burn_in']} differ by R-hat={worst:.3g}, more than "
            f"{largest:g}; acceptances are {values['acceptance'].mean(1).round(2).tolist()}. Give more draws, longer "
            "trajectories (length) or a higher temperature; the error's `estimate` is what was reached.",
            estimate=result,
        )
    return result


def _require_memory(problem: Problem, members: Members, itemsize: int, device: torch.device) -> None:
    width, depth, samples = max(members.widths), problem.sketch.depth, problem.task.n_samples
    weights = width * (problem.task.dimension + (depth - 1) * width + problem.task.targets.shape[1])
    fields, kernels = 4 * depth * width * samples, 8 * 8 * depth * samples**2 // itemsize
    memory.require(
        len(members.seeds) * itemsize * (COPIES * weights + fields + kernels),
        limit=None,
        available=free_memory(device),
        what=f"{len(members.seeds)} chains of width {width}",
        ways_out="take fewer chains (seeds) at a time, narrower networks or fewer samples",
    )
