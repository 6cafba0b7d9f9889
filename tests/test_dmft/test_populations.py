"""Populations of other widths and of units of several neurons: networks against plain automatic differentiation, the
limit, networks in law and what 1/N adds against networks; each with a twin that forgets a factor."""

import json
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dmft
import finite_nets
from dmft.drivers import run as run_module
from dmft.drivers.room import memory_estimate
from dmft.drivers.run import Run
from dmft.engine import bank, curvature, loop, matrix, network, normals, ntk, population
from dmft.finite_width import influence
from finite_nets.device.host import usual_torch
from finite_nets.device.precision import PRECISIONS
from finite_nets.training import needs, programs

RNG = np.random.default_rng(0)
KERNELS = ("feature_kernel", "gradient_kernel", "ntk")


def divided(xp, h, square):
    return xp.tanh(h / xp.sqrt(square + 0.3))


@dataclass(frozen=True)
class Branched(dmft.Architecture):
    """A residual stream, divided by its size, with branches of `ratio` times as many neurons and a bias in them."""

    ratio: float = 2.0
    blocks: int = 2
    gamma0: float = 1.2
    centered: bool = True

    def program(self, net, x):
        h = net.read("W0", x, to="stream")
        for n in range(self.blocks):
            branch = dmft.Population(("branch", n), width=self.ratio)
            shown = net.layer(h, net.local(divided, h, net.average(h, h)))
            u = net.apply(f"U{n}", shown, to=branch) + 0.5 * net.vector(f"b{n}", of=branch)
            h = h + net.apply(f"V{n}", net.layer(u, net.activate(dmft.tanh(), u)), to="stream")
        return net.layer(h, net.activate(dmft.tanh(), h))


@dataclass(frozen=True)
class Funnel(dmft.Architecture):
    """Positions, banks of matrices between populations of 2 N, N and N / 2 neurons, a readout of the last."""

    gamma0: float = 1.4
    centered: bool = False
    parameterization: str = "mean_field"

    def inputs(self, x):
        return x / np.sqrt(x.shape[-1])

    def program(self, net, x):
        h = net.read("W0", x, to=dmft.Population("wide", width=2))
        h = net.apply("W1", net.layer(h, net.activate(dmft.tanh(), h)), to="middle", mix=MIX)
        narrow = dmft.Population("narrow", width=0.5)
        h = net.apply("W2", net.layer(h, net.activate(dmft.erf(), h)), to=narrow, mix=MIX)
        return net.mix(net.layer(h, net.activate(dmft.tanh(), h)), np.full(3, 1 / 3))


MIX = np.stack([np.eye(3), np.eye(3, k=1)]) / np.sqrt(2)


def attended(xp, k, q, v):
    """Of every head sum_t softmax_t(k_s q_t) v_t, products averaged over its components."""
    scores = xp.einsum("...shn,...thn->...sth", k, q) / k.shape[-1]
    weights = xp.exp(scores - xp.amax(scores, -2)[..., None, :])
    return xp.einsum("...sth,...thn->...shn", weights / weights.sum(-2)[..., None, :], v)


@dataclass(frozen=True)
class Attention(dmft.Architecture):
    """One block of heads of `keys` components, all weights trained."""

    keys: int = 2
    branch: float = 1.5
    gamma0: float = 1.0
    centered: bool = False

    def inputs(self, x):
        return x / np.sqrt(x.shape[-1])

    def program(self, net, x):
        heads = dmft.Population("heads", group=self.keys)
        h = net.read("W0", x, to="stream")
        k, q, v = (net.apply(f"W{name}", h, to=heads) for name in "KQV")
        h = h + self.branch * net.apply("WO", net.layer(v, net.local(attended, k, q, v)), to="stream")
        return net.mix(net.layer(h, h), np.full(x.shape[-2], 1 / x.shape[-2]))


def branched(**options):
    x = np.random.default_rng(1).standard_normal((3, 5))
    return dmft.Problem(Branched(**options), dmft.Task(x, [1.0, -1.0, 1.0]), dmft.GradientDescent(0.6, 5))


