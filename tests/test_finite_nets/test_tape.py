"""Programs on batches of networks, against the trainer of perceptrons, against plain automatic differentiation of the
same networks one by one, and against the convolutions of PyTorch."""

import dataclasses
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

import dmft
import finite_nets
from dmft.specs.networks import Architecture
from dmft.specs.networks.population import Field
from finite_nets.device import random
from finite_nets.device.host import usual_torch
from finite_nets.device.precision import PRECISIONS
from finite_nets.ensembles import batch, budget
from finite_nets.ensembles.budget import Budget
from finite_nets.ensembles.neurons import NeuronPlan
from finite_nets.ensembles.recording import Plan
from finite_nets.ensembles.runner import Runner
from finite_nets.training import programs, tape, traces

CPU, DOUBLE = torch.device("cpu"), PRECISIONS["float64"]
WIDTH, MEMBERS, STEPS = 6, (2, 5), 4
OBSERVABLES = ("prediction", "feature_kernel", "gradient_kernel", "ntk")
TANH = dmft.tanh(0.8)


def some_problem(network, kind="squared", outputs=None, training=None, features=4, n_train=4, n_test=2):
    """Of any network."""
    rng = np.random.default_rng(1)
    n = n_train + n_test
    x, y = rng.standard_normal((n, features)), rng.standard_normal((n, outputs or 1))
    if kind == "cross_entropy":
        y = np.eye(outputs)[np.arange(n) % outputs]
    elif kind in ("logistic", "hinge"):
        y = np.sign(y)
    y = y if outputs else y[:, 0]
    task = dmft.Task(x[:n_train], y[:n_train], x[n_train:], y[n_train:])
    return dmft.Problem(network, task, training or dmft.GradientDescent(0.4, STEPS), kind)


def trained(problem, program=None, observables=OBSERVABLES, two_time=False, width=WIDTH, **options):
    """What is recorded of members (member, step, ...), and their trainer."""
    plan = Plan(problem, np.arange(problem.training.steps + 1), frozenset(observables), two_time, **options)
    with usual_torch(CPU):
        trainer = programs.trainer_of(problem, CPU, DOUBLE, program=program)
        start = partial(trainer.start, width, torch.tensor(MEMBERS), 0)
        return batch.members(plan, batch.Stepped(plan, trainer, start)), trainer


def largest_difference(a, b):
    """Of all that was recorded, relative to the largest of its kind."""
    assert set(a) == set(b)
    return max(float(abs(a[name] - b[name]).max() / abs(b[name]).max()) for name in a)


# ---- perceptrons -----------------------------------------------------------------------------------------------------

MLP3, RESIDUAL = dmft.MLP(3, TANH, 1.3), dmft.ResidualMLP(3, TANH, 1.3, bias=0.4)
BATCHES = ((0, 1), (2, 3), (1, 2), (3, 0))
DECAYING = dmft.GradientDescent(0.3, STEPS, momentum=0.5, weight_decay=0.1)
PERCEPTRONS = {
    "plain": {"network": MLP3},
    "residual, biases": {"network": RESIDUAL},
    "several outputs, momentum, decay": {"network": RESIDUAL, "outputs": 3, "training": DECAYING},
    "cross entropy": {"network": RESIDUAL, "kind": "cross_entropy", "outputs": 3},
    "hinge": {"network": dataclasses.replace(MLP3, activation=dmft.relu()), "kind": "hinge"},
    "batches": {"network": MLP3, "outputs": 2, "training": dmft.GradientDescent(0.3, STEPS, batches=BATCHES)},
    "stream": {
        "network": dataclasses.replace(RESIDUAL, centered=False),
        "training": dmft.GradientDescent([0.1, 0.3, 0.2, 0.1], STEPS, batches=BATCHES, observe="test"),
    },
    "frozen": {"network": dataclasses.replace(RESIDUAL, frozen=[0, 2])},
    "readout alone": {"network": dmft.MLP(2, TANH, bias=0.3, frozen=[0, 1])},
    "variances": {
        "network": dmft.MLP(2, TANH, bias=0.5, weight_variance=(0.5, 2.0, 0.0), bias_variance=0.3),
        "features": 9,
    },
    "one layer": {"network": dmft.MLP(1, dmft.erf(), 0.6)},
    "ntk": {"network": dmft.MLP(2, TANH, 1.2, parameterization="ntk", bias=0.2)},
    "standard": {
        "network": dmft.MLP(2, TANH, 1.2, parameterization="standard"),
        "training": dmft.GradientDescent(0.02, STEPS),
    },
    "euler": {"network": RESIDUAL, "outputs": 2, "training": dmft.GradientFlow(0.4, 0.5, STEPS, scheme="euler")},
    "rosenbrock": {"network": RESIDUAL, "outputs": 2, "training": dmft.GradientFlow(0.4, 0.5, STEPS)},
}


