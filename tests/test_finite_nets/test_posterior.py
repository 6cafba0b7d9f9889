"""Chains of networks under their posterior: its law, gradients, errors, and the limit of infinite width."""

import numpy as np
import pytest
import torch

import comparisons
import dmft
import finite_nets
from dmft.errors import DivergenceError, NotConvergedError
from finite_nets.posterior.chains import Chains

RELU = dmft.relu(0.5**0.5)  # max(h, 0)


def posed(depth=1, activation=RELU, gamma0=1.0, *, outputs=(), **others):
    """The problem of the measured numbers: six samples with random signs."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 8)), np.sign(rng.normal(size=(6, *outputs)))
    task = dmft.Task(x, y, rng.normal(size=(3, 8)), np.zeros((3, *outputs)))
    network = dmft.MLP(depth, activation, gamma0=gamma0, **others)
    return dmft.Problem(network, task, dmft.GradientDescent(0.1, steps=1))


def chains(problem, *, width=5, count=2, variances=(1.0, 0.5, 2.0), **others):
    settings = {"length": 1.0, "leapfrogs": None, "dtype": torch.float64, "device": torch.device("cpu")} | others
    return Chains(problem, variances=variances, temperature=0.05, width=width, members=range(count), root=0, **settings)


def off(found, expected):
    """Relative distance."""
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("outputs", [(), (2,)])
def test_forces_are_slopes_of_the_energy_written_out(outputs):
    problem = posed(2, dmft.tanh(), gamma0=0.7, outputs=outputs)
    found = chains(problem)
    weights = [w.clone().requires_grad_() for w in found.weights]
    x, y = torch.tensor(problem.task.x_train), torch.tensor(problem.task.targets[:6])
    scaled = [v**0.5 * w for v, w in zip((1.0, 0.5, 2.0), weights, strict=True)]
    h = torch.einsum("mnd,ad->mna", scaled[0], x) / 8**0.5
    h = scaled[1] @ torch.tanh(h) / 5**0.5
    f = (scaled[2] @ torch.tanh(h) / (0.7 * 5)).mT
    loss = ((f - y) ** 2).sum((1, 2)) / 12
    energy = 0.7**2 * 5 / 0.05 * loss + sum((w**2).sum((1, 2)) for w in weights) / 2
    momenta = [torch.zeros_like(w) for w in weights]
    torch.testing.assert_close(found._energy(found.weights, momenta), energy.detach())
    found._kick(found.weights, momenta, 1.0)
    energy.sum().backward()
    for p, w in zip(momenta, weights, strict=True):
        torch.testing.assert_close(-p, w.grad)
    assert not torch.allclose(-momenta[0], found.weights[0])  # the data pull


def test_trajectories_keep_the_energy_to_second_order_of_the_step():
    found = chains(posed(2, dmft.tanh()), width=32, count=4)
    errors = []
    for count in (40, 80):
        q, momenta = [w.clone() for w in found.weights], found._normals()
        start = found._energy(q, momenta)
        found._follow(q, momenta, 1 / count, count)
        errors.append(float((found._energy(q, momenta) - start).abs().mean()))
    assert 3 < errors[0] / errors[1] < 5  # of first order: 2
    assert errors[1] < 0.3


def test_hot_networks_are_those_of_the_prior():
    problem = posed(2, dmft.tanh())
    hot = finite_nets.sample_posterior(problem, widths=[16], seeds=8, temperature=1e6, draws=20, largest_r_hat=3.0)
    cold = finite_nets.sample_posterior(problem, widths=[16], seeds=8, temperature=0.01, draws=20, largest_r_hat=3.0)
    lazy = dmft.lazy_limit(problem)["feature_kernel"][:, 0].values
    assert off(hot["feature_kernel"].mean("seed")[0], lazy) < 0.15
    assert off(cold["feature_kernel"].mean("seed")[0], lazy) > 0.3


def test_results_have_their_form_and_chains_that_differ_are_refused():
    problem = posed(1, outputs=(2,))
    settings = {"widths": [8, 12], "seeds": [3, 5, 7], "temperature": 0.1, "draws": 20, "burn_in": 10}
    found = finite_nets.sample_posterior(problem, **settings, largest_r_hat=5.0)
    assert found["prediction"].dims == ("width", "seed", "sample", "output")
    assert found["prediction_effective_size"].max() <= 60
    again = finite_nets.sample_posterior(problem, **settings, largest_r_hat=5.0)
    np.testing.assert_array_equal(found["prediction"], again["prediction"])
    with pytest.raises(NotConvergedError, match="R-hat") as caught:
        finite_nets.sample_posterior(problem, **settings, largest_r_hat=1.0)
    assert caught.value.estimate.attrs["result"] == "not converged"
    wrong = [({"seeds": 1}, "at least 2"), ({"draws": 5}, "even"), ({"dtype": "bf16"}, "too coarse")]
    wrong += [({"largest_r_hat": 0.9}, "chains that agree have 1"), ({"largest_r_hat": np.nan}, "must be positive")]
    for other, words in wrong:
        with pytest.raises(ValueError, match=words):
            finite_nets.sample_posterior(problem, **settings | other)


def test_chains_that_are_no_numbers_are_no_result(monkeypatch):
    observed = Chains.observed
    problem, settings = posed(1), {"widths": [8], "seeds": 2, "temperature": 0.1, "draws": 8, "largest_r_hat": 1e9}
    finite_nets.sample_posterior(problem, **settings)
    monkeypatch.setattr(Chains, "observed", lambda chains: [a * np.nan for a in observed(chains)])
    with pytest.raises(DivergenceError, match="R-hat=nan"):
        finite_nets.sample_posterior(problem, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "activation", "gamma0", "width", "tolerance"),
    [(2, dmft.linear(), 1.0, 100, 0.04), (1, RELU, 1.0, 400, 0.02), (2, RELU, 0.6, 200, 0.04)],
)
def test_networks_have_the_adapted_kernels_of_infinite_width(depth, activation, gamma0, width, tolerance):
    problem = posed(depth, activation, gamma0)
    theory = dmft.adaptive_kernel(problem, temperature=1 / 120, device="cpu")
    nets = finite_nets.sample_posterior(problem, widths=[width], seeds=8, temperature=1 / 120, draws=200, device="cpu")
    kernels, lazy = nets["feature_kernel"].mean("seed")[0].values, dmft.lazy_limit(problem)["feature_kernel"][:, 0]
    for layer in range(depth):
        assert off(theory["feature_kernel"][layer, :6, :6], kernels[layer, :6, :6]) < tolerance
        assert off(lazy[layer, :6, :6], kernels[layer, :6, :6]) > 2 * tolerance
    deviation = (nets["prediction"].mean("seed")[0] - theory["prediction"]).values
    assert np.abs(deviation).max() < 0.03 + 3 * float(nets["prediction_se"].max())
    if activation is RELU and depth == 1:
        np.testing.assert_allclose(theory["prediction"][6:], [0.679, 1.133, -0.007], atol=0.03)


def test_networks_stand_beside_the_limit_of_their_problem_and_temperature():
    problem = posed(2, dmft.linear())
    theory = dmft.adaptive_kernel(problem, temperature=0.05)
    settings = {"widths": [64], "seeds": 4, "draws": 40, "largest_r_hat": 3.0}
    nets = finite_nets.sample_posterior(problem, temperature=0.05, **settings)
    found = comparisons.posterior(theory, nets)
    assert found["feature_kernel_error"].max() < 0.15
    assert abs(found["prediction_z"]).max() < 6
    assert found["test_loss_deviation"].dims == ("width",)
    cold = dmft.adaptive_kernel(problem, temperature=0.005)
    with pytest.raises(ValueError, match="take the same"):
        comparisons.posterior(cold, nets)
    cold.attrs["temperature"] = 0.05  # what a wrong limit looks like
    assert comparisons.posterior(cold, nets)["feature_kernel_error"].max() > 0.2