def funnel(**options):
    x = np.random.default_rng(2).standard_normal((3, 3, 4))
    return dmft.Problem(Funnel(**options), dmft.Task(x, [1.0, -1.0, 1.0]), dmft.GradientDescent(0.8, 5))


def attention(steps=5, **options):
    """Of the checks of transformers by two independent codes: P=2, S=2, D=6, eta=.06 of a loss that is a sum."""
    x = np.random.default_rng(0).normal(size=(2, 2, 6))
    return dmft.Problem(Attention(**options), dmft.Task(x, [1.0, -1.0]), dmft.GradientDescent(0.12, steps))


# ---- networks against plain automatic differentiation ----------------------------------------------------------------


def averaged(a, b):
    return (a * b).mean(-1, keepdim=True)


def branched_by_torch(x, W0, U0, V0, U1, V1, w, b0, b1):
    h, seen = x @ W0.T, []
    for U, V, b in ((U0, V0, b0), (U1, V1, b1)):
        shown = torch.tanh(h / torch.sqrt(averaged(h, h) + 0.3))
        u = shown @ U.T / U.shape[1] ** 0.5 + 0.5 * b
        seen += [(h, shown), (u, torch.tanh(u))]
        h = h + torch.tanh(u) @ V.T / V.shape[1] ** 0.5
    return [*seen, (h, torch.tanh(h))], torch.tanh(h) @ w.T


def funnel_by_torch(x, W0, W1, W2, w):
    mix, h, seen = torch.tensor(MIX), x @ W0.T, []
    for W, phi in ((W1, torch.tanh), (W2, torch.erf)):
        seen.append((h, phi(h)))
        N = h.shape[-1]
        h = sum(m @ phi(h) @ W[:, k * N : (k + 1) * N].T for k, m in enumerate(mix)) / N**0.5
    return [*seen, (h, torch.tanh(h))], torch.tanh(h).mean(1) @ w.T


def attention_by_torch(x, W0, WK, WQ, WV, WO, w):
    h = x @ W0.T
    k, q, v = (h @ W.T / W.shape[1] ** 0.5 for W in (WK, WQ, WV))
    heads = []
    for n in range(0, len(WK), 2):  # one head after the other
        part = slice(n, n + 2)
        scores = k[..., part] @ q[..., part].mT / 2
        heads.append(torch.softmax(scores, -1) @ v[..., part])
    m = torch.cat(heads, -1)
    out = h + 1.5 * m @ WO.T / WO.shape[1] ** 0.5
    return [(v, m), (out, out)], out.mean(1) @ w.T


CASES = {
    "branches": (branched, branched_by_torch, 6),
    "branches of thirds": (lambda: branched(ratio=1 / 3), branched_by_torch, 6),
    "funnel": (funnel, funnel_by_torch, 6),
    "funnel, ntk": (lambda: funnel(parameterization="ntk"), funnel_by_torch, 6),
    "attention": (attention, attention_by_torch, 6),
}


def drawn(problem, width):
    """What is read, and the weights of one network by number."""
    with usual_torch(torch.device("cpu")):
        trainer = programs.trainer_of(problem, torch.device("cpu"), PRECISIONS["float64"])
        theta = trainer.draw(width, torch.tensor([4]), 0)
    return trainer.x.clone(), [a[0].clone() for a in theta]


