"""Transformers: their networks against plain PyTorch, torch.nn.MultiheadAttention and an exact recursion; their limits
against the same recursion, independent codes and networks; each with a twin that is wrong."""

import numpy as np
import pytest
import torch

import dmft
import finite_nets
from finite_nets.device.host import usual_torch
from finite_nets.device.precision import PRECISIONS
from finite_nets.training import programs
from oracles import one_block, transformer

RNG = np.random.default_rng(0)
PREDICTION = ["prediction"]


def task(samples=2, positions=2, channels=6):
    x = np.random.default_rng(0).normal(size=(samples, positions, channels))
    return dmft.Task(x, [1.0, -1.0] * (samples // 2))


def problem(rate=0.12, steps=9, data=None, **options):
    """By default of two independent codes: beta0 = 1.5, eta = .06 of a loss that is a sum."""
    given = {"blocks": 1, "branch_scale": 1.5, "centered": False} | options
    return dmft.Problem(dmft.Transformer(**given), data or task(), dmft.GradientDescent(rate, steps))


WHOLE = {"causal": True, "positions": "learned", "mlp": True, "mlp_width": 2.0, "readout": "last", "blocks": 2}
CASES = {
    "heads": {"head_dim": 2},
    "alpha_A = 1/2": {"head_dim": 4, "attention_exponent": 0.5, "rate": 0.03},
    "head_dim": {"heads": 2, "limit": "head_dim"},
    "all of it": {"head_dim": 2, "rate": 0.02, **WHOLE},
    "all of it, head_dim": {"heads": 2, "limit": "head_dim", "rate": 0.02, "branch_exponent": 0.5, **WHOLE},
}
WIDTH = 8


# ---- networks against plain PyTorch ----------------------------------------------------------------------------------


def drawn(given, width=WIDTH):
    """The weights of one network by name, in the parameterization of the source: rows and columns of heads side by
    side, standard deviations as of `oracles.transformer`; and the number of heads."""
    network = given.network
    with usual_torch(torch.device("cpu")):
        trainer = programs.trainer_of(given, torch.device("cpu"), PRECISIONS["float64"])
        theta = [a[0].clone() for a in trainer.draw(width, torch.tensor([4]), 0)]
    L, names = network.blocks, network.weights
    # inputs are read in an orthonormal basis of their span
    read = torch.tensor(np.asarray(network.inputs(given.task.x)))
    theta[0] = torch.linalg.lstsq(read.flatten(0, 1), trainer.x.flatten(0, 1) @ theta[0].T).solution.T
    if network.head_dim is None:
        neurons = torch.arange(width).reshape(-1, network.heads).T.flatten()
        for name, number in names.items():
            if name[0] in "KQV":
                theta[number] = theta[number][neurons]
            elif name[0] == "O":
                theta[number] = theta[number][:, neurons]
    found = dict(zip(names, theta, strict=True))
    c = L ** (network.branch_exponent - 0.5)
    weights = {name: a * c for name, a in found.items()}  # of W0 and w, 1 / eps = c
    weights["w"] = weights["w"][0]
    return read, weights, network.heads or width // network.head_dim


def of_source(network, heads):
    """Arguments of `oracles.transformer`."""
    return {
        "heads": heads,
        "alpha_A": network.attention_exponent,
        "alpha_L": network.branch_exponent,
        "beta0": network.branch_scale,
        "causal": network.causal,
        "mlp": torch.nn.functional.gelu if network.mlp else None,
        "last": network.readout == "last",
    }


def trained_by_autograd(given, width=WIDTH):
    """Predictions, attention of heads, and kernels of the streams at initialisation."""
    network, y = given.network, torch.tensor(given.task.y_train)
    x, weights, heads = drawn(given, width)
    rate = given.training.learning_rate * network.gamma0**2 * width
    rate *= network.blocks ** (2 * network.branch_exponent - 1)
    outputs, attention = [], []
    for _ in range(given.training.steps + 1):
        weights = {name: a.detach().requires_grad_() for name, a in weights.items()}
        streams, sigma, sums = transformer(x, weights, **of_source(network, heads))
        f = sums / (network.gamma0 * width)
        outputs.append(f.detach().numpy())
        attention.append(sigma.detach().numpy())
        if len(outputs) == 1:
            kernels = np.array(
                [np.einsum("asn,bsn->ab", h, h) / h[0].size for h in (h.detach().numpy() for h in streams)]
            )
        pushes = torch.autograd.grad(((f - y) ** 2).mean() / 2, list(weights.values()))
        weights = {name: a - rate * g for (name, a), g in zip(weights.items(), pushes, strict=True)}
    return np.array(outputs), np.array(attention), kernels


@pytest.mark.parametrize("name", CASES)
def test_networks_are_those_of_automatic_differentiation(name):
    given = problem(**CASES[name])
    asked = ["prediction", "feature_kernel", "attention", "attention_head_variance"]
    nets = finite_nets.train_ensemble(given, widths=[WIDTH], seeds=[4], dtype="float64", observables=asked)
    outputs, attention, kernels = trained_by_autograd(given)
    np.testing.assert_allclose(nets.prediction[0, 0], outputs, atol=1e-12)
    assert abs(outputs[-1] - outputs[0]).max() > 0.1
    np.testing.assert_allclose(nets.feature_kernel[0, 0].isel(step=0), kernels, rtol=1e-10)
    found = nets.isel(width=0, seed=0).transpose("step", "attention_layer", ...)
    heads = np.moveaxis(attention, 3, 0)  # (head, step, block, sample, s, t)
    np.testing.assert_allclose(found.attention, heads.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.attention_head_variance, heads.var(0), atol=1e-12)
    assert heads.var(0).max() > 1e-4


@pytest.mark.parametrize("name", ["heads", "alpha_A = 1/2"])
def test_a_block_is_that_of_pytorch(name):
    given = problem(**CASES[name])
    x, weights, H = drawn(given)
    network, N = given.network, given.network.head_dim
    (h, after), _, _ = transformer(x, weights, **of_source(network, H))
    theirs = torch.nn.MultiheadAttention(WIDTH, H, bias=False, batch_first=True, dtype=torch.float64)
    scale = N ** (network.attention_exponent - 1.5) * H**-0.5
    # its query is our key; its scores are q . k / sqrt(N)
    parts = [weights["K1"] * scale * N ** (0.5 - network.attention_exponent), weights["Q1"] * scale]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([*parts, weights["V1"] / WIDTH**0.5]))
        theirs.out_proj.weight.copy_(weights["O1"] / WIDTH**0.5)
        np.testing.assert_allclose(h + network.branch_scale * theirs(h, h, h)[0], after, atol=1e-12)
        assert abs(h + theirs(h, h, h)[0] - after).max() > 0.1


# ---- the exact recursion ---------------------------------------------------------------------------------------------


def frozen_ends(exponent=1.0, **options):
    data = task(4, 3, 8)
    return problem(0.4, 12, data, branch_scale=2.0, attention_exponent=exponent, frozen=["W0", "w"], **options)


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_networks_with_frozen_ends_follow_the_recursion_of_their_heads(exponent):
    given, width, N = frozen_ends(exponent, head_dim=4), 32, 4
    nets = finite_nets.train_ensemble(
        given, widths=[width], seeds=[4], dtype="float64", observables=["prediction", "attention"]
    )
    x, weights, H = drawn(given, width)
    stream = (x @ weights["W0"].T).flatten(0, 1)

    def by_head(name):
        return (stream @ weights[name].T / width**0.5).unflatten(-1, (H, N)).movedim(1, 0).numpy()

    k, q = (by_head(name) * N ** (exponent - 1) for name in ["K1", "Q1"])
    v, o = by_head("V1"), (weights["O1"].T @ weights["w"] / width**0.5).reshape(H, N).numpy()

    def gram(a, b):
        return np.einsum("han,hbn->hab", a, b) / N

    grams = {"V": gram(v, v), "K": gram(k, k), "Q": gram(q, q), "A": gram(k, q) * N ** (1 - exponent)}
    grams |= {"F": np.einsum("han,hn->ha", v, o) / N, "Z": (o**2).mean(1)}
    skip = ((stream @ weights["w"]) / width).reshape(4, 3).mean(1).numpy()
    exact = {"N": N, "eta": 0.1, "beta0": 2.0, "alpha_A": exponent, "w2": float((weights["w"] ** 2).mean())}
    Kx = (stream @ stream.T / width).numpy()
    f, sigma = one_block(grams, Kx, given.task.y_train - skip, 13, **exact)
    np.testing.assert_allclose(nets.prediction[0, 0], f + skip, atol=1e-10)
    np.testing.assert_allclose(nets.attention[0, 0, 0], sigma.mean(1), atol=1e-10)
    assert abs(f[-1] - f[0]).max() > 0.1
    other, _ = one_block(grams, Kx, given.task.y_train - skip, 13, **exact | {"N": 1e9})  # without tau
    assert (abs(other - f).max() > 1e-4) == (exponent == 0.5)


def test_wide_heads_with_frozen_ends_are_one_head_of_the_recursion():
    """Scores vanish at initialisation, all heads are alike, and everything follows from K^x."""
    given = frozen_ends(heads=2, limit="head_dim")
    names = ["prediction", "attention", "attention_head_variance"]
    theory = dmft.solve(given, particles=512, scrambles=2, tolerance=1e-2, observables=names)
    rows = given.task.x.reshape(12, -1)
    Kx, one = rows @ rows.T / 8, np.ones(1)
    grams = {"V": Kx[None], "K": Kx[None], "Q": Kx[None], "A": 0 * Kx[None], "F": np.zeros((1, 12)), "Z": one}
    f, sigma = one_block(grams, Kx, given.task.y_train, 13, N=np.inf, eta=0.1, beta0=2.0)
    np.testing.assert_allclose(theory.prediction, f, atol=0.01)  # of 512 particles
    np.testing.assert_allclose(theory.attention[0], sigma[:, 0], atol=0.01)
    assert theory.attention_head_variance.max() < 1e-3
    assert abs(f[-1]).max() > 0.3
    assert abs(sigma[-1] - 1 / 3).max() > 0.05
