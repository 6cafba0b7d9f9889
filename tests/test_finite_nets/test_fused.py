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
from finite_nets.device.fields import SLOPES, Field, Layer, Sized, Slope
from finite_nets.device.precision import PRECISIONS
from finite_nets.device.products import Products
from finite_nets.training.trainer import Training

EMULATED = Path(__file__).parents[1] / "emulated_fused.h"
RNG = np.random.default_rng(0)
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SINGLE, DOUBLE = PRECISIONS["float32"], PRECISIONS["float64"]
ACTIVATIONS = [dmft.tanh(0.8), dmft.relu(), dmft.erf(), dmft.gelu(), dmft.softplus(2.0), dmft.linear()]
SLOPED = [phi for phi in ACTIVATIONS if phi.name in SLOPES]
UNIT = {3: 1e-6, 1: 1e-3}  # by products of TF32 numbers: rounding of sums of some tens of terms, of factors


def launch(folder, source, defined, blocks, given):
    """A kernel, its threads those of a CPU."""
    library = folder / ("_".join(map(str, [source.stem, *defined.values()])) + ".so")
    command = ["g++", "-std=c++17", "-w", "-shared", "-fPIC", f"-I{source.parent}"]
    command += [f"-D{name}={value}" for name, value in {**defined, "KERNELS": f'"{source.name}"'}.items()]
    if not library.exists():
        subprocess.run([*command, "-x", "c++", EMULATED, "-o", library], check=True)
    ctypes.CDLL(library).launch(blocks, ctypes.byref(given))


class Emulated(fused.Fused):
    """Kernels on a CPU, for any number of samples."""

    def __init__(self, factors, folder):
        super().__init__(factors, CPU)
        self._folder, self.launched, self.refused = folder, [], 0

    def serves(self, w, *fields):
        served = fused.by_four(w, *fields)
        self.refused += not served
        return served

    def launch(self, shape, activation, blocks, given):
        self.launched.append(shape)
        launch(self._folder, fused.SOURCE, fused.defined(shape, self._products, activation), blocks, given)


class EmulatedReadouts(readouts.Readouts):
    def __init__(self, folder):
        super().__init__(CPU)
        self._folder, self.launched = folder, []

    def serves(self, w, *fields):
        return w.shape[1] <= 3 and fused.by_four(w, *fields)

    def launch(self, passes, activation, warps, blocks, given):
        self.launched.append(passes)
        launch(self._folder, readouts.SOURCE, readouts.defined(passes, activation, given.n_out, warps), blocks, given)


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


def in_double(layer):
    return Layer(None, Field(double(layer.phi.values)), Slope(double(layer.slope.kept), layer.slope.of))


def double(x):
    return x.double().cpu()


def sized(field):
    """With the largest of each row, to the bit."""
    assert torch.equal(field.sizes, field.values.abs().amax(2))
    return field.values


def check_forward(passes, activation, shape, unit):
    members, rows, n_out, n_in = shape
    device = passes._device
    w, x, add = (fields(members, *rest, device=device) for rest in ((n_out, n_in), (rows, n_in), (1, n_out)))
    exact, scale = Products(DOUBLE, CPU, kernels=False), n_in**-0.5  # phi' is not all but zero
    for more in (None, add.expand(-1, rows, -1)):
        found = passes.forward(Field(x), w, activation, scale=scale, add=more, keep=more is not None)
        add_double = None if more is None else double(more)
        expected = exact.activated(double(x), double(w), activation, scale=scale, add=add_double, keep=True)
        same(sized(found.phi).cpu(), expected.phi.values, unit)
        same(found.slope.values().cpu(), expected.slope.values(), unit)
        assert (found.y is None) == (more is None)
        if more is not None:
            same(found.y.cpu(), expected.y, unit)


def check_backward(passes, shape, unit, activation=None):
    members, rows, n_out, n_in = shape
    w, g, x, slope = (
        fields(members, *rest, device=passes._device)
        for rest in ((n_out, n_in), (rows, n_out), (rows, n_in), (rows, n_in))
    )
    layer = Layer(None, Field(x), Slope(slope, activation))
    exact, expected = Products(DOUBLE, CPU, kernels=False), double(w)
    rest = {"scale": 0.3, "keep": 0.9, "push": 0.2}
    below = exact.descend(expected, double(g), in_double(layer), **rest)
    same(sized(passes.backward(w, Field(g), layer, **rest)).cpu(), below.values, unit)
    same(w.cpu(), expected, unit)
    exact.accumulate(expected, double(g), double(x), None, keep=1.1, scale=-0.2)
    passes.update(w, Field(g), Field(x), keep=1.1, push=-0.2)
    same(w.cpu(), expected, unit)