def by_autograd(problem, forward, width):
    """Predictions of all steps; feature kernels, gradient kernels and NTK at initialisation, by their definitions."""
    x, theta = drawn(problem, width)
    gamma0, y = problem.network.gamma0, torch.tensor(problem.task.y_train)
    top = theta[problem.sketch.readout_layer].shape[-1]
    mean_field = problem.network.parameterization == "mean_field"
    scale, rate = (gamma0 * top, gamma0**2 * width) if mean_field else (gamma0 * top**0.5, gamma0**2)
    theta = [a.clone().requires_grad_() for a in theta]
    seen, output = forward(x, *theta)
    f = output[:, 0] / scale
    slopes = torch.autograd.grad(f.sum(), [h for h, _ in seen], retain_graph=True)  # rows do not mix
    jacobian = [torch.autograd.grad(each, theta, retain_graph=True) for each in f]
    flat = torch.stack([torch.cat([a.flatten() for a in row]) for row in jacobian])
    kernels = {"ntk": rate * flat @ flat.T, "feature_kernel": [], "gradient_kernel": []}
    for (h, phi), slope in zip(seen, slopes, strict=True):
        N, flat_phi, g = h.shape[-1], phi.flatten(1), h.shape[-1] * scale / top * slope.flatten(1)
        kernels["feature_kernel"].append(flat_phi @ flat_phi.T / flat_phi.shape[1])
        kernels["gradient_kernel"].append(g @ g.T / N)
    offset, found = f.detach() * problem.network.centered, []
    for _ in range(problem.training.steps + 1):
        f = forward(x, *theta)[1][:, 0] / scale - offset
        found.append(f.detach().numpy())
        pushes = torch.autograd.grad(((f - y) ** 2).mean() / 2, theta)
        theta = [
            (a - problem.training.learning_rate * rate * g).detach().requires_grad_()
            for a, g in zip(theta, pushes, strict=True)
        ]
    stacked = {name: torch.stack(v) if isinstance(v, list) else v for name, v in kernels.items()}
    return np.array(found), {name: v.detach().numpy() for name, v in stacked.items()}


@pytest.mark.parametrize("name", CASES)
def test_networks_are_those_of_automatic_differentiation(name):
    make, forward, width = CASES[name]
    problem = make()
    nets = finite_nets.train_ensemble(
        problem, widths=[width], seeds=[4], dtype="float64", observables=["prediction", *KERNELS]
    )
    expected, kernels = by_autograd(problem, forward, width)
    np.testing.assert_allclose(nets.prediction[0, 0], expected, atol=1e-13)
    assert abs(expected[-1] - expected[0]).max() > 0.02
    for kernel, value in kernels.items():
        found = nets[kernel][0, 0].isel(step=0)
        np.testing.assert_allclose(found, value, rtol=1e-10, atol=1e-12, err_msg=kernel)


def test_networks_with_the_rates_of_one_width_are_others(monkeypatch):
    monkeypatch.setattr(programs.ProgramTrainer, "_share", lambda *_: 1.0)
    nets = finite_nets.train_ensemble(funnel(), widths=[6], seeds=[4], dtype="float64", observables=["prediction"])
    expected, _ = by_autograd(funnel(), funnel_by_torch, 6)
    assert abs(nets.prediction[0, 0] - expected).max() > 1e-2


