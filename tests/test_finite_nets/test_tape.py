"""Programs on batches of networks, against the trainer of perceptrons, against plain automatic differentiation of the
same networks one by one, and against the convolutions of PyTorch."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional

import dmft
from dmft.specs.networks import Architecture
from dmft.specs.networks.program import Field
from finite_nets import programs, tape
from finite_nets.host import usual_torch
from finite_nets.precision import PRECISIONS
from finite_nets.recording import Plan

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
    found = object.__new__(dmft.Problem)
    values = {"network": network, "task": task, "training": training or dmft.GradientDescent(0.4, STEPS), "loss": kind}
    for name, value in values.items():
        object.__setattr__(found, name, value)
    return found


def trained(problem, program=None, observables=OBSERVABLES, two_time=False, width=WIDTH, **options):
    """What is recorded of members (member, step, ...), and their trainer."""
    plan = Plan(problem, np.arange(problem.training.steps + 1), frozenset(observables), two_time, **options)
    with usual_torch(CPU):
        trainer = programs.trainer_of(problem, CPU, DOUBLE, program=program)
        state = trainer.start(width, torch.tensor(MEMBERS), 0)
        return plan.members(trainer, state), trainer


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
    observables = (*OBSERVABLES, "sharpness")
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
        for l in range(1, self.depth):
            v = net.layer(h, net.activate(TANH, h))
            h = net.apply(f"W{l}", v, to=l, mix=shifts(self.size, 3, self.dimension))
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
        h = net.apply("bank", v, to="a", mix=shifts(4, 3, 1, stride=2).transpose(0, 2, 1)) + h_sum(net, h)
        h = net.mix(net.layer(h, net.activate(TANH, h)), np.array([0.1, 0.2, 0.3, 0.4]))
        for _ in range(2):
            h = 0.5 * h + net.apply("again", net.activate(TANH, h), to="a")
        return net.layer(h, net.activate(TANH, h))


def h_sum(net, h):
    """One position more than there were, as a field without positions."""
    return net.mix(h, np.array([0.7, -0.4]))


def normalised(xp, h, mean, square):
    return (h - mean) / xp.sqrt(square - mean**2 + 0.1)


def ones(xp, h):
    return xp.ones_like(h)


def gated(xp, a, b):
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
        h = net.local(gated, net.read("W0", x, to="a"), net.read("V0", x, to="a"))
        for l in (1, 2):
            mean, square = net.average(h, net.local(ones, h)), net.average(h, h)
            v = net.layer(h, net.activate(TANH, net.local(normalised, h, mean, square)))
            h = h + 0.7 * net.apply(f"W{l}", v, to="a")
        if self.positions:
            key = net.vector("key", of="a")
            h = net.local(pooled, h, net.average(h, key))
        return net.layer(h, net.activate(TANH, h))


class Plain:
    """An interpreter of one network, for automatic differentiation by its weights; fields are (row, [position,] N)."""

    def __init__(self, names, weights, shape):
        self.shape, self._weights, self._names = shape, weights, names
        self.width = weights[-1].shape[-1]
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

    def activate(self, phi, h):
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


def by_autograd(problem, trainer, member, momentum=0.0, decay=0.0):
    """What is recorded of one network, (step, ...)."""
    with usual_torch(CPU):
        drawn = trainer.draw(WIDTH, torch.tensor(MEMBERS), 0)
    numbers, network, n = trainer.numbers, problem.network, problem.task.n_train
    weights = [w[member].clone().requires_grad_() for w in drawn]
    x, y = trainer.x.clone(), torch.tensor(problem.task.targets)
    unit = network.gamma0**2 * WIDTH
    moved = [w for w, layer in zip(weights, numbers.layers, strict=True) if layer not in network.frozen]
    optimiser = torch.optim.SGD(moved, lr=0.4 * unit, momentum=momentum, weight_decay=decay / unit)
    rows, start, found = [], 0.0, []
    for t in range(STEPS + 1):
        f, net = passed(problem, numbers, weights, x)
        start = f.detach() if t == 0 and network.centered else start
        rows = [torch.autograd.grad(each, moved, retain_graph=True) for each in f.flatten()]
        J = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
        by_layer = []
        for h, _ in net.layers:
            g = [torch.autograd.grad(each, h, retain_graph=True)[0].flatten() for each in f.flatten()]
            by_layer.append(torch.stack(g) * network.gamma0 * WIDTH)
        phi = [features.flatten(1) for _, features in net.layers]
        ntk = unit * J @ J.T
        found.append(
            {
                "prediction": f - start,
                "feature_kernel": torch.stack([v @ v.T / v.shape[1] for v in phi]),
                # rows do not mix, and neither do the gradients of their outputs but in the sum over a sample's positions
                "gradient_kernel": torch.stack([own_rows(g, len(x)) for g in by_layer]) / WIDTH,
                "ntk": ntk,
            }
        )
        optimiser.zero_grad()
        error = f[:n] - start[:n] if network.centered else f[:n]
        loss = (
            functional.cross_entropy(error, y[:n])
            if problem.loss == "cross_entropy"
            else ((error - y[:n]) ** 2).sum(1).mean() / 2
        )
        loss.backward()
        optimiser.step()
    return {name: np.stack([step[name].detach().numpy() for step in found]) for name in found[0]}


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
}


@pytest.mark.parametrize("name", OTHERS)
def test_programs_train_as_automatic_differentiation_does(name):
    problem = some_problem(**OTHERS[name])
    found, trainer = trained(problem)
    for i in range(len(MEMBERS)):
        expected = by_autograd(problem, trainer, i)
        for kind, values in expected.items():
            one = found[kind][i].reshape(values.shape if kind != "feature_kernel" else found[kind][i].shape)
            if kind in ("feature_kernel", "gradient_kernel"):
                values = np.moveaxis(values, 0, 1)
                one = found[kind][i].reshape(values.shape)
            np.testing.assert_allclose(one, values, rtol=0, atol=1e-12 * max(1, abs(values).max()), err_msg=kind)