def check_both(passes, shape, unit):
    """And the layer below, whose inputs all members share."""
    members, rows, n_out, n_in, n_below = shape
    w, v, g, x, slope = (
        fields(members, *rest, device=passes._device)
        for rest in ((n_out, n_in), (n_in, n_below), (rows, n_out), (rows, n_in), (rows, n_in))
    )
    z, layer = fields(rows, n_below, device=passes._device), Layer(None, Field(x), Slope(slope))
    exact, hidden, first = Products(DOUBLE, CPU, kernels=False), double(w), double(v)
    rest = {"scale": 0.3, "keep": 0.9, "push": 0.2}
    ours, theirs = (Field(each.expand(members, -1, -1)) for each in (z, double(z)))
    exact.descend_both(hidden, double(g), in_double(layer), below=fused.Below(first, theirs, 0.8, -0.1), **rest)
    passes.backward_both(w, Field(g), layer, below=fused.Below(v, ours, 0.8, -0.1), **rest)
    same(w.cpu(), hidden, unit)
    same(v.cpu(), first, unit)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("factors", [3, 1])
def test_passes_are_the_products_they_fuse(folder, factors):
    passes = Emulated(factors, folder)
    check_forward(passes, ACTIVATIONS[0], (1, 11, 68, 20), UNIT[factors])
    check_forward(passes, ACTIVATIONS[0], (2, 37, 20, 20), UNIT[factors])  # three tiles of rows
    check_backward(passes, (2, 11, 20, 68), UNIT[factors], ACTIVATIONS[0])
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
    layer = Layer(None, Field(fields(2, 13, 24)), Slope(fields(2, 13, 24))).at(slice(9))._replace(phi=Field(x))
    expected = w.double() + 0.2 * g.double().mT @ x.double()
    below = layer.slope.kept.double() * (g.double() @ w.double())
    same(sized(passes.backward(w, Field(g), layer, scale=1.0, keep=1.0, push=0.2)), below, UNIT[3])
    same(w, expected, UNIT[3])


def test_sizes_are_the_largest_of_each_row():
    x = fields(5, 7)
    noted, found, shared = (
        Field(*each).sized() for each in ((x[None], x[None, :, 0]), (x[None],), (x.expand(3, -1, -1),))
    )
    assert torch.equal(noted.sizes, x[None, :, 0])
    assert torch.equal(found.sizes[0], x.abs().amax(1))
    assert torch.equal(shared.sizes, x.abs().amax(1).expand(3, -1))
    assert shared.sizes.stride(0) == 0


def check_readout(passes, shape, activation=None, device=CPU):
    members, rows, outputs, n = shape
    w, delta, x, slope = (
        fields(members, *rest, device=device) for rest in ((outputs, n), (rows, outputs), (rows, n), (rows, n))
    )
    exact, expected = Products(DOUBLE, CPU, kernels=False), w.double().cpu()
    rest, layer = {"scale": 0.7, "keep": 0.9, "push": 0.2}, Layer(None, Field(x), Slope(slope, activation))
    same(passes.image(x, w, scale=0.3).cpu(), exact.image(x.double().cpu(), expected, scale=0.3), UNIT[3])
    below = exact.descend(expected, double(delta), in_double(layer), **rest).values
    same(sized(passes.descend(w, delta, layer, **rest)).cpu(), below, UNIT[3])
    same(w.cpu(), expected, UNIT[3])


READOUTS = {(3, 7, 1, 24): None, (2, 5, 3, 132): dmft.softplus(2.0), (1, 3, 2, 516): dmft.relu()}


@pytest.mark.parametrize("shape", READOUTS, ids=str)
def test_readouts_are_their_products(folder, shape):
    check_readout(EmulatedReadouts(folder), shape, READOUTS[shape])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("factors", [3, 1])
def test_what_is_not_a_number_stays_so(folder, factors):
    bits = torch.tensor([0x7FFFFFFF, 0x7FC00000, 0x7F800000], dtype=torch.int32)
    x = torch.ones(1, 4, 20)
    x[0, :3, 5] = bits.view(torch.float32)  # two that are none, and infinity
    linear = dmft.linear()
    layer = Emulated(factors, folder).forward(Field(x), torch.ones(1, 16, 20), linear, scale=1.0, add=None, keep=False)
    assert (~torch.isfinite(layer.phi.values[0, :, 0])).tolist() == [True, True, True, False]  # others are not touched