def with_weights_of_a_network(problem, width):
    """The engine's network, rule and form, with explicit matrices."""
    given, theta = drawn(problem, width)
    theta, sketch, sizes = [a.numpy() for a in theta], problem.sketch, problem.sketch.sizes(width)
    rule, form = loop.rule_of(problem), loop.form_of(problem)
    x, count = rule.inputs.reshape(-1, rule.inputs.shape[-1]), sketch.readout_layer
    images = given.flatten(0, -2).numpy() @ theta[0].T
    matrices = []
    for part in sketch.matrices:
        W = theta[part.layer]
        banked = W.reshape(len(W), part.bank, -1).swapaxes(0, 1) if part.bank else None
        matrices.append(matrix.Explicit(jnp.asarray(W)) if banked is None else bank.ExplicitBank(jnp.asarray(banked)))
    start = network.Network(
        reads=(jnp.asarray(np.linalg.lstsq(x, images, rcond=None)[0]),),
        matrices=tuple(matrices),
        vectors=tuple(map(jnp.asarray, theta[count + 1 :])),
        readout=jnp.asarray(theta[count]),
        populations=tuple(
            # explicit matrices ask for no raw normals
            population.particles(
                normals.Stored(jnp.asarray(np.zeros((0, size // said.components))), jax.random.key(0)), said.components
            )
            for size, said in zip(sizes, sketch.described, strict=True)
        ),
        offset=jnp.asarray(np.zeros((problem.task.n_samples, 1))),
        sketch=sketch,
    )
    return start, rule, form


def explicit(problem, width):
    """The engine on the weights of a network: what `loop.advance` records, by name."""
    start, rule, form = with_weights_of_a_network(problem, width)
    steps = problem.training.steps + 1
    # each compiled as a whole
    room = jax.jit(lambda *given: loop.empty_history(*given, form, range(steps), two_time=True))(start, rule)
    end, history = loop.advance(start, room, rule, 0, steps, form=form)
    found = jax.jit(lambda *given: loop.recorded(*given, form))(end, history, rule)
    return found | {"prediction": history.vitals.prediction}


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "branches of thirds" else name
        for name in CASES
        if not name.endswith("ntk")
    ],
)
def test_the_engine_on_the_weights_of_a_network_is_that_network(name):
    make, _, width = CASES[name]
    nets = finite_nets.train_ensemble(make(), widths=[width], seeds=[4], dtype="float64", two_time=True)
    found = explicit(make(), width)
    kernels = ("feature_kernel", "gradient_kernel")
    for name in ("prediction", "ntk", *kernels, *(f"{kernel}_two_time" for kernel in kernels)):
        np.testing.assert_allclose(found[name], nets[name][0, 0], rtol=1e-8, atol=1e-11, err_msg=name)


def largest_curvature(name):
    """Of one network at initialisation: the largest eigenvalue of its dense Hessian times the rate."""
    make, forward, width = CASES[name]
    problem = make()
    x, theta = drawn(problem, width)
    gamma0, y, n = problem.network.gamma0, torch.tensor(problem.task.y_train), problem.task.n_train
    top = theta[problem.sketch.readout_layer].shape[-1]
    mean_field = problem.network.parameterization == "mean_field"
    scale, rate = (gamma0 * top, gamma0**2 * width) if mean_field else (gamma0 * top**0.5, gamma0**2)

    def output(flat):
        parts = flat.split([a.numel() for a in theta])
        return forward(x[:n], *(p.reshape(a.shape) for p, a in zip(parts, theta, strict=True)))[1][:, 0] / scale

    flat = torch.cat([a.flatten() for a in theta])
    start = output(flat) if problem.network.centered else 0.0
    H = torch.autograd.functional.hessian(lambda flat: ((output(flat) - start - y) ** 2).mean() / 2, flat)
    return torch.linalg.eigvalsh(rate * H)[-1].item()


@pytest.mark.parametrize("name", ["branches", "funnel, ntk", "attention"])
def test_sharpness_of_networks_is_that_of_the_dense_hessian(name, monkeypatch):
    monkeypatch.setattr(dmft.specs.curvature, "ITERATIONS", 120)
    make, _, width = CASES[name]
    found = finite_nets.train_ensemble(
        make(), widths=[width], seeds=[4], dtype="float64", observables=["sharpness"], save_steps=[0]
    )
    np.testing.assert_allclose(found.sharpness.item(), largest_curvature(name), rtol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "problem",
    [branched(blocks=1), *(pytest.param(make(), marks=pytest.mark.slow) for make in (branched, funnel, attention))],
)
def test_sharpness_of_the_engine_is_that_of_networks(problem, monkeypatch):
    nets = finite_nets.train_ensemble(
        problem, widths=[6], seeds=[4], dtype="float64", observables=["sharpness"], save_steps=[0]
    )
    start, rule, form = with_weights_of_a_network(problem, 6)
    found = curvature.eigenvalues(start, rule, 0, form=form)[-1]
    np.testing.assert_allclose(found, nets.sharpness.item(), rtol=1e-9)  # the same iteration in another order
    if {*problem.sketch.sizes(6)} != {6}:
        with_the_metric_of_one_width(monkeypatch)
        assert abs(curvature.eigenvalues(start, rule, 0, form=form)[-1] / found - 1) > 0.05


def with_the_metric_of_one_width(monkeypatch):
    monkeypatch.setattr(curvature.Curvature, "_root", lambda self, layer, _: self._layer_roots[layer])
    curvature._iterations.clear_cache()


@pytest.mark.slow
def test_sharpness_of_the_limit_is_that_of_wide_networks(monkeypatch):
    asked = {"observables": ["sharpness"], "save_steps": [0, 5]}
    limit, error = extrapolated(branched(), [32, 64], 200, name="sharpness", since=0, **asked)

    def z():
        theory = dmft.solve(branched(), particles=512, scrambles=4, tolerance=1e-3, **asked)
        return (limit - theory.sharpness) / np.hypot(error, theory.sharpness_se)

    assert abs(z()).max() < 4
    with_the_metric_of_one_width(monkeypatch)
    assert abs(z()).max() > 6
    curvature._iterations.clear_cache()


# ---- the limit -------------------------------------------------------------------------------------------------------


def extrapolated(problem, widths, seeds, name="prediction", since=1, **options):
    """f, or another observable, of infinite width from two widths, linear in 1/N, and its standard error; steps from 1
    on, or others."""
    nets = finite_nets.train_ensemble(problem, widths=widths, seeds=seeds, **{"observables": [name]} | options)
    mean, error = nets[name].mean("seed"), nets[name].std("seed") / seeds**0.5
    a = widths[1] / (widths[1] - widths[0])
    limit = a * mean[1] - (a - 1) * mean[0]
    return limit.values[since:], np.hypot(a * error[1], (a - 1) * error[0]).values[since:]


def solved(problem, particles, scrambles=4):
    theory = dmft.solve(problem, particles=particles, scrambles=scrambles, tolerance=1e-3, observables=["prediction"])
    return theory.prediction.values[1:], theory.prediction_se.values[1:]


@pytest.fixture(scope="module")
def branched_networks():
    return extrapolated(branched(blocks=1), [32, 64], 1500)


def test_the_limit_of_wide_branches_is_that_of_networks(branched_networks):
    limit, error = branched_networks
    theory, se = solved(branched(blocks=1), 1024)
    z = (limit - theory) / np.hypot(error, se)
    assert np.sqrt((z**2).mean()) < 2
    assert abs(z).max() < 4
    one, _ = solved(branched(blocks=1, ratio=0.25), 1024, 2)  # the twin: narrow branches
    assert abs((limit - one) / error).max() > 6


def without_rates(monkeypatch):
    for module in (network, ntk):
        monkeypatch.setattr(module, "per_neuron", lambda change, share: change)


def without_ratio(monkeypatch):
    for name in ("revealed", "revealed_bank"):
        made = getattr(loop, name)
        monkeypatch.setattr(loop, name, lambda *given, made=made, **options: made(*given, **options | {"ratio": 1.0}))


@pytest.mark.slow  # the twins
@pytest.mark.parametrize("forget", [without_rates, without_ratio])
def test_a_forgotten_factor_gives_another_limit(forget, monkeypatch, branched_networks):
    forget(monkeypatch)
    compiled = loop.advance, run_module._begun
    for each in compiled:
        each.clear_cache()
    theory, _ = solved(branched(blocks=1), 1024, 2)
    for each in compiled:
        each.clear_cache()
    limit, error = branched_networks
    assert abs((limit - theory) / error).max() > 6


# ---- in law, and what 1/N adds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [branched(blocks=1), attention()], ids=["branches", "heads"])
def test_networks_in_law_have_the_sizes_of_networks(problem):
    count, width = 1000, 10
    names = ["prediction", "feature_kernel", "gradient_kernel"]
    found = finite_nets.sample_in_law(problem, widths=[width], seeds=count, observables=names)
    nets = finite_nets.train_ensemble(problem, widths=[width], seeds=count, observables=names)
    for name in names:
        a, b = (ds[name].values[0].reshape(count, -1) for ds in (found, nets))
        varied = b.std(0) > 1e-6
        z = (a.mean(0) - b.mean(0))[varied] / np.sqrt((a.var(0) + b.var(0))[varied] / count)
        assert abs(z).max() < 5, name
    ratio = found.prediction.values[0].var(0)[1:] / nets.prediction.values[0].var(0)[1:]
    np.testing.assert_allclose(ratio, 1, atol=0.3)  # 2 / sqrt(1000), with heavy tails


def variances(problem, width, seeds, name="prediction"):
    nets = finite_nets.train_ensemble(problem, widths=[width], seeds=seeds, observables=[name])
    return width * nets[name].values[0].astype(float).var(0, ddof=1)


def influence_functions(problem):
    return dmft.fluctuations(
        problem, mode="reverse", observables=["prediction"], particles=512, scrambles=2, save_steps=[2, 5]
    ).prediction_variance.values


@pytest.mark.slow
def test_what_width_adds_with_wide_branches():
    problem = branched(blocks=1)
    ratio = influence_functions(problem) / variances(problem, 64, 6000)[[2, 5]]
    np.testing.assert_allclose(ratio, 1, atol=0.13)  # sqrt(2 / 6000), .04 of particles, and 1 / N


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["forward", "finite"])
def test_all_ways_to_what_width_adds_agree(mode):
    problem = branched(blocks=1)
    found = dmft.fluctuations(
        problem, mode=mode, observables=["prediction"], particles=1024, scrambles=4, draws=512, save_steps=[2, 5]
    )
    np.testing.assert_allclose(found.prediction_variance, influence_functions(problem), rtol=0.25)


@dataclass(frozen=True)
class Linear(dmft.Architecture):
    """Two wide layers, without nonlinearity."""

    def program(self, net, x):
        h = net.read("W0", x, to=dmft.Population("wide", width=4))
        h = net.apply("W1", net.layer(h, h), to=dmft.Population("less", width=2))
        return net.layer(h, h)


@pytest.mark.slow
def test_linear_networks_are_exact_whatever_their_widths(monkeypatch):
    x = np.random.default_rng(1).standard_normal((2, 4))
    problem = dmft.Problem(Linear(), dmft.Task(x, [1.0, -1.0]), dmft.GradientDescent(0.3, 1))
    found = dmft.fluctuations(problem, observables=["prediction"])
    assert found.attrs["mode"] == "exact"
    nets = variances(problem, 32, 4000)[1:]
    np.testing.assert_allclose(found.prediction_variance[1:] / nets, 1, atol=0.15)  # as above
    monkeypatch.setattr(influence.Influence, "_spreads", property(lambda self: [1.0, 1.0]))  # the twin: all of width N
    twin = dmft.fluctuations(problem, observables=["prediction"])
    assert abs(twin.prediction_variance[1:] / nets - 1).max() > 0.5


def sized(_, h):
    """h times the mean square of its unit."""
    return h * (h * h).mean(-1)[..., None]


@dataclass(frozen=True)
class Grouped(dmft.Architecture):
    """Units of `keys` neurons, which multiply each other."""

    keys: int = 4

    def program(self, net, x):
        h = net.read("W0", x, to=dmft.Population("units", group=self.keys))
        return net.layer(h, net.local(sized, h))


def grouped():
    x = np.random.default_rng(1).standard_normal((2, 3))
    return dmft.Problem(Grouped(), dmft.Task(x, [1.0, -1.0]), dmft.GradientDescent(0.01, 1))


def feature_variance(**options):
    found = dmft.fluctuations(
        grouped(), observables=["feature_kernel"], particles=4096, scrambles=4, save_steps=[0], **options
    )
    return found.feature_kernel_variance.values[0, 0]


@pytest.fixture(scope="module")
def variance_of_units():
    """N Var of <phi phi> of independent units u is N_k Var mean_n phi_n phi_n."""
    rng, K = np.random.default_rng(3), grouped().task.input_kernel
    h = np.linalg.cholesky(K) @ rng.standard_normal((200_000, 4, 2, 1))[..., 0].swapaxes(1, 2)
    phi = h * (h**2).mean(-1, keepdims=True)
    return 4 * np.einsum("uan,ubn->uab", phi, phi).var(0) / 16


def test_a_unit_has_one_weight(variance_of_units):
    expected = variance_of_units
    found = feature_variance(mode="reverse")
    np.testing.assert_allclose(found, expected, rtol=0.1)  # heavy tails of sixth powers
    np.testing.assert_allclose(feature_variance(mode="finite", draws=128), found, rtol=0.3)
    np.testing.assert_allclose(variances(grouped(), 256, 20_000, "feature_kernel")[0, 0], expected, rtol=0.1)


@pytest.mark.slow  # the twin
def test_a_weight_for_every_component_is_another(monkeypatch, variance_of_units):
    P, begun = population.Population, influence.Influence.begun

    def by_component(*given):
        made = begun(*given)
        return replace(made, populations=tuple(replace(p, measure=p.measure / p.group) for p in made.populations))

    monkeypatch.setattr(P, "units", property(lambda p: p.size))
    monkeypatch.setattr(P, "weights", property(lambda p: p.measure if p.measure.ndim else p.measure / p.group))
    monkeypatch.setattr(dmft.Population, "members", property(lambda p: p.width))
    monkeypatch.setattr(influence.Influence, "begun", by_component)
    jax.clear_caches()
    assert (feature_variance(mode="reverse") / variance_of_units).max() < 0.75
    jax.clear_caches()


# ---- what is refused, and what identifies ----------------------------------------------------------------------------


def test_widths_that_give_no_whole_units_are_refused():
    heads = attention(keys=4)
    with pytest.raises(
        ValueError, match="width=10 gives the population 'heads' 10 neurons, .* units of 4; .* multiple of 4"
    ):
        finite_nets.train_ensemble(heads, widths=[8, 10], seeds=2)
    with pytest.raises(ValueError, match=r"width=5 gives the population 'narrow' 2.5 neurons.*multiple of 2"):
        finite_nets.sample_in_law(funnel(), widths=[5], seeds=2)
    with pytest.raises(ValueError, match="multiple of 2"):
        finite_nets.plan_sweep(funnel(), widths=[5], seeds=2, store="nowhere")
    assert branched(ratio=1 / 3).sketch.sizes(6) == (6, 2, 2)
    assert heads.sketch.whole_width(3) == 8


def test_populations_that_are_none_are_refused():
    with pytest.raises(ValueError, match="width=0"):
        dmft.Population("a", width=0)
    with pytest.raises(ValueError, match="no ratio of whole numbers up to 1000; give e.g. 2, 0.5 or 4 / 3"):
        dmft.Population("a", width=2**0.5)
    with pytest.raises(ValueError, match="group=0"):
        dmft.Population("a", group=0)


def across(xp, h):
    return h / xp.sqrt((h * h).mean((-1, -2)))[..., None, None]


def summed(_, h):
    return (h * h).sum(-2)


@dataclass(frozen=True)
class Wrong(dmft.Architecture):
    """What `how` says is wrong with it."""

    how: str

    def program(self, net, x):
        h = net.read("W0", x, to=dmft.Population("heads", group=4))
        if self.how == "two widths":
            h = h + net.apply("W", h, to="heads")
        if self.how in ("across", "summed"):
            h = net.local(globals()[self.how], h)
        if self.how == "an array":
            h = np.array([1.0, 2.0]) * h
        return net.layer(h, net.activate(dmft.tanh(), h))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("two widths", "population 'heads' has width 1 and group 4 in one place, width 1 and group None in another"),
        (
            "across",
            r"over the population Population\(name='heads', .*\) gives a unit of 4 neurons another number beside",
        ),
        ("summed", "over the population 'heads' gives .* whose last axes are not those of its 2 units"),
        ("an array", r"multiplied by a number, not by an array of shape \(2,\)"),
    ],
)
def test_programs_that_mix_units_are_refused(how, message):
    x = np.random.default_rng(2).standard_normal((3, 5))
    with pytest.raises(ValueError, match=message):
        dmft.Problem(Wrong(how), dmft.Task(x, x[:, 0]), dmft.GradientDescent(0.5, 3))