@pytest.mark.parametrize("name", PERCEPTRONS)
def test_the_program_of_a_perceptron_trains_the_same_networks(name):
    problem = some_problem(**PERCEPTRONS[name])
    observables = (*OBSERVABLES, "sharpness", "preactivation_kernel", "participation_ratio")
    (found, kind), (expected, made_for) = (trained(problem, p, observables, two_time=True) for p in (True, False))
    assert type(kind) is not type(made_for)
    assert largest_difference(found, expected) < 1e-10


def test_a_program_without_its_shortcuts_trains_others(monkeypatch):
    expected, _ = trained(some_problem(RESIDUAL), False)
    summed = tape.Tape.add

    def shortened(self, a, b):
        found = summed(self, a, b)
        if isinstance(found.value.parents, list):
            pull = found.value.pull
            found.value.pull = lambda g: [None, pull(g)[1]]
        return found

    monkeypatch.setattr(tape.Tape, "add", shortened)
    assert largest_difference(trained(some_problem(RESIDUAL), True)[0], expected) > 1e-3


# ---- other programs --------------------------------------------------------------------------------------------------


def shifts(size, reach, dimension, stride=1, circular=False):
    """(matrix, position after, position before): what a convolution with zeros, or the other end, outside sees."""
    one = np.zeros((reach, size // stride, size))
    for k in range(reach):
        for y in range(size // stride):
            x = y * stride + k - reach // 2
            if circular or 0 <= x < size:
                one[k, y, x % size] = 1
    if dimension == 2:
        one = np.einsum("kyx,lzw->klyzxw", one, one).reshape(reach**2, one.shape[1] ** 2, one.shape[2] ** 2)
    return one / np.sqrt(len(one))


@dataclass(frozen=True)
class Convolution(Architecture):
    depth: int = 3
    size: int = 5
    channels: int = 2
    dimension: int = 1
    gamma0: float = 1.4
    frozen: tuple[int, ...] = ()

    def inputs(self, x):
        positions = self.size**self.dimension
        seen = np.einsum("kyx,sxc->sykc", shifts(self.size, 3, self.dimension), x.reshape(len(x), positions, -1))
        return seen.reshape(len(x), positions, -1) / np.sqrt(self.channels)

    def program(self, net, x):
        h = net.read("W0", x, to=0)
        for layer in range(1, self.depth):
            v = net.layer(h, net.activate(TANH, h))
            h = net.apply(f"W{layer}", v, to=layer, mix=shifts(self.size, 3, self.dimension))
        positions = self.size**self.dimension
        return net.mix(net.layer(h, net.activate(TANH, h)), np.full(positions, 1 / positions))


@dataclass(frozen=True)
class Strided(Architecture):
    """One bank at two strides, up and down, with biases, and one matrix that is used twice."""

    centered: bool = False

    def inputs(self, x):
        return x.reshape(len(x), 4, -1) / 2

    def program(self, net, x):
        h = net.read("W0", x, to="a")
        h = h + 0.5 * net.vector("b0", of="a")
        v = net.layer(h, net.activate(TANH, h))
        h = net.apply("bank", v, to="a", mix=shifts(4, 3, 1, stride=2)) + 0.3 * net.vector("b1", of="a")
        v = net.activate(TANH, h)
        h = net.apply("bank", v, to="a", mix=shifts(4, 3, 1, stride=2).transpose(0, 2, 1)) + both(net, h)
        h = net.mix(net.layer(h, net.activate(TANH, h)), np.array([0.1, 0.2, 0.3, 0.4]))
        for _ in range(2):
            h = 0.5 * h + net.apply("again", net.activate(TANH, h), to="a")
        return net.layer(h, net.activate(TANH, h))


def both(net, h):
    """What two positions hold together, at four."""
    return net.mix(h, np.tile([0.7, -0.4], (4, 1)))


def normalised(xp, h, mean, square, gain):
    return gain * (h - mean) / xp.sqrt(square - mean**2 + 0.1)


def ones(xp, h):
    return xp.ones_like(h)


def gated(_, a, b):
    return a / (1 + b * b)


def pooled(xp, h, score):
    """Softmax over positions."""
    weights = xp.exp(score)
    return (weights * h).sum(-2) / weights.sum(-2)


@dataclass(frozen=True)
class Normalised(Architecture):
    positions: int = 0
    frozen: tuple[int, ...] = ()

    def inputs(self, x):
        return x / 2 if not self.positions else x.reshape(len(x), self.positions, -1)

    def program(self, net, x):
        key = net.vector("key", of="a") if self.positions else None
        h = net.local(gated, net.read("W0", x, to="a"), net.read("V0", x, to="a"))
        for layer in (1, 2):
            mean, square = net.average(h, net.local(ones, h)), net.average(h, h)
            scaled = net.local(normalised, h, mean, square, net.number("gain", start=0.8))
            v = net.layer(h, net.activate(TANH, scaled))
            h = h + 0.7 * net.apply(f"W{layer}", v, to="a")
        if self.positions:
            h = net.local(pooled, h, net.average(h, key))
        return net.layer(h, net.activate(TANH, h))


class Plain:
    """An interpreter of one network, for automatic differentiation by its weights; fields are (row, [position,] N)."""

    def __init__(self, names, weights, shape):
        self.shape, self._weights, self._names = shape, weights, names
        self.width = len(weights[0])
        self.layers = []

    def _field(self, value, population):
        return Field(self, value, population)

    def _named(self, name):
        return self._weights[self._names[name]]

    def read(self, name, x, *, to):
        return self._field(torch.einsum("...d,nd->...n", x, self._named(name)), to)

    def apply(self, name, v, *, to, mix=None):
        W = self._named(name)
        if mix is None:
            return self._field(torch.einsum("...i,oi->...o", v.value, W) / self.width**0.5, to)
        bank = W.reshape(self.width, len(mix), self.width)
        return self._field(torch.einsum("kyx,oki,rxi->ryo", torch.tensor(mix), bank, v.value) / self.width**0.5, to)

    def vector(self, name, *, of):
        return self._field(self._named(name), of)

    def number(self, name, **_):
        return self._field(self._named(name), None)

    def activate(self, phi, h):
        assert phi == TANH
        return self._field(torch.tanh(0.8 * h.value) / 0.8, h.population)

    def mix(self, h, A):
        axes = "x,rxn->rn" if np.ndim(A) == 1 else "yx,rxn->ryn"
        return self._field(torch.einsum(axes, torch.tensor(A), h.value), h.population)

    def local(self, formula, *values):
        return self._field(formula(torch, *(v.value for v in values)), values[0].population)

    def average(self, a, b):
        return self._field((a.value * b.value).mean(-1, keepdim=True), None)

    def layer(self, h, features):
        h.value.retain_grad()
        self.layers.append((h.value, features.value))
        return features

    def add(self, a, b):
        first, second = a.value, b.value
        if second.ndim == 2 and first.ndim == 3:  # rows, without positions
            second = second[:, None]
        return self._field(first + second, a.population)

    def scale(self, factor, h):
        return self._field(factor * h.value, h.population)


def passed(problem, numbers, weights, x):
    """f (sample, output), not centered, and the interpreter that has its layers."""
    net = Plain(numbers.names, weights, problem.task.x_train.shape[1:])
    end = problem.network.program(net, x).value
    readout = weights[numbers.readout]
    return end @ readout.T / (problem.network.gamma0 * readout.shape[1]), net


def by_autograd(problem, trainer, member):
    """What is recorded of one network, (step, ...)."""
    weights = weights_of(trainer, member)
    numbers, network, training, n = trainer.numbers, problem.network, problem.training, problem.task.n_train
    x, y = trainer.x.clone(), torch.tensor(problem.task.targets)
    moved = [w for w, layer in zip(weights, numbers.layers, strict=True) if layer not in network.frozen]
    units = units_of(problem, moved)
    groups = [{"params": [w], "weight_decay": training.weight_decay / u} for w, u in zip(moved, units, strict=True)]
    optimiser = torch.optim.SGD(groups, lr=1.0, momentum=training.momentum)
    start, found = 0.0, []
    for t in range(STEPS + 1):
        f, net = passed(problem, numbers, weights, x)
        start = f.detach() if t == 0 and network.centered else start
        rows = [torch.autograd.grad(each, moved, retain_graph=True) for each in f.flatten()]
        J = torch.stack(
            [torch.cat([u**0.5 * part.flatten() for part, u in zip(row, units, strict=True)]) for row in rows]
        )
        phi = [features.flatten(1) for _, features in net.layers]
        gradients = [
            torch.stack([torch.autograd.grad(each, h, retain_graph=True)[0].flatten() for each in f.flatten()])
            for h, _ in net.layers
        ]
        found.append(
            {
                "prediction": f - start,
                "feature_kernel": torch.stack([v @ v.T / v.shape[1] for v in phi]),
                "gradient_kernel": torch.stack([own_rows(g, len(x)) for g in gradients]) * network.gamma0**2 * WIDTH,
                "ntk": J @ J.T,
            }
        )
        if t < STEPS:
            batch = list(range(n)) if training.batches is None else list(training.batches[t])
            error = (f - start)[batch]
            losses = (
                functional.cross_entropy(error, y[batch])
                if problem.loss == "cross_entropy"
                else ((error - y[batch]) ** 2).sum(1).mean() / 2
            )
            for group, u in zip(optimiser.param_groups, units, strict=True):
                group["lr"] = training.rates[t] * u
            optimiser.zero_grad()
            losses.backward()
            optimiser.step()
    return {name: np.stack([step[name].detach().numpy() for step in found]) for name in found[0]}


def units_of(problem, weights, width=WIDTH):
    """Rates over eta: gamma0^2 N of weights of neurons, gamma0^2 of numbers."""
    return [problem.network.gamma0**2 * (1 if w.numel() == 1 else width) for w in weights]


def weights_of(trainer, member, width=WIDTH):
    """Leaf tensors of one network, by number."""
    with usual_torch(CPU):
        drawn = trainer.draw(width, torch.tensor(MEMBERS), 0)
    return [w[member].clone().requires_grad_() for w in drawn]


def own_rows(g, rows):
    """Inner products of the gradients of outputs (event, row and neuron) of different rows by what each has at its own
    row."""
    events = len(g)
    own = g.reshape(events, rows, -1)[torch.arange(events), torch.arange(events) // (events // rows)]
    return own @ own.T


OTHERS = {
    "convolution": {"network": Convolution(), "features": 10},
    "convolution, several outputs": {"network": Convolution(frozen=(1,)), "features": 10, "outputs": 2},
    "images": {"network": Convolution(2, 4, 1, 2), "features": 16, "kind": "cross_entropy", "outputs": 3},
    "strided": {"network": Strided(), "features": 8},
    "normalised": {"network": Normalised(), "outputs": 2},
    "positions": {"network": Normalised(positions=2), "outputs": 2},
    "frozen": {"network": Normalised(positions=2, frozen=(0, 3))},
    "batches, momentum and decay": {
        "network": Normalised(positions=2),
        "training": dmft.GradientDescent(0.3, STEPS, momentum=0.5, weight_decay=0.1, batches=BATCHES),
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_programs_train_as_automatic_differentiation_does(name):
    problem = some_problem(**OTHERS[name])
    found, trainer = trained(problem)
    for i in range(len(MEMBERS)):
        for kind, values in by_autograd(problem, trainer, i).items():
            by_layer = np.moveaxis(values, 0, 1) if "kernel" in kind else values
            size = max(1.0, abs(values).max())
            one = found[kind][i].reshape(by_layer.shape)
            np.testing.assert_allclose(one, by_layer, rtol=0, atol=1e-12 * size, err_msg=kind)


def test_uses_of_one_matrix_meet_in_the_tangent_kernel(monkeypatch):
    problem = some_problem(**OTHERS["strided"])
    right, _ = trained(problem)
    joined = traces.joined
    monkeypatch.setattr(traces, "joined", lambda uses: joined(uses[:1]))
    wrong, _ = trained(problem)
    assert abs(right["ntk"] - wrong["ntk"]).max() > 1e-2
    np.testing.assert_array_equal(right["prediction"], wrong["prediction"])


def test_flows_of_programs_are_descent_by_small_steps():
    time, fine = 2.0, 128
    found = {
        name: trained(some_problem(Convolution(), features=10, training=training), observables=["prediction"])[0][
            "prediction"
        ][:, -1]
        for name, training in {
            "fine": dmft.GradientDescent(time / fine, fine),
            "coarse": dmft.GradientDescent(time / STEPS, STEPS),
            "euler": dmft.GradientFlow(1.0, time / 64, 64, scheme="euler"),
            "rosenbrock": dmft.GradientFlow(1.0, time / STEPS, STEPS),
        }.items()
    }
    off = {name: abs(f - found["fine"]).max() / abs(found["fine"]).max() for name, f in found.items()}
    # measured: .0012 and .0026; .045 of as many large steps of descent
    assert off["rosenbrock"] < 0.003
    assert off["euler"] < 0.006
    assert off["coarse"] > 0.03


def test_two_time_kernels_are_those_of_a_step_at_equal_times():
    problem = some_problem(**OTHERS["convolution, several outputs"])
    found, _ = trained(problem, two_time=True)
    for t in range(STEPS + 1):
        features, gradients = (found[f"{name}_kernel_two_time"] for name in ("feature", "gradient"))
        np.testing.assert_allclose(features[:, :, t, :, t], found["feature_kernel"][:, :, t], rtol=1e-12)
        np.testing.assert_allclose(gradients[:, :, t, :, :, t], found["gradient_kernel"][:, :, t], rtol=1e-12)


# ---- convolutions of PyTorch -----------------------------------------------------------------------------------------


def outputs_by_convolution(problem, first, *hidden_and_readout):
    """f (sample,), not centered, of weights (N, kernel and channel), (N, kernel, N), (1, N)."""
    network, (*hidden, readout) = problem.network, hidden_and_readout
    dimension, size, width = network.dimension, network.size, len(first)
    convolution = functional.conv1d if dimension == 1 else functional.conv2d
    kernel = [3] * dimension

    def convolved(h, W):
        W = W.reshape(width, 3**dimension, -1).transpose(1, 2)
        return convolution(h, W.reshape(width, -1, *kernel), padding=1) / np.sqrt(W[0].numel())

    x = torch.tensor(problem.task.x).reshape(-1, *[size] * dimension, network.channels).movedim(-1, 1)
    h = convolved(x, first)
    for W in hidden:
        h = convolved(torch.tanh(0.8 * h) / 0.8, W)
    pooled = torch.tanh(0.8 * h).flatten(2).mean(2) / 0.8
    return (pooled @ readout.T)[:, 0] / (network.gamma0 * width)


@pytest.mark.parametrize("many", [1, 1000])
@pytest.mark.parametrize("network", [Convolution(), Convolution(3, 4, 1, 2)])
def test_convolutions_are_those_of_pytorch(network, many, monkeypatch):
    monkeypatch.setattr(tape, "MANY_POSITIONS", many)
    training = dmft.GradientDescent((0.5, 0.2, 0.5, 0.3), STEPS, momentum=0.6)
    problem = some_problem(network, training=training, features=network.channels * network.size**network.dimension)
    found, trainer = trained(problem)
    weights, y = weights_of(trainer, 1), torch.tensor(problem.task.y_train)
    unit, start = network.gamma0**2 * WIDTH, None
    optimiser = torch.optim.SGD(weights, lr=1.0, momentum=0.6)
    for t in range(STEPS + 1):
        f = outputs_by_convolution(problem, *weights)
        start = f.detach() if start is None else start
        np.testing.assert_allclose(found["prediction"][1, t], (f - start).detach(), rtol=0, atol=1e-12)
        jacobians = torch.func.jacrev(lambda *w: outputs_by_convolution(problem, *w), tuple(range(len(weights))))
        J = torch.cat([part.flatten(1) for part in jacobians(*(w.detach() for w in weights))], dim=1)
        np.testing.assert_allclose(found["ntk"][1, t], unit * J @ J.T, rtol=1e-12, atol=1e-12)
        optimiser.param_groups[0]["lr"] = training.rates[min(t, STEPS - 1)] * unit
        optimiser.zero_grad()
        (((f - start)[: len(y)] - y) ** 2).mean().div(2).backward()
        optimiser.step()


# ---- curvature, neurons, memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convolution", "strided", "positions", "frozen"])
def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian(name, monkeypatch):
    monkeypatch.setattr(dmft.specs.curvature, "ITERATIONS", 60)
    problem = some_problem(**OTHERS[name])
    network, n, width = problem.network, problem.task.n_train, 3
    found, trainer = trained(problem, observables=["prediction", "sharpness"], width=width)
    weights = weights_of(trainer, 0, width)
    layers, sizes = trainer.numbers.layers, [w.numel() for w in weights]
    x, y = trainer.x.clone(), torch.tensor(problem.task.targets)
    start = passed(problem, trainer.numbers, weights, x)[0].detach() if network.centered else 0.0

    def loss_of(flat):
        parts = [part.reshape(w.shape) for part, w in zip(flat.split(sizes), weights, strict=True)]
        f = passed(problem, trainer.numbers, parts, x)[0] - start
        return ((f[:n] - y[:n]) ** 2).sum(1).mean() / 2

    moved = torch.cat([torch.full((s,), layer not in network.frozen) for s, layer in zip(sizes, layers, strict=True)])
    H = torch.autograd.functional.hessian(loss_of, torch.cat([w.detach().flatten() for w in weights]))
    units = zip(sizes, units_of(problem, weights, width), strict=True)
    roots = torch.cat([torch.full((s,), u**0.5, dtype=H.dtype) for s, u in units])[moved]
    dense = torch.linalg.eigvalsh(roots[:, None] * H[moved][:, moved] * roots)[-1]
    np.testing.assert_allclose(found["sharpness"][0, 0], dense, rtol=1e-8)


def test_neurons_of_programs_are_recorded_where_they_have_no_positions():
    problem = some_problem(Normalised())
    steps = np.arange(STEPS + 1)
    plan = NeuronPlan(problem, steps, frozenset({"prediction"}), rows=(0, 3), width=WIDTH)
    with usual_torch(CPU):
        trainer = programs.trainer_of(problem, CPU, DOUBLE)
        run = batch.Stepped(plan, trainer, partial(trainer.start, WIDTH, torch.tensor(MEMBERS), 0))
        found = batch.members(plan, run)["preactivation"]
    assert found.shape == (2, 3, STEPS + 1, 2, WIDTH)
    last = np.tanh(0.8 * found[:, -1]) / 0.8
    kernels = np.einsum("msan,msbn->msab", last, last) / WIDTH
    expected = trained(problem)[0]["feature_kernel"][:, -1][:, :, [0, 3]][:, :, :, [0, 3]]
    np.testing.assert_allclose(kernels, expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"Normalised have \[2, 2, 0\] positions"):
        finite_nets.neurons(some_problem(Normalised(positions=2)), widths=[WIDTH])


def test_batches_of_programs_are_those_that_fit(monkeypatch):
    problem = some_problem(Convolution(), features=10, training=dmft.GradientDescent(0.4, STEPS))
    plan = Plan(problem, np.arange(STEPS + 1), frozenset(OBSERVABLES))
    runner = Runner(plan, DOUBLE, CPU, 0, block=None)
    monkeypatch.setattr(budget, "CPU_BATCH", 2 * runner.bytes_of(WIDTH, 1))
    assert runner.at_once(WIDTH) == 2
    batches = list(runner.members(WIDTH, range(6)))
    assert [batch.first for batch in batches] == [0, 2, 4]
    whole, _ = trained(problem)
    np.testing.assert_allclose(batches[1].results["ntk"][0], whole["ntk"][0], rtol=1e-12)
    np.testing.assert_allclose(batches[2].results["ntk"][1], whole["ntk"][1], rtol=1e-12)


def test_weights_take_the_memory_that_is_said():
    for name, case in OTHERS.items():
        problem = some_problem(**case | {"training": dmft.GradientDescent(0.4, STEPS, momentum=0.5)})
        plan = Plan(problem, np.arange(STEPS + 1), frozenset(OBSERVABLES))
        trainer = programs.trainer_of(problem, CPU, DOUBLE)
        state = trainer.start(WIDTH, torch.tensor(MEMBERS), 0)
        held = sum(w[0].nbytes for w in (*state.weights.tensors, *state.slots[0].tensors))
        said = Budget(plan, DOUBLE, CPU, None).weight_bytes(WIDTH)
        bank = max(trainer.numbers.banks) * WIDTH**2 * 8
        assert said == held + bank, name


def test_networks_that_diverge_are_marked():
    problem = some_problem(Convolution(), features=10, training=dmft.GradientDescent(1e4, 6))
    plan = Plan(problem, np.arange(7), frozenset({"prediction"}))
    (batch,) = Runner(plan, DOUBLE, CPU, 0, block=None).members(WIDTH, range(3))
    assert (batch.exploded_at <= 6).all()


@dataclass(frozen=True)
class Biased(Normalised):
    bias: float = 0.7


@pytest.mark.parametrize(("positions", "features"), [(0, 4), (0, 9), (2, 8), (2, 40)])
def test_coordinates_keep_inner_products(positions, features):
    network = Biased(positions=positions)
    problem = some_problem(network, features=features)
    points, directions = programs.coordinates(problem)
    read = network.inputs(problem.task.x)
    assert directions == read.shape[-1]
    assert points.shape[:-1] == read.shape[:-1]
    assert points.shape[-1] == min(directions + 1, 6 * max(positions, 1))
    a, b = (each.reshape(-1, each.shape[-1]) for each in (points, read))
    np.testing.assert_allclose(a @ a.T, b @ b.T + 0.7**2, rtol=1e-12, atol=1e-12)


# ---- what is drawn, and refused --------------------------------------------------------------------------------------


def test_weights_have_the_numbers_of_their_order():
    """Matrices in the order of the program, the readout, vectors; a bank of K is drawn as (K N, N)."""
    trainer = programs.trainer_of(some_problem(Strided(), features=8), CPU, DOUBLE)
    members = torch.tensor(MEMBERS)
    drawn = trainer.draw(WIDTH, members, 9)

    def normal(parameter, *shape):
        return random.normals(
            shape, root_seed=9, width=WIDTH, parameter=parameter, members=members, dtype=torch.float64
        )

    assert trainer.numbers.names == {"W0": 0, "bank": 1, "again": 2, "b0": 4, "b1": 5}
    assert trainer.numbers.layers == (0, 1, 2, 3, 0, 1)
    bank = drawn[1].reshape(2, WIDTH, 3, WIDTH)
    for k in range(3):
        assert torch.equal(bank[:, :, k], normal(1, 3 * WIDTH, WIDTH)[:, k * WIDTH : (k + 1) * WIDTH])
    for number, shape in ((0, (WIDTH, 2)), (2, (WIDTH, WIDTH)), (3, (1, WIDTH)), (4, (WIDTH,)), (5, (WIDTH,))):
        assert torch.equal(drawn[number], normal(number, *shape))


@dataclass(frozen=True)
class Varied(Strided):
    frozen: tuple[int, ...] = ()
    parameterization: str = "mean_field"
    weight_variance: float | tuple[float, ...] = 1.0
    bias_variance: float = 1.0


def test_half_precision_is_for_perceptrons():
    with pytest.raises(ValueError, match='dtype="bf16" is for perceptrons'):
        programs.trainer_of(some_problem(Varied(), features=8), CPU, PRECISIONS["bf16"])


def test_variances_scale_what_is_drawn():
    plain, varied = (
        programs.trainer_of(some_problem(network, features=8), CPU, DOUBLE).draw(WIDTH, torch.tensor(MEMBERS), 0)
        for network in (Varied(), Varied(weight_variance=(4.0, 9.0, 1.0, 0.0), bias_variance=0.25))
    )
    for a, b, factor in zip(plain, varied, (2, 3, 1, 0, 0.5, 0.5), strict=True):
        np.testing.assert_allclose(factor * a, b, rtol=1e-14)
