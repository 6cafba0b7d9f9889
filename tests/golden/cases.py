"""Numbers that must not change: small problems through every reading, frozen by `python tests/golden/cases.py`.

They are too small to be right (few particles, few draws): they are there to be the same, to 1e-8 and mostly to rounding,
whatever becomes of the code that makes them.  `numbers.npz` holds them, `tests/test_golden.py` compares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import xarray as xr

import dmft
import finite_nets

NUMBERS = Path(__file__).parent / "numbers.npz"
COARSE = {"particles": 128, "scrambles": 2}


def _data(n_train: int, n_test: int, outputs: str) -> dmft.Task:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((n_train + n_test, 9))
    y = {
        "signs": np.sign(x[:, 0]),
        "real": x[:, 0] + 0.3 * x[:, 1] ** 2,
        "two": x[:, :2] + 0.1,
        "classes": np.eye(3)[np.arange(len(x)) % 3],
    }[outputs]
    if not n_test:
        return dmft.Task(x, y)
    return dmft.Task(x[:n_train], y[:n_train], x[n_train:], y[n_train:])


def problems() -> dict[str, dmft.Problem]:
    """By name."""
    descent = dmft.GradientDescent(0.5, steps=4)
    momentum = dmft.GradientDescent([0.2, 0.4, 0.4, 0.2], steps=4, momentum=0.7, weight_decay=1e-2)
    batches = dmft.GradientDescent(0.4, steps=4, batches=dmft.random_batches(4, size=2, steps=4))
    stream = dmft.GradientDescent(0.4, steps=3, batches=dmft.one_pass(6, size=2), observe="test")
    rosenbrock = dmft.GradientFlow(1.0, step_size=0.4, steps=4)
    euler = dmft.GradientFlow(1.0, step_size=(0.2, 0.2, 0.4, 0.4), scheme="euler")
    tanh, relu, erf = dmft.tanh(0.8), dmft.relu(), dmft.erf()
    real, signs, two, classes = (
        _data(3, 1, "real"),
        _data(4, 0, "signs"),
        _data(3, 1, "two"),
        _data(3, 2, "classes"),
    )
    silent = {"centered": False, "weight_variance": (2.0, 1.0, 0.0), "bias": 0.5, "bias_variance": 0.0}
    return {
        "plain": dmft.Problem(dmft.MLP(2, tanh), real, descent),
        "shallow": dmft.Problem(dmft.MLP(1, tanh, 2.0), real, descent),
        "relu": dmft.Problem(dmft.MLP(3, relu, 0.5), signs, descent),
        "momentum": dmft.Problem(dmft.MLP(2, erf), real, momentum),
        "residual": dmft.Problem(dmft.ResidualMLP(3, tanh, 1.5, branch_scale=0.6), real, momentum),
        "residual_bias": dmft.Problem(dmft.ResidualMLP(3, tanh, bias=0.4, frozen=(1,)), two, descent),
        "batches": dmft.Problem(dmft.MLP(2, tanh, bias=0.5, frozen=(0,)), signs, batches, loss="logistic"),
        "hinge": dmft.Problem(dmft.MLP(2, tanh, frozen=(2,)), signs, descent, loss="hinge"),
        "classes": dmft.Problem(dmft.MLP(2, tanh), classes, descent, loss="cross_entropy"),
        "stream": dmft.Problem(dmft.MLP(2, tanh, centered=False), _data(6, 2, "real"), stream),
        "silent": dmft.Problem(dmft.MLP(2, tanh, **silent), real, descent),
        "rosenbrock": dmft.Problem(dmft.MLP(2, tanh), classes, rosenbrock, loss="cross_entropy"),
        "residual_flow": dmft.Problem(dmft.ResidualMLP(3, tanh), real, rosenbrock),
        "euler": dmft.Problem(dmft.MLP(2, tanh), two, euler),
        "linear": dmft.Problem(dmft.MLP(3, dmft.linear()), real, momentum),
        "residual_linear": dmft.Problem(dmft.ResidualMLP(3, dmft.linear(), bias=0.3), real, descent),
    }


def _observables(problem: dmft.Problem) -> list[str]:
    found = ["prediction", "loss", "feature_kernel", "gradient_kernel", "ntk"]
    classes = problem.loss != "squared"
    curved = problem.training.batches is None and problem.training.observe == "all"
    return found + ["accuracy"] * classes + ["sharpness"] * curved


def _limit(problem: dmft.Problem) -> xr.Dataset:
    flow = isinstance(problem.training, dmft.GradientFlow)
    return dmft.solve(problem, observables=_observables(problem), two_time=not flow, **COARSE)


def _networks(problem: dmft.Problem) -> xr.Dataset:
    options = {"observables": _observables(problem), "dtype": "float64", "device": "cpu"}
    return finite_nets.train_ensemble(problem, widths=[12, 16], seeds=3, **options)


def _fluctuations(mode: str) -> Callable[[dmft.Problem], xr.Dataset]:
    def make(problem: dmft.Problem) -> xr.Dataset:
        exact = problem.network.activation.name == "linear"
        names = ["prediction", "loss"] if mode == "reverse" else ["prediction", "loss", "feature_kernel", "ntk"]
        chosen = "exact" if exact and mode == "forward" else mode
        given = {} if chosen in ("exact", "reverse") else {"draws": 8}
        return dmft.fluctuations(problem, mode=chosen, observables=names, **given, **COARSE)

    return make


READINGS: dict[str, Callable[[dmft.Problem], xr.Dataset]] = {
    "limit": _limit,
    "networks": _networks,
    "in_law": lambda p: finite_nets.sample_in_law(p, widths=[16], seeds=3),
    "forward": _fluctuations("forward"),
    "reverse": _fluctuations("reverse"),
    "finite": _fluctuations("finite"),
    "lazy": dmft.lazy_limit,
    "neurons": lambda p: dmft.neurons(p, **COARSE),
    "trained_neurons": lambda p: finite_nets.neurons(p, widths=[16], neurons=64),
}
# where a reading is worth its time
ONLY = {
    "reverse": ("plain", "residual", "classes"),
    "finite": ("relu",),
    "lazy": ("plain", "residual_bias", "batches", "classes", "silent", "rosenbrock"),
    "neurons": ("plain", "residual"),
    "trained_neurons": ("plain", "residual"),
    "forward": ("plain", "relu", "residual_bias", "batches", "classes", "stream", "rosenbrock", "euler", "linear"),
}


def cases() -> list[tuple[str, str]]:
    """(problem, reading)."""
    return [(name, reading) for reading in READINGS for name in problems() if name in ONLY.get(reading, (name,))]


def numbers(name: str, reading: str) -> dict[str, np.ndarray]:
    """By variable: of one problem through one reading."""
    found = READINGS[reading](problems()[name])
    return {str(key): np.asarray(v.values) for key, v in found.data_vars.items() if v.dtype.kind in "fi"}


def freeze() -> None:
    """Write `NUMBERS`: what the code makes now."""
    kept = {f"{name}/problem_id": np.array(problem.problem_id) for name, problem in problems().items()}
    for name, reading in cases():
        print(name, reading, file=sys.stderr, flush=True)
        kept |= {f"{name}/{reading}/{key}": value for key, value in numbers(name, reading).items()}
        jax.clear_caches()  # of compiled code a process may hold so much
    np.savez_compressed(NUMBERS, **kept)


if __name__ == "__main__":
    freeze()
