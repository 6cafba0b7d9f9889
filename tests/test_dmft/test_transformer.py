"""Transformers: their networks against plain PyTorch, torch.nn.MultiheadAttention and an exact recursion; their limits
against the same recursion, independent codes and networks; each with a twin that is wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dmft
import finite_nets
from dmft.engine import loop, matrix
from finite_nets.device.host import usual_torch
from finite_nets.device.precision import PRECISIONS
from finite_nets.training import programs
from oracles import initial_attention, one_block, transformer


def task(samples=2, positions=2, channels=6):
    x = np.random.default_rng(0).normal(size=(samples, positions, channels))
    return dmft.Task(x, [1.0, -1.0] * (samples // 2))


def problem(rate=0.12, steps=9, data=None, **options):
    """By default of two independent codes: beta0 = 1.5, eta = .06 of a loss that is a sum."""
    given = {"blocks": 1, "branch_scale": 1.5, "centered": False} | options
    return dmft.Problem(dmft.Transformer(**given), data or task(), dmft.GradientDescent(rate, steps))


WHOLE = {
    "causal": True,
    "normalization": "layer_norm",
    "positions": "learned",
    "mlp": True,
    "mlp_width": 2.0,
    "readout": "last",
    "blocks": 2,
}
CASES = {
    "heads": {"head_dim": 2},
    "alpha_A = 1/2": {"head_dim": 4, "attention_exponent": 0.5, "rate": 0.03},
    "head_dim": {"heads": 2, "limit": "head_dim"},
    "gains": {"head_dim": 2, "rate": 0.02, **WHOLE, "trained_gain": True},
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
    found = dict(zip(names, theta[: len(names)], strict=True))  # gains, which start from 1, come after them
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
        "norm": None if network.normalization is None else lambda h: torch.nn.functional.layer_norm(h, h.shape[-1:]),
        "last": network.readout == "last",
    }


def trained_by_autograd(given, width=WIDTH):
    """Predictions, attention of heads, and kernels of the streams at initialisation."""
    network, y = given.network, torch.tensor(given.task.y_train)
    x, weights, heads = drawn(given, width)
    rate = given.training.learning_rate * network.gamma0**2 * width
    rate *= network.blocks ** (2 * network.branch_exponent - 1)
    outputs, attention, source = [], [], of_source(network, heads)
    if network.trained_gain:  # in the order in which blocks meet them
        weights |= {f"gain{i}": torch.ones(1, dtype=torch.float64) for i in range(network.blocks * (1 + network.mlp))}
    for _ in range(given.training.steps + 1):
        weights = {name: a.detach().requires_grad_() for name, a in weights.items()}
        gains = iter([a for name, a in weights.items() if name.startswith("gain")])
        if network.trained_gain:
            source["norm"] = lambda h, gains=gains: next(gains) * torch.nn.functional.layer_norm(h, h.shape[-1:])
        streams, sigma, sums = transformer(x, weights, **source)
        f = sums / (network.gamma0 * width)
        outputs.append(f.detach().numpy())
        attention.append(sigma.detach().numpy())
        if len(outputs) == 1:
            norm = of_source(network, heads)["norm"] or (lambda h: h)
            shown = [h.detach().numpy() for h in (*map(norm, streams[:-1]), streams[-1])]
            kernels = np.array([np.einsum("asn,bsn->ab", h, h) / h[0].size for h in shown])
        pushes = torch.autograd.grad(((f - y) ** 2).mean() / 2, list(weights.values()))
        rates = [rate / width if name.startswith("gain") else rate for name in weights]
        weights = {name: a - r * g for (name, a), r, g in zip(weights.items(), rates, pushes, strict=True)}
    assert all(abs(a.item() - 1) > 1e-3 for name, a in weights.items() if name.startswith("gain"))
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


def every_position(loss="squared", **options):
    """Two outputs at each of three positions."""
    x = np.random.default_rng(0).normal(size=(2, 3, 6))
    y = np.random.default_rng(1).choice([-1.0, 1.0], size=(2, 3, 2))
    if loss == "cross_entropy":
        y = np.eye(2)[(y[..., 0] > 0).astype(int)]
    options = {"head_dim": 2, "readout": "every position", "causal": True, "steps": 5} | options
    return dataclasses.replace(problem(data=dmft.Task(x, y.reshape(2, -1)), **options), loss=loss)


def next_token_loss(f, y):
    """Mean over samples of the sum over positions, of logits (sample, position and output)."""
    logits, classes = f.reshape(-1, 3, 2), y.reshape(-1, 3, 2).argmax(-1)
    return torch.nn.functional.cross_entropy(logits.movedim(-1, 1), classes, reduction="sum") / len(f)


VALUES = {"squared": lambda f, y: ((f - y) ** 2).sum(1).mean() / 2, "cross_entropy": next_token_loss}


@pytest.mark.parametrize("loss", VALUES)
def test_outputs_of_every_position_are_those_of_automatic_differentiation(loss):
    given, width = every_position(loss), WIDTH
    asked = ["prediction", "ntk", "loss"] + ["accuracy"] * (loss == "cross_entropy")
    nets = finite_nets.train_ensemble(given, widths=[width], seeds=[4], dtype="float64", observables=asked)
    x, weights, heads = drawn(given)
    weights["w"] = drawn_readout(given)
    y, rate = torch.tensor(given.task.y_train), given.training.learning_rate * width

    def outputs(weights):
        streams, _, _ = transformer(x, weights | {"w": weights["w"][0]}, **of_source(given.network, heads))
        return (streams[-1] @ weights["w"].T / width).flatten(1)  # (position, output)

    found = []
    for step in range(given.training.steps + 1):
        weights = {name: a.detach().requires_grad_() for name, a in weights.items()}
        f = outputs(weights)
        if step == 0:
            rows = [torch.autograd.grad(each, list(weights.values()), retain_graph=True) for each in f.flatten()]
            J = torch.stack([torch.cat([a.flatten() for a in row]) for row in rows])
        found.append(f.detach().numpy())
        lost = VALUES[loss](f, y)
        np.testing.assert_allclose(nets.loss[0, 0, step], lost.item(), rtol=1e-12)
        pushes = torch.autograd.grad(lost, list(weights.values()))
        weights = {name: a - rate * g for (name, a), g in zip(weights.items(), pushes, strict=True)}
    np.testing.assert_allclose(nets.prediction[0, 0], found, atol=1e-12)
    if "accuracy" in asked:
        right = found[-1].reshape(2, 3, 2).argmax(-1) == given.task.y.reshape(2, 3, 2).argmax(-1)
        assert nets.accuracy[0, 0, -1] == pytest.approx(right.mean())
    assert nets.position.values.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(nets.ntk[0, 0, 0].values.reshape(12, 12), width * (J @ J.T), rtol=1e-9, atol=1e-12)
    assert abs(found[-1] - found[0]).max() > 0.1


def drawn_readout(given):
    with usual_torch(torch.device("cpu")):
        trainer = programs.trainer_of(given, torch.device("cpu"), PRECISIONS["float64"])
        drawn = trainer.draw(WIDTH, torch.tensor([4]), 0)[trainer.numbers.readout][0]
    return drawn.clone()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"head_dim": None, "heads": 2, "limit": "head_dim"}, {"loss": "cross_entropy", "rate": 0.5}],
    ids=["heads", "head_dim", "next tokens"],
)
def test_the_limit_of_outputs_of_every_position_is_that_of_networks(options):
    given, counts = every_position(**options), (600, 300)
    theory = dmft.solve(given, particles=1024, scrambles=4, tolerance=1e-3, observables=["prediction", "ntk"])
    nets = [
        finite_nets.train_ensemble(given, widths=[n], seeds=count, observables=["prediction"])
        .prediction[0]
        .astype(float)
        for n, count in zip((32, 64), counts, strict=True)
    ]
    few, many = (each.mean("seed").values for each in nets)
    error = np.hypot(*(f * each.std("seed").values / c**0.5 for f, each, c in zip((1, 2), nets, counts, strict=True)))
    z = (2 * many - few - theory.prediction.values) / np.hypot(error, theory.prediction_se.values)
    assert np.sqrt((z[1:] ** 2).mean()) < 2
    mean = (
        dmft.solve(problem(data=given.task, steps=5, head_dim=2), particles=256, scrambles=2) if not options else None
    )
    assert mean is None or abs(mean.prediction.values - theory.prediction.values).max() > 0.1


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


# ---- many heads ------------------------------------------------------------------------------------------------------

# problem of `problem`, f at steps 1, 3, 5, 9: of 2048 heads by another implementation, standard errors up to .0012,
# and by iterated order parameters with sampled heads (arXiv 2405.15712)
KNOWN, KNOWN_SE = [[0.1955, -0.2993], [0.5268, -0.7491], [0.7736, -0.9919], [0.9497, -1.0226]], 0.0012
AT = [1, 3, 5, 9]
RECORDED = ["prediction", "feature_kernel", "attention", "attention_head_variance"]


@pytest.fixture(scope="module")
def many_heads():
    return dmft.solve(problem(head_dim=2), particles=1024, scrambles=4, tolerance=1e-3, observables=RECORDED)


@pytest.fixture(scope="module")
def many_wider_heads():
    return dmft.solve(problem(head_dim=8), particles=256, scrambles=2, tolerance=1e-3, observables=RECORDED)


def test_the_limit_of_many_heads_is_that_of_independent_codes(many_heads, many_wider_heads):
    error = np.hypot(many_heads.prediction_se.values[AT], KNOWN_SE)
    assert abs((many_heads.prediction.values[AT] - KNOWN) / error).max() < 4
    assert error.max() < 0.004
    assert abs(many_wider_heads.prediction.values[AT] - KNOWN).max() > 0.02  # heads of eight neurons are others


def at_start(Phi, N, beta0, **options):
    """Attention (head, sample, s, t) at initialisation and the kernel of the stream behind it, over equal positions."""
    sigma, P = initial_attention(Phi, 2, N, **options), 2
    after = Phi + beta0**2 * np.einsum("hab,bc,hdc->ad", sigma, Phi, sigma, optimize=True) / len(sigma)
    own = np.stack([sigma[:, i : i + 2, i : i + 2] for i in (0, 2)], axis=1)
    return own, np.einsum("asbs->ab", after.reshape(P, 2, P, 2)) / 2


def test_kernels_and_heads_at_the_start_are_those_of_gaussian_keys_and_queries(many_heads, many_wider_heads):
    rows = task().x.reshape(4, -1)
    for found, N, error in ((many_heads, 2, 0.004), (many_wider_heads, 8, 0.008)):
        sigma, after = at_start(rows @ rows.T / 6, N, 1.5)
        start = found.isel(step=0)
        np.testing.assert_allclose(start.feature_kernel[1], after, atol=0.02)
        np.testing.assert_allclose(start.attention[0], sigma.mean(0), atol=error)
        np.testing.assert_allclose(start.attention_head_variance[0], sigma.var(0), atol=error)
    other, without = at_start(rows @ rows.T / 6, 8, 1.5, alpha_A=0.5)[0].var(0), rows @ rows.T / 6
    assert abs(other - sigma.var(0)).max() > 0.02
    assert abs(np.einsum("asbs->ab", without.reshape(2, 2, 2, 2)) / 2 - after).max() > 0.1


def test_attention_varies_over_heads_by_their_dimension(many_heads, many_wider_heads):
    """As 1 / N with alpha_A = 1, after training too."""
    few, many = (ds.attention_head_variance.isel(step=-1).mean().item() for ds in (many_heads, many_wider_heads))
    assert 1.8 < few / many < 6


class Unresponsive(matrix.RevealedGaussian):
    """What the other side has shown is forgotten: without the response term."""

    def apply(self, v, source, target):
        kept = self.backward
        blind = dataclasses.replace(self, backward=dataclasses.replace(kept, image=jnp.zeros_like(kept.image)))
        shown, *rest = matrix.RevealedGaussian.apply(blind, v, source, target)
        return dataclasses.replace(shown, backward=kept), *rest


@pytest.mark.slow
def test_without_the_response_the_limit_is_another(monkeypatch):
    jax.tree_util.register_dataclass(Unresponsive)

    def made(*given, **options):
        whole = matrix.revealed(*given, **options)
        return Unresponsive(**{f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)})

    monkeypatch.setattr(loop, "revealed", made)
    jax.clear_caches()
    blind = dmft.solve(problem(head_dim=2), particles=1024, scrambles=2, observables=["prediction"])
    jax.clear_caches()
    assert abs(blind.prediction.values[AT] - KNOWN).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("heads", [1, 2])
def test_wide_heads_have_one_limit_whatever_their_number(heads):
    data = task(4, 3, 8)
    given = problem(0.04, 10, data, heads=heads, limit="head_dim", branch_scale=2.0)
    found = dmft.solve(given, particles=2048, scrambles=3, tolerance=1e-3, observables=["prediction", "loss"])
    # by another implementation, whose f(10) has the standard error .0004
    np.testing.assert_allclose(2 * found.loss[[0, 2, 5, 10]], [0.9996, 0.8663, 0.7280, 0.5765], atol=1e-3)
    np.testing.assert_allclose(found.prediction[10], [0.0176, -0.5408, 0.0254, -0.5756], atol=2e-3)


@pytest.mark.slow
def test_what_width_adds_is_the_variance_of_networks_of_many_heads():
    given = problem(head_dim=2)
    found = dmft.fluctuations(
        given, mode="reverse", observables=["prediction"], particles=2048, scrambles=3, save_steps=[2, 5, 9]
    )
    # H Var f of 40,000 networks of 128 heads and as many of 256, relative errors below .01
    nets = np.array([[0.4578, 0.6793], [0.3622, 0.1668], [0.0452, 0.0056]])
    wider = np.array([[0.4616, 0.6767], [0.3598, 0.1572], [0.0425, 0.0054]])
    of_heads = found.prediction_variance.values / 2  # N = 2 H
    np.testing.assert_allclose(of_heads, [[0.473, 0.707], [0.365, 0.149], [0.0418, 0.0054]], rtol=0.05)
    np.testing.assert_allclose(of_heads, nets, rtol=0.15)
    np.testing.assert_allclose(of_heads, wider, rtol=0.1)
    # and what is left falls with the number of heads
    np.testing.assert_allclose(of_heads, 2 * wider - nets, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"head_dim": 2}, {"heads": 2, "limit": "head_dim"}], ids=["heads", "head_dim"])
def test_networks_in_law_are_networks(options):
    given, count = problem(steps=5, **options), 1500
    found = finite_nets.sample_in_law(given, widths=[12], seeds=count, observables=RECORDED)
    nets = finite_nets.train_ensemble(given, widths=[12], seeds=count, observables=RECORDED)
    for name in RECORDED:
        a, b = (ds[name].values[0].reshape(count, -1) for ds in (found, nets))
        varied = b.std(0) > 1e-6
        z = (a.mean(0) - b.mean(0))[varied] / np.sqrt((a.var(0) + b.var(0))[varied] / count)
        assert abs(z).max() < 5, name
    ratio = found.prediction.values[0].var(0)[1:] / nets.prediction.values[0].var(0)[1:]
    np.testing.assert_allclose(ratio, 1, atol=0.3)  # 2 / sqrt(1500), with heavy tails


# ---- what is refused, and what identifies ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, 'limit="heads" keeps head_dim as it is; give head_dim'),
        ({"head_dim": 4, "heads": 2}, 'heads=2 is what grows with limit="heads".*leave it out'),
        ({"heads": 2, "head_dim": 4, "limit": "head_dim"}, 'head_dim=4 is what grows with limit="head_dim"'),
        ({"head_dim": 0}, "head_dim=0 is too small"),
        ({"heads": 0, "limit": "head_dim"}, "heads=0 is too small"),
        ({"head_dim": 4, "blocks": 0}, "blocks=0 is too small"),
        ({"head_dim": 4, "limit": "width"}, "limit='width' is unknown; choose one of 'heads', 'head_dim'"),
        ({"head_dim": 4, "readout": "first"}, "readout='first' is unknown; choose one of 'mean', 'last', 'every pos"),
        ({"head_dim": 4, "positions": "sine"}, "positions='sine' is unknown; choose one of None, 'learned'"),
        ({"head_dim": 4, "attention_exponent": 0.4}, "attention_exponent=0.4 is not between 1/2 and 1"),
        ({"head_dim": 4, "branch_exponent": 2}, "branch_exponent=2.0 is not between 1/2 and 1"),
        (
            {"heads": 2, "limit": "head_dim", "attention_exponent": 0.5},
            "attention_exponent=0.5 has no deterministic limit of head_dim -> infinity: .* trained layers below grows",
        ),
        ({"head_dim": 4, "frozen": ["W1"]}, "frozen holds 'W1'; the weights are W0, K1, Q1, V1, O1, w"),
        ({"head_dim": 4, "parameterization": "standard"}, "parameterization='standard' is not offered"),
        ({"head_dim": 4, "causal": 1}, "causal=1 must be True or False"),
        ({"head_dim": 4, "normalization": "batch"}, "normalization='batch' is unknown; choose one of 'layer_norm'"),
        ({"head_dim": 4, "trained_gain": True}, "trained_gain=True is for a normalisation"),
        ({"head_dim": 4, "mlp_width": 0}, "mlp_width=0"),
    ],
)
def test_transformers_that_are_none_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        dmft.Transformer(**{"blocks": 1, **options})


def test_inputs_without_positions_are_refused():
    with pytest.raises(ValueError, match=r"an input of shape \(6,\) is not \(position, channel\); give inputs"):
        problem(data=dmft.Task(np.ones((2, 6)), [1.0, -1.0]), head_dim=2)
    mlp = dmft.Problem(dmft.MLP(2), dmft.Task(np.eye(2), [1.0, -1.0]), dmft.GradientDescent(0.1, 2))
    with pytest.raises(ValueError, match="MLP has no attention; dmft.Transformer has"):
        dmft.solve(mlp, observables=["attention"])
    with pytest.raises(ValueError, match="width=9 gives the population .* 9 neurons, .* units of 2"):
        finite_nets.train_ensemble(problem(head_dim=2), widths=[9], seeds=2)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1.0, -1.0], "each of 2 positions is read, and targets have 1 output; give y"),
        (np.ones((2, 3)), "each of 2 positions is read, and targets have 3 outputs; .* or a multiple"),
    ],
)
def test_targets_without_every_position_are_refused(y, message):
    data = dmft.Task(task().x, y)
    with pytest.raises(ValueError, match=message):
        problem(data=data, head_dim=2, readout="every position")
    wide = problem(data=dmft.Task(task().x, np.ones((2, 4))), head_dim=2, readout="every position")
    with pytest.raises(ValueError, match="sharpness of the limit is offered where one field is read"):
        dmft.solve(wide, observables=["sharpness"])
    with pytest.raises(ValueError, match="has outputs at every position"):
        dmft.lazy_limit(wide)


def test_transformers_are_known_by_their_fields():
    given = problem(head_dim=2, frozen=["w", "K1"])
    assert given.network.frozen == (1, 5)
    assert dmft.Problem.from_json(given.to_json()) == given
    same = problem(head_dim=2, frozen=[5, 1])
    assert same.problem_id == given.problem_id != problem(head_dim=4, frozen=[5, 1]).problem_id
    both = dmft.vary(given, head_dim=[2, 4], attention_exponent=[0.5, 1])
    assert len({one.problem_id for one in both}) == 4
    deep = dmft.Transformer(2, head_dim=4, attention_exponent=0.5, branch_exponent=1)
    np.testing.assert_allclose(deep.relative_variances(10), [1, *(2 * (2, 2, 0.5, 0.5)), 1])
