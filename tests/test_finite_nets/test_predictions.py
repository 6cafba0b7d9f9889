"""Predictions of training code of one's own, as an ensemble: here that of torch.optim.SGD."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch

import comparisons
import dmft
import finite_nets
from conftest import reference_problem
from dmft.errors import DivergenceError, MemoryEstimateError
from dmft.specs.parameterization import hidden_scale, input_scale, output_scale
from oracles import parameter_rate

PROBLEM = dataclasses.replace(
    reference_problem(gamma0=1.5),
    training=dmft.GradientDescent([0.2, 0.4, 0.3, 0.3], 4, momentum=0.6, weight_decay=0.02),
)
WIDTHS, SEEDS, WIDTH = [16, 24], 200, 24


class Tanh(torch.nn.Module):
    def forward(self, h):
        return torch.tanh(0.8 * h) / 0.8


def trained(width, seed, problem=PROBLEM, rate=1.0):
    """Predictions (step, sample) of an nn.Sequential under torch.optim.SGD, a rate for each layer: weights are factors
    times standard normal ones."""
    generator = torch.Generator().manual_seed(10_000 * width + seed)
    task, training, gamma0 = problem.task, problem.training, problem.network.gamma0
    x, y = torch.tensor(task.x_train), torch.tensor(task.y_train)
    sizes = (task.dimension, width, width, 1)
    scales = (input_scale(task.dimension), hidden_scale(width), output_scale(gamma0, width))
    layers = [torch.nn.Linear(a, b, bias=False, dtype=torch.float64) for a, b in itertools.pairwise(sizes)]
    model = torch.nn.Sequential(layers[0], Tanh(), layers[1], Tanh(), layers[2])
    groups = []
    for layer, scale in zip(layers, scales, strict=True):
        torch.nn.init.normal_(layer.weight, std=scale, generator=generator)
        unit = parameter_rate(1.0, gamma0, width) * scale**2
        groups.append({"params": layer.parameters(), "unit": unit, "weight_decay": training.weight_decay / unit})
    optimiser = torch.optim.SGD(groups, lr=1.0, momentum=training.momentum)
    start, outputs = model(x).detach()[:, 0], []
    for step in range(training.steps + 1):
        f = model(x)[:, 0] - start
        outputs.append(f.detach())
        if step < training.steps:
            for group in optimiser.param_groups:
                group["lr"] = rate * training.rates[step] * group["unit"]
            optimiser.zero_grad()
            (0.5 * (f - y) ** 2).mean().backward()
            optimiser.step()
    return torch.stack(outputs)


@pytest.fixture(scope="module")
def nets():
    return finite_nets.from_predictions(PROBLEM, WIDTHS, SEEDS, trained, producer="torch.optim.SGD", device="cpu")


def deviation(nets, others):
    """The largest difference of means and of variances at the last step, in standard errors."""
    a, b = (comparisons.statistics(ds).isel(step=-1) for ds in (nets, others))
    return [
        float((abs(a[name] - b[name]) / np.hypot(a[f"{name}_se"], b[f"{name}_se"])).max())
        for name in ("prediction_mean", "prediction_seed_variance", "loss_mean")
    ]


def test_networks_of_torch_have_the_law_of_those_of_the_library(nets):
    ours = finite_nets.train_ensemble(PROBLEM, widths=WIDTHS, seeds=4000, observables=["prediction", "loss"])
    # the largest of six, three and two numbers: 4 standard errors are passed once in some thousand times
    assert max(deviation(nets, ours)) < 4
    # and a rate that is wrong by a fifth is seen
    wrong = finite_nets.from_predictions(PROBLEM, WIDTHS, 50, lambda *of: trained(*of, rate=1.2))
    assert max(deviation(wrong, ours)) > 4


def test_every_analysis_of_predictions_takes_them(nets):
    assert nets.attrs["producer"] == "torch.optim.SGD"
    assert nets.attrs["dtype"] == "float64"
    f, y = nets.prediction.values, PROBLEM.task.y_train
    np.testing.assert_allclose(nets.loss, ((f - y) ** 2 / 2).mean(-1), rtol=1e-14)
    theory = dmft.solve(PROBLEM, particles=512, observables=["prediction", "loss"])
    comparison = comparisons.compare(theory, nets)
    found = [
        comparisons.statistics(nets),
        comparisons.bias_variance(nets, theory),
        comparisons.onset(comparison, "loss", tolerance=0.05),
        comparisons.pointwise(nets),
    ]
    assert all(len(ds.data_vars) for ds in found)
    assert "Networks of 200 seeds a width" in str(comparisons.summary(comparison))


def test_arrays_functions_and_steps_agree(nets):
    f = nets.prediction.values
    array = finite_nets.from_predictions(PROBLEM, WIDTHS, range(SEEDS), f)
    np.testing.assert_array_equal(array.loss, nets.loss)
    some = finite_nets.from_predictions(
        PROBLEM, np.array(WIDTHS), SEEDS, torch.tensor(f[:, :, [0, 3]]), save_steps=[0, 3]
    )
    assert some.step.values.tolist() == [0, 3]
    np.testing.assert_array_equal(some.loss, nets.loss.sel(step=[0, 3]))
    single = finite_nets.from_predictions(PROBLEM, WIDTHS, SEEDS, f.astype(np.float32))
    assert (single.attrs["dtype"], single.prediction.dtype) == ("float32", np.float32)


def test_outputs_and_streams():
    rng = np.random.default_rng(0)
    task = dmft.Task(
        rng.standard_normal((4, 3)), np.eye(3)[[0, 1, 2, 0]], rng.standard_normal((2, 3)), np.eye(3)[[1, 2]]
    )
    classes = dmft.Problem(dmft.MLP(1, centered=False), task, dmft.GradientDescent(0.1, 2), loss="cross_entropy")
    f = rng.standard_normal((1, 5, 3, 6, 3))
    nets = finite_nets.from_predictions(classes, [10], 5, f)
    right = f.argmax(-1) == task.targets.argmax(-1)
    np.testing.assert_allclose(nets.test_accuracy, right[..., 4:].mean(-1))
    stream = dmft.GradientDescent(0.1, 2, batches=dmft.one_pass(4, size=2), observe="test")
    probes = finite_nets.from_predictions(dataclasses.replace(classes, training=stream), [10], 5, f[..., 4:, :])
    assert set(probes.data_vars) == {"prediction", "test_loss", "test_accuracy"}


def test_networks_that_diverge_are_masked(nets):
    f = nets.prediction.values.copy()
    f[0, 3, 2, 1] = np.nan
    f[1, 5, 4] = 1e9
    with pytest.warns(
        UserWarning, match=r"1 of 200 networks of width 16 diverge, the first at step 2; 1 of 200 .* at step 4"
    ):
        found = finite_nets.from_predictions(PROBLEM, WIDTHS, SEEDS, f)
    assert [tuple(place) for place in np.argwhere(found.diverged.values)] == [(0, 3), (1, 5)]
    assert found.attrs["diverged"] == 2
    assert np.isnan(found.prediction[0, 3]).all()
    with pytest.raises(DivergenceError, match="200 of 200 networks of width 16 diverge"):
        finite_nets.from_predictions(PROBLEM, WIDTHS, SEEDS, np.full_like(f, np.nan))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"problem": 3}, TypeError, "from_predictions expects a dmft.Problem, got int"),
        ({"prediction": np.zeros((1, 3, 5, 2))}, ValueError, "prediction has shape (1, 3, 5, 2); expected (1, 3, 5, 3), that is (width, seed, step, sample)"),
        ({"prediction": lambda N, seed: np.zeros(5)}, ValueError, "prediction(8, 0) has shape (5,); expected (5, 3), that is (step, sample)"),
        ({"prediction": None}, TypeError, "prediction holds NoneType of object; give real numbers"),
        ({"prediction": "f"}, TypeError, "prediction holds str of <U1; give real numbers"),
        ({"prediction": np.zeros((1, 3, 5, 3), complex)}, TypeError, "of complex128; give real numbers"),
        ({"prediction": np.ma.zeros((1, 3, 5, 3))}, TypeError, "prediction holds MaskedArray"),
        ({"prediction": [[1.0], [1.0, 2.0]]}, TypeError, "prediction cannot be read as an array of numbers"),
        ({"prediction": np.ones((1, 3, 5, 3))}, ValueError, "a prediction of step 0 is 1, but the network of this problem is centered"),
        ({"save_steps": [0, 9]}, ValueError, "save_steps holds 9; this problem has steps 0..4"),
        ({"seeds": [0, 1, 1]}, ValueError, "seeds=[0, 1, 1] must hold different numbers"),
        ({"memory_limit": 10}, MemoryEstimateError, "the results of 1 widths with 3 networks each needs about"),
        ({"widths": range(1, 10**9), "prediction": lambda N, seed: np.zeros((5, 3))}, MemoryEstimateError, "the results of 999999999 widths"),
    ],
)  # fmt: skip
def test_refusals(change, error, message):
    arguments = {"problem": PROBLEM, "widths": [8], "seeds": 3, "prediction": np.zeros((1, 3, 5, 3))} | change
    with pytest.raises(error, match=re.escape(message)):
        finite_nets.from_predictions(**arguments)