def test_neurons_of_several_populations_are_not_stacked():
    for produce in (lambda p: dmft.neurons(p), lambda p: finite_nets.neurons(p, widths=[8])):
        with pytest.raises(ValueError, match=r"neurons is for layers of the width of the network.*'branch', 0"):
            produce(branched())


def test_width_and_group_are_part_of_a_problem():
    x = np.random.default_rng(0).normal(size=(2, 2, 6))

    def described(**options):
        return dmft.Problem(Attention(**options), dmft.Task(x, [1.0, -1.0]), dmft.GradientDescent(0.1, 3))

    assert described().problem_id != described(keys=1).problem_id
    assert described().problem_id != described(keys=4).problem_id
    again = dmft.Problem.from_json(described(keys=4).to_json())
    assert again == described(keys=4)
    assert json.loads(again.to_json())["network"]["keys"] == 4


def test_a_population_of_width_one_is_its_name():
    @dataclass(frozen=True)
    class Named(dmft.Architecture):
        said: bool

        def program(self, net, x):
            h = net.read("W0", x, to=dmft.Population("a") if self.said else "a")
            h = net.apply("W1", net.layer(h, net.activate(dmft.tanh(), h)), to="a")
            return net.layer(h, net.activate(dmft.tanh(), h))

    assert Named(True).sketch((3,)) == Named(False).sketch((3,))


