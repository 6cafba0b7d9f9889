"""A whole data set at infinite width by both routes: python tests/benchmarks/streams.py FOLDER [NAME=VALUE ...]

FOLDER holds the IDX files of Fashion-MNIST, or is the name of a source of `dmft.load_task`.  Ten outputs, squared error,
two hidden ReLU layers, plain SGD.  By default the limit of one epoch of all images (`dmft.solve(directions=k)`); with
`networks=64` ensembles of several widths and their extrapolation.  Prints a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

import jax
import numpy as np

import comparisons
import dmft

SETTINGS: dict[str, Any] = {
    "images": 60_000,
    "tests": 10_000,
    "batch": 512,
    "epochs": 1,
    "steps": 0,  # of all epochs
    "gamma0": 1.0,
    "rate": 2.0,
    "particles": 16_384,
    "directions": 2048,
    "scrambles": 2,
    "seed": 0,
    "networks": 0,  # of the narrowest width, half as many of the next
    "narrowest": 512,
    "widths": 5,
}
SHOWN = ("test_loss", "test_accuracy")


def problem(source: str, given: dict[str, Any]) -> dmft.Problem:
    """So many epochs, of shuffled samples after the first."""
    batch, images = given["batch"], given["images"]
    task = dmft.load_task(source, classes=range(10), n_train=images, n_test=given["tests"])
    epoch = images // batch
    batches = dmft.one_pass(images, batch)
    if given["epochs"] > 1:
        batches = np.concatenate([batches, dmft.random_batches(images, batch, (given["epochs"] - 1) * epoch)])
    batches = batches[: given["steps"] or len(batches)]
    training = dmft.GradientDescent(given["rate"], len(batches), batches=batches, observe="test")
    return dmft.Problem(dmft.MLP(2, dmft.relu(), gamma0=given["gamma0"], centered=False), task, training)


def recorded(steps: int, epoch: int) -> list[int]:
    """Steps: three on the way through the first epoch, then the end of every epoch."""
    return sorted(
        {0, 1, epoch // 8, epoch // 4, epoch // 2, *range(epoch, steps + 1, epoch), steps} & {*range(steps + 1)}
    )


def limit(described: dmft.Problem, given: dict[str, Any], steps: list[int]) -> dict[str, Any]:
    """By route (a)."""
    found = dmft.solve(
        described,
        particles=given["particles"],
        directions=given["directions"],
        scrambles=given["scrambles"],
        seed=given["seed"],
        dtype="float32",
        save_steps=steps,
        observables=["prediction", "loss", "accuracy"],
        progress=False,
    )
    names = [
        name for name in found.attrs if name.startswith(("truncation", "noise", "memory", "kept", "in_law", "distance"))
    ]
    lost = np.array(found.attrs.get("kernels_lost", [0.0]))
    statistics = jax.devices()[0].memory_stats() or {}
    return {
        **{name + end: found[name + end].values.round(5).tolist() for name in SHOWN for end in ("", "_se")},
        **{name: found.attrs[name] for name in names},
        "lost": lost[np.minimum(steps, len(lost) - 1)].round(5).tolist(),
        "lost_mean": float(lost.mean()),
        "peak_gib": statistics.get("peak_bytes_in_use", 0) / 2**30,
    }


def networks(described: dmft.Problem, given: dict[str, Any], steps: list[int]) -> dict[str, Any]:
    """By route (b)."""
    import finite_nets

    wanted: dict[str, Any] = {
        "save_steps": steps,
        "observables": ["prediction", "loss", "accuracy"],
        "seed": given["seed"],
        "progress": False,
    }
    if jax.default_backend() == "gpu":
        wanted["dtype"] = "tf32"
    each = [(given["narrowest"] << i, max(given["networks"] >> i, 1)) for i in range(given["widths"])]
    nets = [finite_nets.train_ensemble(described, widths=[n], seeds=count, **wanted) for n, count in each]
    rows: dict[str, Any] = {}
    for laws in (None, ["1/N"], ["1/N + 1/N^2"], ["N^-p"]):
        found = comparisons.extrapolate(nets, list(SHOWN), **({} if laws is None else {"laws": laws}))
        kinds = [f"{name}{kind}_limit{end}" for name in SHOWN for kind in ("", "_infinite") for end in ("", "_se")]
        rows[str(laws and laws[0])] = {name: found[name].values.round(5).tolist() for name in kinds if name in found}
        if laws is None:
            means = [f"{name}{kind}_mean{end}" for name in SHOWN for kind in ("", "_infinite") for end in ("", "_se")]
            rows |= {name: found[name].isel(step=-1).values.round(5).tolist() for name in means if name in found}
    return rows


def main(source: str, *named: str) -> None:
    """One run."""
    given = {**SETTINGS}
    for each in named:
        name, value = each.split("=")
        given[name] = type(SETTINGS[name])(value)
    started = time.perf_counter()
    described = problem(source, given)
    loaded = time.perf_counter()
    steps = recorded(described.training.steps, given["images"] // given["batch"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = (networks if given["networks"] else limit)(described, given, steps)
        except (dmft.errors.NotConvergedError, dmft.errors.DivergenceError) as error:
            found = {"refused": str(error)}
    ended = time.perf_counter()
    print(
        json.dumps(
            {
                **{name: value for name, value in given.items() if value != SETTINGS[name]},
                "load_s": round(loaded - started, 1),
                "seconds": round(ended - loaded, 1),
                "steps": steps,
                **found,
                "warned": sorted({str(one.message)[:120] for one in said if issubclass(one.category, UserWarning)}),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
