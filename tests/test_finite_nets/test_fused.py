"""Layers in one pass: the kernels, their threads those of a CPU, against PyTorch in float64."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import dmft
import finite_nets
from finite_nets.device import fused, nvrtc, products, readouts
from finite_nets.device.precision import PRECISIONS
from finite_nets.device.products import Products
from finite_nets.training.trainer import Training

EMULATED = Path(__file__).parents[1] / "emulated_fused.h"
RNG = np.random.default_rng(0)
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SINGLE, DOUBLE = PRECISIONS["float32"], PRECISIONS["float64"]
ACTIVATIONS = [dmft.tanh(0.8), dmft.relu(), dmft.erf(), dmft.gelu(), dmft.softplus(2.0), dmft.linear()]
UNIT = {3: 1e-6, 1: 1e-3}  # by products of TF32 numbers: rounding of sums of some tens of terms, of factors


def launch(folder, source, defined, blocks, given):
    """A kernel, its threads those of a CPU."""
    library = folder / ("_".join(map(str, [source.stem, *defined.values()])) + ".so")
    command = ["g++", "-std=c++20", "-w", "-shared", "-fPIC", "-pthread", f"-I{source.parent}"]
    command += [f"-D{name}={value}" for name, value in {**defined, "KERNELS": f'"{source.name}"'}.items()]
    if not library.exists():
        subprocess.run([*command, "-x", "c++", EMULATED, "-o", library], check=True)
    ctypes.CDLL(library).launch(blocks, ctypes.byref(given))


class Emulated(fused.Fused):
    """Kernels on a CPU, for any number of samples."""

    def __init__(self, factors, folder):
        super().__init__(factors, CPU)
        self._folder, self.launched = folder, []

    def serves(self, w, *fields):
        return fused.by_four(w, *fields)

    def launch(self, shape, activation, blocks, given):
        self.launched.append(shape)
        launch(self._folder, fused.SOURCE, fused.defined(shape, self._products, activation), blocks, given)


class EmulatedReadouts(readouts.Readouts):
    def __init__(self, folder):
        super().__init__(CPU)
        self._folder, self.launched = folder, []

    def serves(self, w, *fields):
        return w.shape[1] <= 3 and fused.by_four(w, *fields)

    def launch(self, passes, warps, blocks, given):
        self.launched.append(passes)
        launch(self._folder, readouts.SOURCE, readouts.defined(passes, given.n_out, warps), blocks, given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the kernels for a CPU with")
    return tmp_path_factory.mktemp("fused")


@pytest.fixture
def small(monkeypatch):
    """Tiles of 16 rows at most, two warps."""
    for name, rows in (("TILE", 16), ("ALONE", 16), ("CHUNKS", (32,))):
        monkeypatch.setattr(fused, name, rows)
    usual = fused.shape_of
    monkeypatch.setattr(fused, "shape_of", lambda *a, **k: usual(*a, **k)._replace(warps=2))


def fields(*shape, device=CPU):
    return torch.tensor(RNG.standard_normal(shape), dtype=torch.float32, device=device)


def same(found, expected, unit):
    assert (found.double() - expected).norm() / expected.norm() < unit
    assert found.shape == expected.shape


def check_forward(passes, activation, shape, unit):
    members, rows, n_out, n_in = shape
    device = passes._device
    w, x, add = (fields(members, *rest, device=device) for rest in ((n_out, n_in), (rows, n_in), (1, n_out)))
    exact, scale = Products(DOUBLE, CPU, kernels=False), n_in**-0.5  # phi' is not all but zero
    for more in (None, add.expand(-1, rows, -1)):
        y, *found = passes.forward(x, w, activation, scale=scale, add=more, keep=more is not None)
        in_double = (None if more is None else more.double().cpu(),)
        expected = exact.activated(
            x.double().cpu(), w.double().cpu(), activation, scale=scale, add=in_double[0], keep=True
        )
        assert (y is None) == (more is None)
        for ours, theirs in zip(found if y is None else (y, *found), expected[-3 + (y is None) :], strict=True):
            same(ours.cpu(), theirs, unit)


def check_backward(passes, shape, unit):
    members, rows, n_out, n_in = shape
    w, g, x, slope = (
        fields(members, *rest, device=passes._device)
        for rest in ((n_out, n_in), (rows, n_out), (rows, n_in), (rows, n_in))
    )
    exact, expected = Products(DOUBLE, CPU, kernels=False), w.double().cpu()
    below = exact.descend(
        expected, *(each.double().cpu() for each in (g, x)), slope=slope.double().cpu(), scale=0.3, keep=0.9, push=0.2
    )
    found = passes.backward(w, g, x, slope=slope, scale=0.3, keep=0.9, push=0.2)
    same(found.cpu(), below, unit)
    same(w.cpu(), expected, unit)
    exact.accumulate(expected, g.double().cpu(), x.double().cpu(), None, keep=1.1, scale=-0.2)
    passes.update(w, g, x, keep=1.1, push=-0.2)
    same(w.cpu(), expected, unit)


def check_both(passes, shape, unit):
    """And the layer below, whose inputs all members share."""
    members, rows, n_out, n_in, n_below = shape
    w, v, g, x, slope = (
        fields(members, *rest, device=passes._device)
        for rest in ((n_out, n_in), (n_in, n_below), (rows, n_out), (rows, n_in), (rows, n_in))
    )
    z = fields(rows, n_below, device=passes._device)
    exact, hidden, first = Products(DOUBLE, CPU, kernels=False), w.double().cpu(), v.double().cpu()
    in_double = [each.double().cpu() for each in (g, x, slope, z)]
    rest = {"scale": 0.3, "keep": 0.9, "push": 0.2}
    below = fused.Below(first, in_double[3].expand(members, -1, -1), 0.8, -0.1)
    exact.descend_both(hidden, *in_double[:2], slope=in_double[2], below=below, **rest)
    passes.backward_both(w, g, x, slope=slope, below=fused.Below(v, z.expand(members, -1, -1), 0.8, -0.1), **rest)
    same(w.cpu(), hidden, unit)
    same(v.cpu(), first, unit)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("factors", [3, 1])
def test_passes_are_the_products_they_fuse(folder, factors):
    passes = Emulated(factors, folder)
    check_forward(passes, ACTIVATIONS[0], (1, 11, 68, 20), UNIT[factors])
    check_forward(passes, ACTIVATIONS[0], (2, 37, 20, 20), UNIT[factors])  # three tiles of rows
    check_backward(passes, (2, 11, 20, 68), UNIT[factors])
    check_backward(passes, (1, 16, 20, 64), UNIT[factors])
    check_backward(passes, (1, 37, 20, 24), UNIT[factors])  # pulled back alone, and updated by two parts of the rows
    check_both(passes, (2, 11, 20, 68, 12), UNIT[factors])
    check_both(passes, (1, 16, 20, 24, 52), UNIT[factors])
    launched = {(shape.passes, shape.rows) for shape in passes.launched}
    assert launched == {(0, 16), (1, 16), (2, 16), (2, 32), (3, 16), (4, 16)}


@pytest.mark.slow
def test_tiles_as_large_as_they_are_on_a_gpu(folder):
    passes = Emulated(3, folder)
    check_forward(passes, ACTIVATIONS[0], (1, 60, 132, 28), UNIT[3])
    check_backward(passes, (1, 100, 28, 132), UNIT[3])
    check_both(passes, (1, 60, 28, 132, 20), UNIT[3])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("activation", ACTIVATIONS[1:], ids=lambda phi: phi.name)
def test_activations_are_those_of_pytorch(folder, activation):
    check_forward(Emulated(3, folder), activation, (1, 8, 20, 20), UNIT[3])


@pytest.mark.usefixtures("small")
def test_samples_may_be_some_of_all(folder):
    passes = Emulated(3, folder)
    w, g, x = fields(2, 20, 24), fields(2, 9, 20), fields(9, 24).expand(2, -1, -1)
    slope = fields(2, 13, 24)[:, :9]
    expected = w.double() + 0.2 * g.double().mT @ x.double()
    below = slope.double() * (g.double() @ w.double())
    same(passes.backward(w, g, x, slope=slope, scale=1.0, keep=1.0, push=0.2), below, UNIT[3])
    same(w, expected, UNIT[3])


def check_readout(passes, shape, device=CPU):
    members, rows, outputs, n = shape
    w, delta, x, slope = (
        fields(members, *rest, device=device) for rest in ((outputs, n), (rows, outputs), (rows, n), (rows, n))
    )
    exact, expected = Products(DOUBLE, CPU, kernels=False), w.double().cpu()
    rest = {"scale": 0.7, "keep": 0.9, "push": 0.2}
    same(passes.image(x, w, scale=0.3).cpu(), exact.image(x.double().cpu(), expected, scale=0.3), UNIT[3])
    below = exact.descend(expected, delta.double().cpu(), x.double().cpu(), slope=slope.double().cpu(), **rest)
    same(passes.descend(w, delta, x, slope=slope, **rest).cpu(), below, UNIT[3])
    same(w.cpu(), expected, UNIT[3])


@pytest.mark.parametrize("shape", [(3, 7, 1, 24), (2, 5, 3, 132), (1, 3, 2, 516)], ids=str)
def test_readouts_are_their_products(folder, shape):
    check_readout(EmulatedReadouts(folder), shape)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("factors", [3, 1])
def test_what_is_not_a_number_stays_so(folder, factors):
    bits = torch.tensor([0x7FFFFFFF, 0x7FC00000, 0x7F800000], dtype=torch.int32)
    x = torch.ones(1, 4, 20)
    x[0, :3, 5] = bits.view(torch.float32)  # two that are none, and infinity
    linear = dmft.linear()
    phi = Emulated(factors, folder).forward(x, torch.ones(1, 16, 20), linear, scale=1.0, add=None, keep=False)[1]
    assert (~torch.isfinite(phi[0, :, 0])).tolist() == [True] * 4  # samples of one part share a unit


@pytest.mark.usefixtures("small")
def test_numbers_are_of_any_size(folder):
    passes, large, tiny = Emulated(3, folder), 2.0**40, 2.0**-40
    w, x, g, slope = fields(1, 20, 20), fields(1, 8, 20), fields(1, 8, 20), fields(1, 8, 20)
    assert not torch.isfinite((large * x).half()).any()  # a half has no room for them
    assert not (tiny * w).half().any()
    usual, far = (
        passes.forward(a * x, b * w, dmft.linear(), scale=1.0, add=None, keep=False)[1]
        for a, b in ((1.0, 1.0), (large, tiny))
    )
    assert torch.equal(far, large * tiny * usual)  # units are powers of two
    moved, also = w.clone(), tiny * w
    below = passes.backward(moved, g, x, slope=slope, scale=1.0, keep=1.0, push=0.5)
    far = passes.backward(also, tiny * g, large * x, slope=slope, scale=1.0, keep=1.0, push=0.5 / large)
    assert torch.equal(far, tiny * tiny * below)
    assert torch.equal(also, tiny * moved)


X, Y = RNG.standard_normal((8, 9)), RNG.standard_normal((8, 3))
NETWORKS = {
    "plain": (dmft.MLP(3), Y[:, 0], dmft.GradientDescent(0.4, 3), "squared"),
    "decay, outputs": (dmft.MLP(2, dmft.relu()), Y, dmft.GradientDescent(0.2, 3, weight_decay=0.3), "squared"),
    "logistic, a frozen matrix": (dmft.MLP(4, frozen=[2]), np.sign(Y[:, 0]), dmft.GradientDescent(0.3, 3), "logistic"),
    "frozen inputs": (dmft.MLP(2, frozen=[0]), Y[:, 0], dmft.GradientDescent(0.3, 3), "squared"),
    "residual, biases": (dmft.ResidualMLP(3, bias=0.4), Y[:, 0], dmft.GradientDescent(0.3, 3), "squared"),
    "momentum": (dmft.MLP(3), Y[:, 0], dmft.GradientDescent(0.2, 3, momentum=0.6), "squared"),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_by_passes_as_by_products(folder, monkeypatch, name):
    network, y, training, loss = NETWORKS[name]
    problem = dmft.Problem(network, dmft.Task(X[:5], y[:5], X[5:], y[5:]), training, loss)
    arguments = {"widths": [12], "seeds": 2, "device": "cpu", "observables": ["prediction"], "save_steps": [0, 1, 3]}
    expected = finite_nets.train_ensemble(problem, dtype="float64", **arguments)
    passes, outer, usual = Emulated(3, folder), EmulatedReadouts(folder), Products.__init__

    def with_passes(self, precision, device, kernels=None):
        usual(self, precision, device, kernels)
        self.fused, self.readouts = (passes, outer) if precision is SINGLE else (None, None)

    monkeypatch.setattr(Products, "__init__", with_passes)
    found = finite_nets.train_ensemble(problem, dtype="float32", **arguments)
    np.testing.assert_allclose(found.prediction, expected.prediction, rtol=1e-4, atol=1e-5)
    launched = {shape.passes for shape in passes.launched}
    backward = {
        "plain": {fused.BACKWARD, fused.BOTH},
        "decay, outputs": {fused.BOTH},
        "logistic, a frozen matrix": {fused.BACKWARD, fused.BOTH},
        "momentum": set(),
    }
    assert launched & {fused.BACKWARD, fused.BOTH} == backward.get(name, {fused.BACKWARD})
    assert (readouts.BACKWARD in outer.launched) == (name != "momentum")
    # and something would be seen if matrices were not updated
    if name == "plain":
        monkeypatch.setattr(Emulated, "backward", _without_update)
        lost = finite_nets.train_ensemble(problem, dtype="float32", **arguments)
        assert abs(lost.prediction - expected.prediction).max() > 1e-3


def _without_update(self, *fields, **rest):
    return fused.Fused.backward(self, *fields, **rest | {"push": 0.0})


def test_what_is_read_by_four_in_order_is_served(monkeypatch):
    passes = fused.Fused(3, CPU)
    w, x = torch.ones(2, 512, 512), torch.ones(2, 60, 512)
    assert not passes.serves(w, x)  # there are no kernels here
    monkeypatch.setattr(fused, "available", lambda _: True)
    assert passes.serves(w, x)
    assert passes.serves(w, x[:, :20], x[:1].expand(2, -1, -1))
    for refused in (x[:, :16], torch.ones(2, 513, 512), x.mT.contiguous().mT, torch.ones(2, 60, 510)):
        assert not passes.serves(w, refused)
    assert not passes.serves(torch.ones(2, 32, 32), torch.ones(2, 60, 32))
    assert passes.serves(torch.ones(2, 128, 8), torch.ones(2, 60, 8))
    assert not passes.serves(torch.ones(2, 130, 8), torch.ones(2, 60, 8))  # rows of 130 are written by four, too


def test_where_kernels_are_not_compiled_layers_are_not_fused(monkeypatch):
    def fails(*_):
        raise RuntimeError("fused.cu was not compiled: no reason")

    monkeypatch.setattr(nvrtc, "available", lambda: True)
    monkeypatch.setattr(fused, "_kernel", fails)
    device = torch.device("cuda", 7)
    fused.available.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not fused.available(device)  # there are no units, of which nothing need be said
    fused.available.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.warns(UserWarning, match=r"not fused: fused\.cu was not compiled"):
        assert not fused.available(device)
    assert not fused.available(device)  # which is said once
    fused.available.cache_clear()
    assert products.FACTORS.keys() <= PRECISIONS.keys()


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("factors", [3, 1])
@pytest.mark.parametrize(
    "shape", [(3, 60, 512, 512), (2, 17, 64, 60), (2, 41, 140, 300), (2, 41, 176, 300), (1, 200, 512, 256)], ids=str
)
def test_passes_on_a_gpu(shape, factors):
    passes = fused.Fused(factors, GPU)
    for activation in ACTIVATIONS if factors == 3 else ACTIVATIONS[:1]:  # phi' of ReLU jumps where h is rounded
        check_forward(passes, activation, shape, UNIT[factors])
    check_backward(passes, shape, UNIT[factors])
    if shape[1] <= fused.TILE:
        check_both(passes, (*shape, 76), UNIT[factors])


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(3, 60, 1, 512), (5, 17, 10, 128), (2, 200, 16, 1028)], ids=str)
def test_readouts_on_a_gpu(shape):
    check_readout(readouts.Readouts(GPU), shape, GPU)


SAMPLES, ONE_HOT = RNG.standard_normal((24, 8)), np.eye(3)[RNG.integers(3, size=24)]
REPLAYED = {
    "squared": (SAMPLES[:, 0], dmft.GradientDescent(0.3, 12), "squared"),
    "cross-entropy": (ONE_HOT, dmft.GradientDescent(0.3, 12), "cross_entropy"),
    "Adam": (SAMPLES[:, 0], dmft.Adam(0.05, 12, eps=1e-2), "squared"),
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "tf32"])
@pytest.mark.parametrize("name", REPLAYED)
def test_replayed_passes_are_those_taken(monkeypatch, name, dtype):
    y, training, loss = REPLAYED[name]
    problem = dmft.Problem(dmft.MLP(3), dmft.Task(SAMPLES, y), training, loss)
    arguments = {"widths": [256], "seeds": 4, "device": "cuda", "save_steps": [0, 12], "observables": ["prediction"]}
    replayed = finite_nets.train_ensemble(problem, dtype=dtype, **arguments)
    monkeypatch.setattr(Training, "run", _taken)
    taken = finite_nets.train_ensemble(problem, dtype=dtype, **arguments)
    # recorded steps of Adam have their rates in float64, and what is rounded to 10 bits may fall to either side
    far = {"float32": 1e-6, "tf32": 1e-3}[dtype] * float(abs(taken.prediction).max()) if name == "Adam" else 0
    np.testing.assert_allclose(replayed.prediction, taken.prediction, rtol=0, atol=far)
    exact = finite_nets.train_ensemble(problem, dtype="float64", **arguments)
    off = np.abs(taken.prediction - exact.prediction).max() / np.abs(exact.prediction).max()
    assert off < {"float32": 5e-6, "tf32": 5e-3}[dtype]


def _taken(self, state, save_steps, **_):
    for t in range(max(save_steps) + 1):
        seen, trained = self.evaluate(state, self.meet(t, everything=True), gradients=False)
        self.watch(state, trained, t)
        if t in save_steps:
            yield seen
        if t < max(save_steps):
            self.advance(state, t, seen, trained)