@pytest.mark.usefixtures("small")
def test_numbers_are_of_any_size(folder):
    check_sizes(Emulated(3, folder), (1, 8, 20, 24, 12))


def check_sizes(passes, shape):
    """Samples, weights and fields back larger by powers of two, which come out of all sums, find the same to the bit."""
    members, rows, n_out, n_in, n_below = shape
    device, linear = passes._device, dmft.linear()
    w, x, g, v, z = (
        fields(members, *rest, device=device)
        for rest in ((n_out, n_in), (rows, n_in), (rows, n_out), (n_in, n_below), (rows, n_below))
    )
    slope = Slope(fields(members, rows, n_in, device=device))
    large = 2.0 ** torch.linspace(-40, 40, rows, device=device).round()[:, None]
    tiny = 2.0**-40
    assert not torch.isfinite((large * x).half()).all()  # a half has no room for them
    assert not (tiny * w).half().any()
    rest = {"scale": 1.0, "add": None, "keep": False}
    usual, far = (passes.forward(Field(a * x), b * w, linear, **rest).phi for a, b in ((1.0, 1.0), (large, tiny)))
    assert torch.equal(sized(far), large * tiny * usual.values)
    found = []
    for a, b in ((1.0, 1.0), (large, tiny)):
        above, layer, inputs = Field(g / a), Layer(None, Field(a * x), slope), Field(a * z)
        rest = {"scale": 1.0, "keep": 1.0, "push": b}
        moved, both, first = b * w, b * w, v.clone()
        below = sized(passes.backward(moved, above, layer, **rest))
        passes.backward_both(both, above, layer, **rest, below=fused.Below(first, inputs, 1.0, 1 / b))
        passes.update(both, above, layer.phi, keep=1.0, push=b)
        found.append((a * below / b, moved / b, both / b, first))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(found[0][1], w)


@pytest.mark.usefixtures("small")
def test_updates_are_off_by_their_share_of_the_largest_product(folder):
    """Half of the samples move half of the neurons, with products 2^20 times as large as those of the others."""
    passes, (rows, n_out, n_in, n_below) = Emulated(3, folder), (8, 20, 24, 12)
    w, x, g, z = (fields(1, *rest) for rest in ((n_out, n_in), (rows, n_in), (rows, n_out), (rows, n_below)))
    small, slope, v = torch.arange(rows) % 2 == 1, torch.ones(1, rows, n_in), torch.zeros(1, n_in, n_below)
    for field, apart in ((x, 2.0**12), (g, 2.0**8), (z, 2.0**12)):
        low = torch.arange(field.shape[2]) < field.shape[2] // 2
        field *= torch.where(small[:, None] == low, 1.0, 0.0) * torch.where(small, 1.0, apart)[:, None]
    w[:, :10, 12:] = w[:, 10:, :12] = 0.0  # what is pulled back is of one half, too
    layer, rest = Layer(None, Field(x), Slope(slope)), {"scale": 1.0, "keep": 0.0, "push": 1.0}
    below = g.double() @ w.double()
    alone, moved, both = (w.clone() for _ in range(3))
    passes.update(alone, Field(g), Field(x), keep=0.0, push=1.0)
    passes.backward(moved, Field(g), layer, **rest)
    passes.backward_both(both, Field(g), layer, **rest, below=fused.Below(v, Field(z), 0.0, 1.0))
    for found, above, met in ((alone, g, x), (moved, g, x), (both, g, x), (v, below, z)):
        above, met = above.double(), met.double()
        error = (found.double() - above.mT @ met).abs()
        largest = (above.abs().amax(2) * met.abs().amax(2)).amax()
        rounding = 2.0**-20 * above.abs().mT @ met.abs()  # of pairs of halves, and of sums of eight
        assert (error <= rounding + rows * 2.0**-38 * largest).all()
        assert (error > rounding).any()  # which alone is too little


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("activation", SLOPED, ids=lambda phi: phi.name)
def test_slopes_of_small_activations_keep_their_digits(folder, activation):
    passes, unit = Emulated(3, folder), torch.eye(20)[None]
    h = torch.linspace(-18, 0, 160).reshape(1, 8, 20)
    add = torch.zeros(1, 8, 20)
    layer = passes.forward(Field(h), unit, activation, scale=1.0, add=add, keep=True)
    g = Field(torch.ones(1, 8, 20))
    below = passes.backward(unit.clone(), g, layer, scale=1.0, keep=1.0, push=0.0)
    phi, slope = activation.both(torch, layer.y.double())
    # a slope that is one less a number next to it is as good as that
    size = torch.ones_like(slope) if activation.name == "tanh" else slope
    for found, expected, of in (
        (layer.phi.values, phi, phi),
        (layer.slope.values(), slope, size),
        (below.values, slope, size),
    ):
        assert ((found.double() - expected).abs() <= 2e-6 * of.abs()).all()


