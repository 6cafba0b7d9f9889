"""The figure of few bits: its table of runs, and what it draws of one."""

import numpy as np
import pytest
import xarray as xr

import comparisons
import dmft
import finite_nets
from figures import precision as module

BITS = (2, 3, 4)


def test_the_table_has_the_networks_of_each_kind():
    x, y = np.random.default_rng(0).standard_normal((12, 3)), np.eye(2)[np.arange(12) % 2]
    training = dmft.GradientDescent(0.2, 4, batches=dmft.one_pass(8, 2), observe="test")
    problem = dmft.Problem(
        dmft.MLP(1, centered=False), dmft.Task(x[:8], y[:8], x[8:], y[8:]), training, "cross_entropy"
    )
    found = module.measure(problem, [4, 8], [3], [2, 4], 3, dtype="float64")
    kinds = {
        (w, a, p)
        for w, a, p in zip(*(found[n].values.tolist() for n in ("weights", "activations", "post")), strict=True)
    }
    assert kinds == {
        (np.inf, np.inf, 3),
        (np.inf, np.inf, np.inf),
        (3, np.inf, np.inf),
        (np.inf, 3, np.inf),
        (3, 3, np.inf),
    }
    assert found.sizes["run"] == len(kinds) * 4
    bits = finite_nets.Quantisation(weights=3)
    nets = finite_nets.train_ensemble(
        problem, widths=[8], seeds=3, quantisation=bits, dtype="float64", observables=["loss"]
    )
    row = (found["width"] == 8) & (found["tokens"] == 8) & (found["weights"] == 3) & np.isinf(found["activations"])
    one = found.isel(run=np.flatnonzero(row)).squeeze()
    losses = nets["test_loss"].isel(width=0, step=4).values
    assert one["loss"].item() == pytest.approx(losses.mean())
    assert one["loss_se"].item() == pytest.approx(losses.std(ddof=1) / 3**0.5)
    assert one["parameters"].item() == 8 * 5


@pytest.fixture(scope="module")
def made():
    """Of runs that follow a law."""
    law = comparisons.PrecisionLaw(
        60.0,
        0.5,
        200.0,
        0.4,
        0.3,
        dict.fromkeys(("weights", "activations"), comparisons.Saturation(1.0, 0.5)),
        comparisons.AfterTraining(3.0, 0.3, 0.3, 0.6),
    )
    full, rows = np.inf, []
    for width in (8, 16, 32):
        for tokens in (1e3, 4e3):
            rows += [(width, tokens, full, full, p) for p in (*BITS, full)]
            rows += [
                (width, tokens, *(b if one else full for one in which), full)
                for b in BITS
                for which in module.ROUNDED.values()
            ]
    width, tokens, weights, activations, post = np.array(rows).T
    loss = law.loss(30 * width, tokens, {"weights": weights, "activations": activations})
    rounded = np.isfinite(post)
    loss[rounded] = law.loss(30 * width[rounded], tokens[rounded], post=post[rounded])
    columns = {
        "width": width,
        "parameters": 30 * width,
        "tokens": tokens,
        "weights": weights,
        "activations": activations,
        "post": post,
        "loss": loss,
        "loss_se": 0.01 * loss,
    }
    return module.make(xr.Dataset({name: ("run", value) for name, value in columns.items()}), bootstrap=0)


def test_the_widest_networks_are_predicted_and_not_fitted(made):
    assert made["held_out"].sum() == (made["width"] == 32).sum()
    assert made.attrs["held_out_rms"] < 1e-3
    assert made.attrs["best_bits"] == pytest.approx(7, abs=0.01)
    wrong = module.make(
        made[["width", "parameters", "tokens", "weights", "activations", "post", "loss_se"]].assign(
            loss=made["loss"] * (1 + (made["width"] == 32))
        ),
        bootstrap=0,
    )
    assert wrong.attrs["held_out_rms"] > 0.5


def test_the_figure_draws_its_numbers(made, tmp_path):
    dmft.save(made, tmp_path / "precision.nc")
    figure = module.figure(module.data(tmp_path))
    ax = figure.axes[2]  # of weights
    points = [bar.lines[0].get_ydata() for bar in ax.containers]
    shown = (
        (made["tokens"] == 4e3) & np.isinf(made["post"]) & np.isinf(made["activations"]) & np.isfinite(made["weights"])
    )
    np.testing.assert_array_equal(np.concatenate(points), made["loss"].values[shown.values])
