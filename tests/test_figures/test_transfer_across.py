"""The figure of transfer across depth and batch size, made small: its networks are those that the theory speaks of."""

import numpy as np
import pytest
import xarray as xr

import dmft
import finite_nets
from dmft.finite_width import across
from dmft.finite_width import transfer as module
from figures import transfer_across

SMALL = {"WIDTH": 64, "SEEDS": 200, "STEPS": 3, "SAMPLES": 8, "ORDERS": 2}
FEW = {"members": 128, "particles": 64, "scrambles": 2}
SIZES, RATES = (2, 8), (1.5, 1.9, 2.3)


def watched(monkeypatch, where, name):
    """What a function is given first, and what it returns, of every call."""
    calls, true = [], getattr(where, name)

    def watching(first, *rest, **given):
        calls.append((first, true(first, *rest, **given)))
        return calls[-1][1]

    monkeypatch.setattr(where, name, watching)
    return calls


@pytest.mark.filterwarnings("ignore::UserWarning")  # of few particles, and of optima at an end of so few rates
def test_networks_are_trained_on_the_batches_of_the_theory(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(transfer_across, name, value)
    theory, along = watched(monkeypatch, dmft, "transfer"), watched(monkeypatch, module, "samples_along")
    nets = watched(monkeypatch, finite_nets, "train_ensemble")
    found = transfer_across.compared("batch_size", SIZES, RATES, **FEW)
    batches = [{problem.training.batches for problem, _ in calls} for calls in (along, nets)]
    assert batches[0] == batches[1]
    assert len(batches[0]) == 1 + SMALL["ORDERS"]
    predicted = theory[0][1].isel(width=0)

    def off(mean, se):
        """By how many standard errors networks are off the theory, at every size and rate."""
        return np.abs(mean - predicted.loss_mean.values) / np.hypot(se, predicted.loss_mean_se.values)

    # six numbers, of which those of one size are correlated; networks on other sequences are off by 23
    assert off(found.loss_mean_batch_size, found.loss_mean_batch_size_se).max() < 4
    draw = across.random_batches
    monkeypatch.setattr(across, "random_batches", lambda *sizes, seed: draw(*sizes, seed=seed + 10))
    other = transfer_across.measured("batch_size", SIZES, RATES).isel(width=0)
    assert off(other.loss_mean, other.loss_mean_se).sel(batch_size=2).max() > 8


def test_what_is_drawn_is_what_was_found():
    rng, levels = np.random.default_rng(0), {"depth": [1.0, 2.0, np.inf], "batch_size": [2, 4, 8]}
    found = {}
    for axis, at in levels.items():
        sizes = {axis: len(at), f"value_{axis}": 4}
        for name in transfer_across.SHOWN:
            dims = list(sizes) if name.startswith("loss") else [axis]
            for end in ("", "_se"):
                found[f"{name}_{axis}{end}"] = (dims, rng.uniform(1, 2, [sizes[dim] for dim in dims]))
    coords = levels | {f"value_{axis}": [1.0, 1.5, 2.0, 2.5] for axis in levels}
    ds = xr.Dataset(found, coords, {"analysis": "transfer_across", "width": 64, "step": 5})
    axes = transfer_across.figure(ds).axes
    assert [len(ax.containers) for ax in axes] == [2, 2, 3, 2]  # infinite depth has no networks
    for ax, axis in zip(axes[1::2], levels, strict=True):
        drawn = [container.lines[0].get_ydata() for container in ax.containers]
        np.testing.assert_array_equal(drawn, [ds[f"{name}_{axis}"] for name in ("optimum_predicted", "optimum")])
    assert [label.get_text() for label in axes[1].get_xticklabels()] == ["1", "2", r"$\infty$"]
