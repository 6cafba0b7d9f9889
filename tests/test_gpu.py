"""On a GPU: the same results as on the CPU, to rounding.  Run with `pytest -m gpu`."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

import comparisons
import dmft
import finite_nets
from conftest import reference_problem
from dmft.drivers import layout
from dmft.engine import basis, scrambles
from finite_nets.device import chip
from finite_nets.ensembles import on_chip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-9), ("float32", 2e-3)])
@pytest.mark.parametrize("activation", [dmft.tanh(0.8), dmft.relu(), dmft.gelu()], ids=lambda a: a.name)
def test_networks(activation, dtype, rtol):
    problem = dataclasses.replace(reference_problem(), network=dmft.MLP(3, activation))
    on = {
        device: finite_nets.train_ensemble(
            problem, widths=[16, 100], seeds=8, device=device, dtype=dtype, two_time=True
        )
        for device in ("cpu", "cuda")
    }
    assert on["cuda"].attrs["device"].startswith("cuda")
    for name in on["cpu"].data_vars:
        # the same bits of the generator; logarithms, sines and the order of sums differ in the last digits
        scale = abs(on["cpu"][name]).max().item()
        np.testing.assert_allclose(on["cuda"][name], on["cpu"][name], rtol=rtol, atol=rtol * scale)


ON_CHIP = {
    "tanh": (dmft.MLP(2), "squared", {}),
    "three layers, decay": (dmft.MLP(3, dmft.gelu(), weight_variance=0.8), "squared", {"weight_decay": 0.05}),
    "logistic": (dmft.MLP(2, dmft.softplus(1.3)), "logistic", {}),
    "hinge, frozen": (dmft.MLP(2, dmft.relu(), frozen=(0,)), "hinge", {}),
}


# by multiply-adds and by tensor units
@pytest.mark.parametrize(
    ("width", "samples"),
    [(28, 9), (32, 16), (64, 5), (64, 16), (92, 16), (128, 5), (128, 16), (64, 24), (44, 16), (76, 60), (124, 60)],
)
@pytest.mark.parametrize("name", ON_CHIP)
def test_networks_on_chip(monkeypatch, name, width, samples):
    network, kind, more = ON_CHIP[name]
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((samples, 12)), np.sign(rng.standard_normal(samples))
    task = dmft.Task(x[:-3], y[:-3], x[-3:], y[-3:])
    problem = dmft.Problem(network, task, dmft.GradientDescent(0.3, 6, **more), kind)
    arguments = {"widths": [width], "seeds": 300, "seed": 5, "device": "cuda", "save_steps": [0, 1, 3, 6]}
    if (network.depth, samples) == (3, 60):  # kernels ask for more shared memory than there is
        arguments["observables"] = ["prediction", "loss"]
    exact = finite_nets.train_ensemble(problem, dtype="float64", **arguments)
    chips, train = [], chip.Chip.train
    monkeypatch.setattr(chip.Chip, "train", lambda self, *given: chips.append(self) or train(self, *given))
    found = finite_nets.train_ensemble(problem, **arguments)
    assert len(chips) == 1
    monkeypatch.setattr(on_chip, "served", lambda *_: None)
    before = finite_nets.train_ensemble(problem, **arguments)
    assert len(chips) == 1
    for variable in exact.data_vars:
        # of a member, float32; kinks may be passed on either side, by few
        scale = float(abs(exact[variable]).max())
        for other in (exact, before):
            differs = abs(found[variable].astype(float) - other[variable]) / scale
            assert float((differs > 2e-5).mean()) < (2e-2 if "relu" in str(network) else 1e-9), variable
    assert abs(found.prediction.astype(float) - exact.prediction).max() > 0


def test_theory():
    problem = reference_problem()
    on = {device: dmft.solve(problem, device=device, two_time=True) for device in ("cpu", "gpu")}
    assert on["gpu"].attrs["device"].startswith(("gpu", "cuda"))
    for name in ("prediction", "feature_kernel", "gradient_kernel", "ntk", "gradient_kernel_two_time"):
        # float64 on both; a direction near the tolerance may be kept on one and dropped on the other
        assert abs(on["gpu"][name] - on["cpu"][name]).max() < 1e-8


@pytest.mark.parametrize("images", [False, True])
def test_theory_by_kernels(monkeypatch, images):
    """Products and factors of our own, against those of XLA."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((10, 6, 3) if images else (20, 12)), rng.standard_normal(10 if images else 20)
    network = dmft.CNN(2, 3, dmft.tanh()) if images else dmft.MLP(3)
    problem = dmft.Problem(network, dmft.Task(x, y), dmft.GradientDescent(0.3, 5))
    solve = partial(dmft.solve, problem, particles=2048 if images else 512, scrambles=2, tolerance=1e-3, device="gpu")
    monkeypatch.setenv("DMFT_EXECUTABLES", "off")  # which do not know what is changed here
    whole, laid, choose = solve(), [], layout.choose
    monkeypatch.setattr(layout, "choose", lambda *given: laid.append(choose(*given)) or laid[-1])
    monkeypatch.setattr(layout, "KERNELS_FROM", 0)
    monkeypatch.setattr(basis, "LARGE", 1)
    found = solve()
    assert laid[0].by_kernels or torch.cuda.get_device_capability() != (9, 0)
    assert found.attrs["directions"] == whole.attrs["directions"]
    assert abs(found.prediction - whole.prediction).max() < 1e-11