def test_estimates_count_the_neurons_that_there_are():
    wide, usual = (Run(branched(ratio=r), np.arange(6), 256, 1e-3, True) for r in (2, 1))
    assert wide.sizes(64) == usual.sizes(64) == [256] * 3  # particles have nothing to do with widths
    heads = Run(attention(keys=4), np.arange(6), 256, 1e-3, False)
    assert heads.sizes(64) == [256, 1024]
    assert memory_estimate(heads, 64)[0] > 1.5 * memory_estimate(replace(heads, problem=attention(keys=1)), 64)[0]
    law = replace(wide, in_law=True)
    assert law.sizes(64) == [256, 512, 512]
    more, less = (needs.needs(Branched(ratio=r), (5,)) for r in (2.0, 1.0))
    assert (more.matrices, more.vectors, more.readers) == (8, 4, 1)
    assert (less.matrices, less.vectors, less.readers) == (4, 2, 1)


# ---- functions that are edited ---------------------------------------------------------------------------------------


def bent(xp, h):
    return xp.tanh(h)


@dataclass(frozen=True)
class Edited(dmft.Architecture):
    """What its formula says."""

    def program(self, net, x):
        h = net.read("W0", x, to=0)
        return net.layer(h, net.local(bent, h))


def test_a_formula_that_was_edited_is_compiled_anew(monkeypatch):
    def problem():
        x = np.random.default_rng(2).standard_normal((3, 5))
        return dmft.Problem(Edited(), dmft.Task(x, x[:, 0]), dmft.GradientDescent(0.5, 2))

    def limit(described):
        return dmft.solve(described, particles=64, scrambles=2, observables=["prediction"]).prediction.values[-1]

    before, first = problem(), limit(problem())
    monkeypatch.setitem(globals(), "bent", lambda xp, h: xp.tanh(2 * h))
    after = problem()
    assert after.problem_id != before.problem_id
    assert abs(limit(after) - first).max() > 0.01
    for produce in (limit, lambda p: finite_nets.train_ensemble(p, widths=[4], seeds=1)):
        with pytest.raises(
            ValueError, match="Edited makes other numbers than when this problem was made; make the pro"
        ):
            produce(before)
    monkeypatch.undo()
    np.testing.assert_array_equal(limit(before), first)


@pytest.mark.parametrize("given", [{"frozen": [0]}, {"weight_variance": [1.0, 2.0]}])
def test_lists_in_the_place_of_tuples_are_refused(given):
    ((name, value),) = given.items()
    network = type("Listed", (Edited,), {name: value})
    listed = dataclass(frozen=True)(network)
    listed.__qualname__, listed.__module__ = "Listed", __name__
    x = np.random.default_rng(2).standard_normal((3, 5))
    with pytest.raises(TypeError, match=rf"{name}=.* is not a tuple; write {name} = \({value[0]}"):
        dmft.Problem(listed(), dmft.Task(x, x[:, 0]), dmft.GradientDescent(0.5, 2))