X, Y = RNG.standard_normal((8, 6)), RNG.standard_normal((8, 3))  # passes read rows of six as of eight
NETWORKS = {
    "plain": (dmft.MLP(3), Y[:, 0], dmft.GradientDescent(0.4, 3), "squared"),
    "decay, outputs": (dmft.MLP(2, dmft.relu()), Y, dmft.GradientDescent(0.2, 3, weight_decay=0.3), "squared"),
    "logistic, a frozen matrix": (dmft.MLP(4, frozen=[2]), np.sign(Y[:, 0]), dmft.GradientDescent(0.3, 3), "logistic"),
    "frozen inputs": (dmft.MLP(2, frozen=[0]), Y[:, 0], dmft.GradientDescent(0.3, 3), "squared"),
    "residual, biases": (dmft.ResidualMLP(3, bias=0.4), Y[:, 0], dmft.GradientDescent(0.3, 3), "squared"),
    "momentum": (dmft.MLP(3), Y[:, 0], dmft.GradientDescent(0.2, 3, momentum=0.6), "squared"),
    "a large sample": (dmft.MLP(3), Y[:, 0], dmft.GradientDescent(0.4, 3), "squared"),
}


@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore:The inputs are far from size one")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_by_passes_as_by_products(folder, monkeypatch, name):
    network, y, training, loss = NETWORKS[name]
    x = X * np.where((np.arange(8) == 2) & (name == "a large sample"), 1e12, 1.0)[:, None]
    problem = dmft.Problem(network, dmft.Task(x[:5], y[:5], x[5:], y[5:]), training, loss)
    arguments = {"widths": [12], "seeds": 2, "device": "cpu", "observables": ["prediction"], "save_steps": [0, 1, 3]}
    expected = finite_nets.train_ensemble(problem, dtype="float64", **arguments)
    passes, outer, usual = Emulated(3, folder), EmulatedReadouts(folder), Products.__init__

    def with_passes(self, precision, device, kernels=None):
        usual(self, precision, device, kernels)
        self.fused, self.readouts = (passes, outer) if precision is SINGLE else (None, None)

    monkeypatch.setattr(Products, "__init__", with_passes)
    found = finite_nets.train_ensemble(problem, dtype="float32", **arguments)
    np.testing.assert_allclose(found.prediction, expected.prediction, rtol=1e-4, atol=1e-5)
    assert (passes.refused == 0) == (name != "momentum")
    launched = {shape.passes for shape in passes.launched}
    backward = {
        "plain": {fused.BACKWARD, fused.BOTH},
        "a large sample": {fused.BACKWARD, fused.BOTH},
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
    # or if all samples shared a power of two
    if name == "a large sample":
        monkeypatch.setattr(Field, "sized", _sharing)
        lost = finite_nets.train_ensemble(problem, dtype="float32", **arguments)
        assert abs(lost.prediction - expected.prediction).max() > 1e-2


def _sharing(self, usual=Field.sized):
    values, sizes = usual(self)
    return Sized(values, sizes.amax(1, keepdim=True).expand_as(sizes).contiguous())


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
    for activation in (None, *SLOPED) if factors == 3 else (None,):
        check_backward(passes, shape, UNIT[factors], activation)
    if shape[1] <= fused.TILE:
        check_both(passes, (*shape, 76), UNIT[factors])


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 60, 512, 256, 60), (2, 41, 140, 300, 20)], ids=str)
def test_numbers_are_of_any_size_on_a_gpu(shape):
    check_sizes(fused.Fused(3, GPU), shape)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(3, 60, 1, 512), (5, 17, 10, 128), (2, 200, 16, 1028)], ids=str)
def test_readouts_on_a_gpu(shape):
    for activation in (None, *SLOPED):
        check_readout(readouts.Readouts(GPU), shape, activation, GPU)


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