def test_scrambles():
    """To the last bit."""

    def drawn(on_gpu):
        seeds = [[np.random.SeedSequence((i, j)) for j in range(2)] for i in range(2)]
        return scrambles.scrambled_of_each([6401, 33], 4096, seeds, [6401, 40], on_gpu=on_gpu)

    for host, device in zip(drawn(False), drawn(True), strict=True):
        for a, b in zip(host, device, strict=True):
            np.testing.assert_array_equal(a, b)


def test_batches_fill_the_memory_that_is_allowed():
    problem = reference_problem()
    few, many = (
        finite_nets.train_ensemble(problem, widths=[64], seeds=500, device="cuda", memory_limit=limit, dtype="float64")
        for limit in (40 * 2**20, None)
    )
    np.testing.assert_allclose(few.prediction, many.prediction, rtol=1e-9)


def test_memory_is_given_back_when_networks_are_trained():
    torch.cuda.reset_peak_memory_stats()
    finite_nets.train_ensemble(reference_problem(), widths=[512], seeds=4000, device="cuda")
    assert torch.cuda.max_memory_reserved() > 2**30
    assert torch.cuda.memory_reserved() < 2**28


def test_the_whole_path():
    problem = reference_problem()
    nets = finite_nets.train_ensemble(problem, widths=[128, 256, 512], seeds=2000)
    found = comparisons.compare(dmft.solve(problem), nets)
    assert abs(found.sel(width=512).prediction_z).max() < 6
    assert abs(found.prediction_variance_exponent + 1) < 5 * found.prediction_variance_exponent_se


@pytest.mark.parametrize("activation", [dmft.tanh(0.8), dmft.relu(), dmft.linear()], ids=lambda a: a.name)
def test_fluctuations(activation):
    problem = dataclasses.replace(reference_problem(), network=dmft.MLP(2, activation))
    arguments = {"particles": 512, "draws": 16, "scrambles": 2, "covariance": True}
    on = {device: dmft.fluctuations(problem, device=device, **arguments) for device in ("cpu", "gpu")}
    for name in on["cpu"].data_vars:
        # float64; differences of runs amplify rounding by up to S, bases found by backward passes by more
        scale = abs(on["cpu"][name]).max().item()
        np.testing.assert_allclose(on["gpu"][name], on["cpu"][name], atol=1e-5 * scale, err_msg=name)


def test_networks_in_law():
    on = {
        device: finite_nets.sample_in_law(reference_problem(), widths=[40, 300], seeds=5, device=device, two_time=True)
        for device in ("cpu", "gpu")
    }
    for name in on["cpu"].data_vars:
        np.testing.assert_allclose(on["gpu"][name], on["cpu"][name], atol=1e-7, err_msg=name)
    wide = finite_nets.sample_in_law(reference_problem(), widths=[2**20], seeds=2, observables=["prediction"])
    limit = dmft.solve(reference_problem()).prediction
    # N Var is below one
    assert abs(wide.prediction.isel(width=0) - limit).max() < 5e-3


RANDOM = {
    "one pass": (dmft.RandomFeatures(10), dmft.GradientDescent(0.2, 20), {"batch": 8}),
    "drawn again": (dmft.RandomFeatures(10), dmft.GradientDescent(0.2, 20, momentum=0.5), {"samples": 12, "batch": 8}),
    "contours": (dmft.RandomFeatures(10), dmft.GradientFlow(1.0, (1.0, 100.0)), {"samples": 12}),
    "rich": (dmft.ProjectedLinear(10, 0.5), dmft.GradientDescent(0.1, 20), {"samples": 12}),
    "rich flow": (dmft.ProjectedLinear(10, 0.5), dmft.GradientFlow(1.0, (0.5, 1.0)), {"samples": 12}),
    "deep": (dmft.DeepLinear(2, 0.5), dmft.GradientDescent(0.02, 10, momentum=0.5), {"samples": 30}),
    "residual": (dmft.DeepLinear(3, 1.0, branch=1.0), dmft.GradientDescent(0.02, 10), {"batch": 20}),
}


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-10), ("float32", 1e-4)])
@pytest.mark.parametrize("name", RANDOM)
def test_networks_of_random_data(name, dtype, rtol):
    model, training, data = RANDOM[name]
    spectrum = dmft.random_data.power_law(20, 1.3, 1.4)
    problem = dmft.Problem(model, dmft.RandomData(spectrum, noise=0.05, **data), training)
    on = {
        device: finite_nets.train_ensemble(problem, scales=[1, 4], seeds=30, device=device, dtype=dtype)
        for device in ("cpu", "cuda")
    }
    for loss in ("loss", "test_loss"):
        # the same draws; rounding, relative to the initial loss
        np.testing.assert_allclose(on["cuda"][loss], on["cpu"][loss], rtol=0, atol=rtol * float(on["cpu"][loss].max()))
    fresh = finite_nets.train_ensemble(problem, scales=[1, 4], seeds=30, seed=1, device="cuda", dtype=dtype)
    assert abs(fresh["test_loss"] - on["cpu"]["test_loss"]).max() > 100 * rtol
