"""Architectures: convolutions against loops and PyTorch, those of one's own as parts of problems, what is refused."""

import dataclasses
import itertools
import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from test_own_activation import LEAKY
from torch.nn import functional

import dmft
from dmft.limits.frozen import frozen_kernels
from dmft.specs._own import in_general_position
from dmft.specs.networks.convolution import mixing
from dmft.specs.networks.own import WIDTH, _Values
from figures.report.provenance import in_words

RNG = np.random.default_rng(3)
IMAGES = RNG.standard_normal((3, 5, 4, 2))
SERIES = RNG.standard_normal((3, 7, 2))
Y = [1.0, -1.0, 1.0]
DESCENT = dmft.GradientDescent(0.3, 3)


def problem(network, x=IMAGES):
    return dmft.Problem(network, dmft.Task(x, Y), DESCENT)


# ---- convolutions ----------------------------------------------------------------------------------------------------

SHAPES = [((7,), 3, 1), ((7,), 5, 2), ((6,), 3, 3), ((5, 4), 3, 1), ((5, 4), 3, 2), ((3, 6), 1, 2)]


def by_loops(values, weights, size, stride, padding):
    """u_y = sum_k w_k v_{y + k}, (sample, [row,] position, neuron), of w ([row,] column, neuron, channel)."""
    grid = values.shape[1:-1]
    result = np.zeros((len(values), *(-(-n // stride) for n in grid), weights.shape[-2]))
    for y in np.ndindex(result.shape[1:-1]):
        for k in itertools.product(range(size), repeat=len(grid)):
            place = [stride * a + b - size // 2 for a, b in zip(y, k, strict=True)]
            if padding == "circular":
                place = [p % n for p, n in zip(place, grid, strict=True)]
            if all(0 <= p < n for p, n in zip(place, grid, strict=True)):
                result[(slice(None), *y)] += values[(slice(None), *place)] @ weights[k].T
    return result


@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize(("grid", "size", "stride"), SHAPES)
def test_mixes_and_patches_are_convolutions(grid, size, stride, padding):
    x, W = RNG.standard_normal((2, *grid, 3)), RNG.standard_normal((*(size,) * len(grid), 4, 3))
    K, places = size ** len(grid), W.reshape(-1, 4, 3)
    expected = by_loops(x, W, size, stride, padding).reshape(2, -1, 4)
    mix = mixing(grid, size, stride, padding)
    assert mix.shape == (K, expected.shape[1], np.prod(grid))
    mixed = np.einsum("kyx,axi,kji->ayj", mix, x.reshape(2, -1, 3), places)
    np.testing.assert_allclose(mixed, expected / np.sqrt(K), atol=1e-12)
    patches = dmft.CNN(1, size, stride=stride, padding=padding).inputs(x)
    flat = np.moveaxis(places, 1, 0).reshape(4, -1)
    np.testing.assert_allclose(patches @ flat.T, expected / np.sqrt(3 * K), atol=1e-12)
    if size > 1:  # the twin: the other padding
        other = mixing(grid, size, stride, {"zero": "circular", "circular": "zero"}[padding])
        assert abs(np.einsum("kyx,axi,kji->ayj", other, x.reshape(2, -1, 3), places) - mixed).max() > 0.1


def convolved(v, W, stride, padding):
    """(sample, channel, ...) by PyTorch; W (neuron, channel, ...)."""
    axes = W.ndim - 2
    half = W.shape[-1] // 2
    v = functional.pad(v, (half,) * (2 * axes), mode={"zero": "constant", "circular": "circular"}[padding])
    return {1: functional.conv1d, 2: functional.conv2d}[axes](v, W, stride=stride)


def by_torch(network, x, first, banks):
    """What is read (sample, neuron), or with all positions side by side, of weights (neuron, K C), (K, neuron, neuron) by
    PyTorch's convolutions."""
    axes, C = x.ndim - 2, x.shape[-1]
    places = (network.kernel_size,) * axes
    K = network.kernel_size**axes
    v = torch.as_tensor(np.moveaxis(x, -1, 1))
    W = first.reshape(len(first), *places, C).movedim(-1, 1)
    h = convolved(v, W, network.stride, network.padding) / (K * C) ** 0.5
    for bank in banks:
        W = bank.movedim(0, -1).reshape(*bank.shape[1:], *places)
        h = convolved(torch.tanh(h), W, network.stride, network.padding) / (K * bank.shape[1]) ** 0.5
    features = torch.tanh(h).flatten(2)
    return features.mean(-1) if network.pooling == "mean" else features.mT.flatten(1) / features.shape[2] ** 0.5


NETWORKS = [
    (dmft.CNN(3, 3), SERIES),
    (dmft.CNN(2, 3, stride=2, padding="circular"), SERIES),
    (dmft.CNN(2, 3, padding="circular"), IMAGES),
    (dmft.CNN(3, 3, stride=2), IMAGES),
    (dmft.CNN(2, 3, stride=2, pooling="flatten"), IMAGES),
]


@pytest.mark.parametrize(("network", "x"), NETWORKS)
def test_the_program_is_that_of_pytorch(network, x):
    net = _Values(x.shape[1:])
    features = network.program(net, network.inputs(x)).value
    K = network.kernel_size ** (x.ndim - 2)
    first = torch.as_tensor(in_general_position("W0", (WIDTH, K * x.shape[-1])))
    banks = [torch.as_tensor(in_general_position(f"W{n}", (K, WIDTH, WIDTH))) for n in range(1, network.depth)]
    features = features.reshape(len(x), -1)
    np.testing.assert_allclose(features, by_torch(network, x, first, banks), atol=1e-13)
    twin = replace(network, padding="zero" if network.padding == "circular" else "circular")
    assert abs(features - by_torch(twin, x, first, banks).numpy()).max() > 1e-3


def test_sketch_of_a_convolutional_network():
    sketch = problem(dmft.CNN(3, 3, stride=2)).sketch
    assert [(part.bank, part.positions) for part in sketch.matrices] == [(9, (2, 6)), (9, (1, 2))]
    assert sketch.layers == ((0, 6), (1, 2), (2, 1))
    assert (sketch.depth, sketch.readout_layer, sketch.linear) == (3, 3, False)
    assert problem(dmft.CNN(2, 3, dmft.linear()), SERIES).sketch.linear


def tangent(network, x, width, seed):
    """K (sample, sample_2) of a network of finite width at initialisation, by automatic differentiation."""
    generator = torch.Generator().manual_seed(seed)
    K, C = network.kernel_size ** (x.ndim - 2), x.shape[-1]
    positions = math.prod(network.grids(x.shape[1:])[-1]) if network.pooling == "flatten" else 1
    shapes = [(width, K * C), *[(K, width, width)] * (network.depth - 1), (positions * width,)]
    deviations = np.sqrt(network.weight_variance) * np.ones(network.depth + 1)
    weights = [
        (d * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()
        for shape, d in zip(shapes, deviations, strict=True)
    ]
    first, *banks, readout = weights
    f = by_torch(network, x, first, banks) @ readout / width**0.5
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(each, weights, retain_graph=True)]) for each in f]
    J = torch.stack(rows)
    return (J @ J.T).numpy()


@pytest.mark.parametrize(
    ("network", "x"),
    [(replace(net, weight_variance=(1.5, *[2.5] * (net.depth - 1), 2.0)), x[:2]) for net, x in NETWORKS[1:]],
)
def test_frozen_kernels_are_those_of_wide_networks(network, x):
    theory = frozen_kernels(network, x=x).ntk
    drawn = np.array([[tangent(network, x, width, seed) for seed in range(100)] for width in (32, 64)])
    mean, se = drawn.mean(1), drawn.std(1, ddof=1) / np.sqrt(100)
    found, error = 2 * mean[1] - mean[0], np.sqrt(4 * se[1] ** 2 + se[0] ** 2)
    assert (abs(found - theory) < 4 * error).all()
    twin = frozen_kernels(replace(network, weight_variance=1.0), x=x).ntk
    assert (abs(found - twin) > 8 * error).any()


def test_one_position_is_a_perceptron():
    x, options = RNG.standard_normal((3, 1, 5)), {"weight_variance": (1.3, 0.8, 1.2, 0.7), "frozen": (2,)}
    one = frozen_kernels(dmft.CNN(3, 1, **options), x=x)
    other = frozen_kernels(dmft.MLP(3, **options), dmft.Task(x, Y).input_kernel)
    for name, value in vars(one).items():
        np.testing.assert_allclose(value, vars(other)[name], rtol=1e-12, atol=1e-14)
    lazy = dmft.lazy_limit(problem(dmft.CNN(3, 1, **options), x))
    same = dmft.lazy_limit(problem(dmft.MLP(3, **options), x))
    np.testing.assert_allclose(lazy.prediction, same.prediction, atol=1e-12)
    assert lazy.sizes["layer"] == 3


# ---- images as tasks -------------------------------------------------------------------------------------------------


def test_perceptrons_read_images_as_vectors():
    images, vectors = dmft.Task(IMAGES, Y), dmft.Task(IMAGES.reshape(3, -1), Y)
    assert (images.dimension, images.shape, vectors.shape) == (40, (5, 4, 2), (40,))
    np.testing.assert_array_equal(images.input_kernel, vectors.input_kernel)
    assert images != vectors
    networks = dmft.MLP(2), dmft.ResidualMLP(2), dmft.MLP(1, dmft.linear(), bias=0.5)
    for network in networks:
        one, other = (dmft.lazy_limit(dmft.Problem(network, task, DESCENT)) for task in (images, vectors))
        np.testing.assert_array_equal(one.prediction, other.prediction)
    one, other = (dmft.two_layer_linear(dmft.Problem(networks[-1], task, DESCENT)) for task in (images, vectors))
    np.testing.assert_array_equal(one.ntk, other.ntk)


def test_tasks_of_images():
    task = dmft.Task(IMAGES, Y, IMAGES[:1], Y[:1])
    assert task.x.shape == (4, 5, 4, 2)
    assert "5 x 4 positions of 2 channels" in repr(task)
    assert "5 x 4 positions of 2 channels" in task._repr_html_()
    described = dmft.Problem(dmft.CNN(2, 3), task, DESCENT)
    again = dmft.Problem.from_json(described.to_json())
    assert again == described
    assert again.task.shape == (5, 4, 2)
    with pytest.raises(ValueError, match=re.escape("x_test has 4 x 5 positions of 2 channels and x_train 5 x 4")):
        dmft.Task(IMAGES, Y, IMAGES.transpose(0, 2, 1, 3), Y)
    with pytest.raises(ValueError, match=re.escape("or (sample, row, column, channel)")):
        dmft.Task(IMAGES[..., None], Y)


# ---- one's own -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Own(dmft.Architecture):
    """Layers that share their neurons, one for each activation."""

    phis: tuple = (dmft.tanh(), dmft.relu())
    branch: float = 0.5
    gamma0: float = 2.0
    bias: float = 0.0  # the default that built-in networks leave out
    label: str | None = None

    def program(self, net, x):
        h = net.read("W0", x, to="neurons")
        for n, phi in enumerate(self.phis):
            h = h + self.branch * net.apply(f"W{n + 1}", net.layer(h, net.activate(phi, h)), to="neurons")
        return net.layer(h, net.local(squashed, h))


def squashed(xp, h):
    return xp.tanh(h) / 2


@dataclass(frozen=True)
class Perceptron(dmft.Architecture):
    depth: int = 2

    def program(self, net, x):
        h = net.read("W0", x, to=0)
        for n in range(1, self.depth):
            h = net.apply(f"W{n}", net.layer(h, net.activate(dmft.tanh(), h)), to=n)
        return net.layer(h, net.activate(dmft.tanh(), h))


class Outer:
    Inner = Perceptron


def test_one_of_ones_own_is_described_and_found_again():
    described = problem(Own((dmft.erf(0.5), LEAKY), bias=0.0, label="mine"))
    content = json.loads(described.to_json(arrays=False))["network"]
    assert content["kind"] == f"{__name__}:Own"
    assert content["bias"] == 0.0
    assert content["phis"][0] == {"name": "erf", "gain": 0.5}
    again = dmft.Problem.from_json(described.to_json())
    assert again == described
    assert again.problem_id == described.problem_id
    assert again.network.phis[1] == LEAKY
    varied = dmft.vary(described, gamma0=[1.0, 2.0], steps=[3, 4])
    assert [(p.network.gamma0, p.training.steps) for p in varied] == [(1.0, 3), (1.0, 4), (2.0, 3), (2.0, 4)]
    assert len({p.problem_id for p in varied}) == 4
    assert described.sketch.depth == 3
    assert "Own" in described._repr_html_()


def test_depth_of_ones_own_is_counted():
    with pytest.raises(ValueError, match="vary frozen, too"):
        dmft.vary(problem(replace(FROZEN, depth=2)), depth=[2, 3])
    assert problem(Perceptron(4)).sketch.readout_layer == 4


@dataclass(frozen=True)
class Frozen(Perceptron):
    frozen: tuple = (2,)


FROZEN = Frozen()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (f"{__name__}:Own", "nowhere:Own", "of a module that is not imported, and is never imported .* `import nowhere` first"),
        (f"{__name__}:Own", f"{__name__}:Gone", "has no architecture Gone; define it first"),
        (f"{__name__}:Own", "__main__:Own", "Classes of a notebook or a script are known in their own process alone"),
        (f"{__name__}:Own", "dmft:solve", "the module dmft has no architecture solve"),
        (f"{__name__}:Own", f"{__name__}:Outer", "has no architecture Outer"),
        ('"branch": 0.5', '"branch": 0.25', "has changed since this was written"),
        ('"branch": 0.5', '"twig": 0.5', "has no twig; its fields are phis, branch"),
    ],
)  # fmt: skip
def test_descriptions_that_do_not_fit_are_refused(before, after, message):
    text = problem(Own()).to_json()
    assert before in text
    with pytest.raises(ValueError, match=message):
        dmft.Problem.from_json(text.replace(before, after))


def test_an_edited_program_is_another_problem(monkeypatch):
    text, before = problem(Own()).to_json(), problem(Own()).problem_id
    monkeypatch.setitem(globals(), "squashed", lambda xp, h: xp.tanh(h) / 3)
    assert problem(Own()).problem_id != before
    with pytest.raises(ValueError, match="has changed since this was written"):
        dmft.Problem.from_json(text)


@dataclass(frozen=True)
class Larger(dmft.Architecture):
    """Every number of which is as much larger as `FACTOR` is."""

    def program(self, net, x):
        h = FACTOR * net.read("W0", x, to="only")
        return net.layer(h, net.activate(dmft.relu(), h))


FACTOR = 1.0


def test_an_edited_factor_of_all_numbers_is_another_problem(monkeypatch):
    before = problem(Larger()).problem_id
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert problem(Larger()).problem_id != before


def test_nothing_is_imported_for_a_description():
    text = problem(Own()).to_json().replace(f"{__name__}:Own", "json.tool:Own")
    code = f"""
import sys, dmft
try:
    dmft.Problem.from_json({text!r})
except ValueError as error:
    print(error)
assert "json.tool" not in sys.modules
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "`import json.tool` first" in found.stdout


class Undecorated(dmft.Architecture):
    pass


class Derived(dmft.MLP):
    pass


@dataclass
class Thawed(dmft.Architecture):
    pass


@dataclass(frozen=True)
class Empty(dmft.Architecture):
    pass


@dataclass(frozen=True)
class Raising(Perceptron):
    def program(self, net, x):  # noqa: ARG002
        raise KeyError("lost")


@dataclass(frozen=True)
class WithPositions(Perceptron):
    def inputs(self, x):
        return x.reshape(len(x), -1, x.shape[-1])


@dataclass(frozen=True)
class Ordered(Perceptron):
    def program(self, net, x):
        h = net.read("W0", x, to=0)
        return net.layer(h, net.local(lambda xp, h: xp.cumsum(h, -1), h))


@dataclass(frozen=True)
class Infinite(Perceptron):
    def program(self, net, x):
        h = net.read("W0", x, to=0)
        return net.layer(h, net.local(lambda xp, h: xp.log(0 * h), h))


@dataclass(frozen=True)
class Holding(Perceptron):
    value: object = None


@dataclass(frozen=True)
class Beside(Perceptron):
    gamma0: float = 1.0
    frozen: tuple = ()
    weight_variance: float | tuple = 1.0
    parameterization: str = "mean_field"
    centered: bool = True


@dataclass(frozen=True)
class Named(Perceptron):
    kind: str = "x"


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (Undecorated(), TypeError, "Undecorated is not a frozen dataclass"),
        (Derived(2), TypeError, "Derived is not a frozen dataclass"),
        (Thawed(), TypeError, "write @dataclass(frozen=True) above class Thawed"),
        (Empty(), ValueError, "Empty has no program; give it a method program"),
        (Raising(), ValueError, "the program of Raising fails for inputs of shape (5, 4, 2): KeyError: 'lost'"),
        (WithPositions(), ValueError, "must return a field without positions"),
        (Ordered(), ValueError, "does not treat all neurons alike"),
        (Infinite(), ValueError, "makes numbers that are not finite"),
        (Holding(value=np.ones(2)), TypeError, "Holding.value=array([1., 1.]) cannot be part of a description"),
        (Holding(value=[1]), TypeError, "tuples of them"),
        (Holding(value=float("nan")), TypeError, "finite numbers"),
        (Beside(gamma0=0.0), ValueError, "gamma0=0.0 must be positive"),
        (Beside(frozen=(3,)), ValueError, "frozen holds 3; the layers are 0..2"),
        (Beside(weight_variance=(1.0, 1.0)), ValueError, "2 entries for 3 layers"),
        (Beside(weight_variance=(1.0, 1.0, 0.0), frozen=(2,)), ValueError, "nothing would ever move"),
        (Beside(parameterization="standard"), ValueError, "not for architectures of one's own"),
        (Beside(centered=1), TypeError, "centered=1 must be True or False"),
        (Named(), TypeError, "has a field 'kind', a name that descriptions need"),
        (dmft.MLP, TypeError, "is not a dmft.Architecture, such as dmft.MLP(depth=2)"),
        (dmft.CNN(3, 5, padding="circular"), ValueError, "kernel_size=5 is larger than the 5 x 4 positions of the input"),
        (dmft.CNN(3, 3, stride=2, padding="circular"), ValueError, "larger than the 3 x 2 positions of h^1"),
    ],
)  # fmt: skip
def test_what_is_no_architecture_is_refused(network, error, message):
    with pytest.raises(error, match=re.escape(message)):
        problem(network)


def test_a_class_inside_a_function_is_refused():
    @dataclass(frozen=True)
    class Local(Perceptron):
        pass

    with pytest.raises(TypeError, match="not inside a function"):
        problem(Local())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dmft.CNN(2, 4), ValueError, "kernel_size=4 is even: such a kernel has no middle; take 5"),
        (lambda: dmft.CNN(2, 0), ValueError, "kernel_size=0 is too small"),
        (lambda: dmft.CNN(2, 3, stride=0), ValueError, "stride=0 is too small"),
        (lambda: dmft.CNN(2, 3, padding="same"), ValueError, "padding='same' is unknown; choose one of zero, circular"),
        (lambda: dmft.CNN(2, 3, pooling="median"), ValueError, "pooling='median' is unknown; choose one of mean, flatten"),
        (lambda: dmft.CNN(2, 3, pooling="max"), ValueError, 'pooling="max" is not offered: where two positions are equal'),
        (lambda: dmft.ResidualCNN(0, 3), ValueError, "blocks=0 is too small"),
        (lambda: dmft.ResidualCNN(2, 4), ValueError, "kernel_size=4 is even"),
        (lambda: dmft.ResidualCNN(2, 3, branch_layers=3), ValueError, "branch_layers=3 is not 1 or 2"),
        (lambda: dmft.ResidualCNN(2, 3, branch_exponent=0.4), ValueError, "branch_exponent=0.4 is not between 1/2 and 1"),
        (lambda: dmft.ResidualCNN(2, 3, branch_exponent=1.1), ValueError, "branch_exponent=1.1 is not between 1/2 and 1"),
        (lambda: dmft.ResidualCNN(2, 3, branch_scale=0), ValueError, "branch_scale=0 must be positive"),
        (
            lambda: dmft.ResidualCNN(2, 3, normalization="batch_norm"),
            ValueError,
            "normalization='batch_norm' is unknown; choose one of 'layer_norm', 'rms_norm'",
        ),
        (lambda: dmft.ResidualCNN(2, 3, trained_gain=True), ValueError, "trained_gain=True is for a normalisation"),
        (lambda: problem(dmft.ResidualCNN(2, 3), IMAGES[..., 0, 0]), ValueError, "an input of shape (5,) has none"),
        (lambda: dmft.LayerNorm(epsilon=-1.0), ValueError, "epsilon=-1.0 must be at least 0"),
        (lambda: dmft.RMSNorm(gain=True), TypeError, "gain=True is no name of a number to train"),
        (lambda: dmft.CNN(2, 3, parameterization="standard"), ValueError, '"standard" is for perceptrons'),
        (lambda: dmft.CNN(2, 3, "tanh"), TypeError, "activation='tanh' is not an activation"),
        (lambda: problem(dmft.CNN(2, 3), IMAGES.reshape(3, -1)), ValueError, "x[:, :, None] for one channel"),
    ],
)  # fmt: skip
def test_convolutional_networks_that_are_refused(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_closed_forms_name_the_networks_they_are_for():
    with pytest.raises(
        ValueError, match="two_layer_linear is for dmft.MLP and dmft.ResidualMLP, got CNN; use dmft.solve"
    ):
        dmft.two_layer_linear(problem(dmft.CNN(1, 3, dmft.linear())))
    with pytest.raises(ValueError, match="initial_fluctuations is for dmft.MLP .* dmft.fluctuations is for any"):
        dmft.initial_fluctuations(dmft.CNN(2, 3), [[1.0]])
    with pytest.raises(ValueError, match="neurons is for layers without positions, and those of CNN have them"):
        dmft.neurons(problem(dmft.CNN(2, 3)))


def test_fields_of_convolutional_networks_are_part_of_the_problem():
    network = dmft.CNN(2, 3)
    others = {"kernel_size": 1, "stride": 2, "padding": "circular", "gamma0": 2.0, "frozen": (0,), "depth": 3}
    ids = {problem(replace(network, **{name: value})).problem_id for name, value in others.items()}
    assert len({problem(network).problem_id, *ids}) == 1 + len(others)
    for name, value in others.items():
        changed = problem(replace(network, **{name: value}))
        assert dmft.Problem.from_json(changed.to_json()) == changed
    assert {field.name for field in dataclasses.fields(network)} > set(others)


def test_reports_name_every_architecture():
    words = in_words(json.loads(problem(dmft.CNN(3, 5)).to_json()))
    assert "of dimension D = 5 x 4 x 2" in words
    assert "convolutional network of depth L = 3, kernels of size 5, activation tanh (gain 1), richness" in words
    assert f"Network: {__name__}:Own, bias = 0.0, branch = 0.5" in in_words(json.loads(problem(Own()).to_json()))


def test_a_class_of_a_script_is_found_in_its_own_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""
from dataclasses import dataclass
import numpy as np, dmft

@dataclass(frozen=True)
class Mine(dmft.Architecture):
    def program(self, net, x):
        h = net.read("W0", x, to="neurons")
        return net.layer(h, net.activate(dmft.tanh(), h))

task = dmft.Task(np.eye(3), [1.0, -1.0, 1.0])
problem = dmft.Problem(Mine(), task, dmft.GradientDescent(0.3, 3))
assert dmft.Problem.from_json(problem.to_json()) == problem
print(problem.to_json())
""")
    text = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    with pytest.raises(
        ValueError, match="has no architecture Mine; define it first. Classes of a notebook or a script"
    ):
        dmft.Problem.from_json(text)
