"""Delayed updates, precisions and GPU kernels: the same networks, to the rounding that each has."""

import dataclasses
import gc
import importlib
import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is loaded: its kernels run in NumPy

import dmft
import finite_nets
from finite_nets.device import matrices, random
from finite_nets.device.activations import function
from finite_nets.device.fields import SLOPES, Slope, field
from finite_nets.device.precision import PRECISIONS
from finite_nets.device.products import Products
from finite_nets.training import perceptrons

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SINGLE, DOUBLE = PRECISIONS["float32"], PRECISIONS["float64"]
ACTIVATIONS = [dmft.tanh(0.8), dmft.relu(), dmft.erf(), dmft.gelu(), dmft.softplus(2.0), dmft.linear()]
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((7, 4)), RNG.standard_normal((7, 3))


def some_problem(training=None, *, net=None, outputs=False, loss="squared"):
    y = Y if outputs else Y[:, 0]
    task = dmft.Task(X[:5], y[:5], X[5:], y[5:])
    return dmft.Problem(net or dmft.MLP(3, dmft.tanh(0.8), 1.3), task, training or dmft.GradientDescent(0.4, 6), loss)


def trained(problem, dtype="float64", **arguments):
    arguments = {"widths": [11], "seeds": 3, "device": "cpu", "observables": ["prediction", "ntk"]} | arguments
    return finite_nets.train_ensemble(problem, dtype=dtype, **arguments)


DELAYED = {
    "plain": some_problem(),
    "few samples in many dimensions": dmft.Problem(
        dmft.MLP(2), dmft.Task(RNG.standard_normal((4, 30)), [1, -1, 1, -1]), dmft.GradientDescent(0.4, 6)
    ),
    "schedule": some_problem(dmft.GradientDescent([0.4, 0.1, 0.3, 0.2, 0.6, 0.1], 6)),
    "momentum and decay": some_problem(dmft.GradientDescent(0.2, 6, momentum=0.6, weight_decay=0.3)),
    "decay": some_problem(dmft.GradientDescent(0.2, 6, weight_decay=0.3)),
    "outputs": some_problem(dmft.GradientDescent(0.2, 6, momentum=0.6), outputs=True),
    "residual, biases, a frozen matrix": some_problem(net=dmft.ResidualMLP(4, bias=0.4, frozen=[2])),
    "euler": some_problem(dmft.GradientFlow(0.4, 0.5, 6, scheme="euler")),
    "rosenbrock": some_problem(dmft.GradientFlow(0.4, 0.5, 6)),
}


@pytest.mark.parametrize("keep", ["members", "moments"])
def test_a_batch_leaves_memory_when_it_is_done(keep):
    trained(some_problem(), keep=keep, seeds=16)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        trained(some_problem(), keep=keep, seeds=16)
        gc.collect()
        assert not [a for a in gc.garbage if isinstance(a, torch.Tensor)]  # what waits for the collector
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("room", [5, 12, 1000], ids=["every step", "every other", "never folded"])
@pytest.mark.parametrize("name", DELAYED)
def test_delayed_updates_change_nothing(monkeypatch, name, room):
    expected = trained(DELAYED[name])
    monkeypatch.setattr(perceptrons, "room", lambda *_: room)
    found = trained(DELAYED[name])
    for variable in ("prediction", "ntk"):
        # float64: the same sums in another order
        np.testing.assert_allclose(found[variable], expected[variable], rtol=1e-9, atol=1e-11)
    # and something would be seen if they did: without the pairs, matrices stay at their start
    monkeypatch.setattr(matrices.Matrix, "_pairs", lambda *_: None)
    if room == 1000:
        assert abs(trained(DELAYED[name]).prediction - expected.prediction).max() > 1e-3


def test_velocities_take_no_memory_before_they_are_folded(monkeypatch):
    monkeypatch.setattr(perceptrons, "room", lambda *_: 1000)
    trainer = perceptrons.Trainer(DELAYED["momentum and decay"], torch.device("cpu"), DOUBLE)
    state = trainer.begin(trainer.draw(11, torch.arange(3), 0))
    with torch.inference_mode():
        list(trainer.run(state, frozenset({6})))
    for weights, velocity in zip(state.weights.hidden, state.slots[0].hidden, strict=True):
        assert velocity.start is weights.start
    assert state.weights.hidden[0].store.used == 30


def test_room_follows_the_count_of_bytes():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    single = torch.float32
    assert matrices.room(128, 3, 10, single, gpu) == 30  # all: T P < N / 2
    assert matrices.room(8192, 60, 10, single, gpu) == 600
    assert matrices.room(512, 60, 10, single, gpu) == 0  # operations decide
    assert matrices.room(1024, 10, 1000, single, gpu) == 100  # bytes do: sqrt(N P)
    assert matrices.room(16, 10, 1000, single, gpu) == 0
    assert matrices.room(1024, 10, 1000, single, cpu) == 0
    assert matrices.room(1024, 10, 1000, torch.bfloat16, cpu) == 10_000  # never rounded away


# ---- precisions ------------------------------------------------------------------------------------------------------


def test_bfloat16_weights_do_not_swallow_what_is_learned():
    """The networks differ from float64 ones by the rounding of their start, not by steps that are lost."""
    problem = some_problem(dmft.GradientDescent(0.02, 60))
    exact = trained(problem, widths=[200], seeds=8)
    coarse, single = (trained(problem, dtype, widths=[200], seeds=8) for dtype in ("bf16", "float32"))
    assert coarse.attrs["dtype"] == "bf16"
    assert coarse.prediction.dtype == np.float32
    learned = np.sqrt((exact.prediction.isel(step=-1) ** 2).mean()).item()
    off = {
        name: np.sqrt(((nets.prediction - exact.prediction).isel(step=-1) ** 2).mean()).item() / learned
        for name, nets in (("bf16", coarse), ("float32", single))
    }
    assert off["float32"] < 1e-5
    # products of factors with relative errors up to 2^-8, averaged over 200 neurons
    assert 1e-5 < off["bf16"] < 1e-2
    # updates of a bfloat16 matrix in place would lose most of what 60 small steps add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perceptrons, "room", lambda *_: 0)
        patch.setattr(Products, "accumulate", _rounded_accumulate)
        swallowed = trained(problem, "bf16", widths=[200], seeds=8)
    lost = np.sqrt(((swallowed.prediction - exact.prediction).isel(step=-1) ** 2).mean()).item() / learned
    assert lost > 10 * off["bf16"]


def _rounded_accumulate(_, w, g, x, coefficients, *, keep=1.0, scale=1.0):
    g, x = field(g).values, field(x).values
    if coefficients is not None:
        g = g * coefficients[..., None]
    w.copy_((keep * w.float() + scale * g.mT @ x).to(w.dtype))


def test_tf32_is_float32_without_matrix_units():
    problem = some_problem()
    single, tf32 = (trained(problem, dtype, device="cpu") for dtype in ("float32", "tf32"))
    np.testing.assert_array_equal(single.prediction, tf32.prediction)
    assert tf32.attrs["dtype"] == "tf32"


# ---- kernels ---------------------------------------------------------------------------------------------------------


def fields(*shape):
    return torch.tensor(RNG.standard_normal(shape), dtype=torch.float32, device=DEVICE)


def require_triton():
    pytest.importorskip("triton")
    if DEVICE.type == "cpu":  # interpreted
        try:
            Products(SINGLE, DEVICE, kernels=True).image(torch.ones(1, 1, 16), torch.ones(1, 16, 16))
        except Exception as error:
            if "only 0-dimensional arrays" in str(error):
                pytest.skip("this version of Triton's interpreter does not work with this version of NumPy")
            raise


@pytest.fixture
def both():
    """The products by kernels, and by PyTorch in float64 on the same numbers."""
    require_triton()
    return Products(SINGLE, DEVICE, kernels=True), Products(DOUBLE, DEVICE, kernels=False)


def same(found, expected):
    error = (found.double() - expected).norm() / expected.norm()
    # float32 rounding of sums of some tens of terms
    assert error < 1e-6
    assert found.shape == expected.shape


@pytest.mark.parametrize("activation", [phi for phi in ACTIVATIONS if phi.name in SLOPES], ids=lambda phi: phi.name)
def test_slopes_are_functions_of_phi(activation):
    phi, slope = function(activation)(torch.linspace(-4, 4, 99, dtype=torch.float64))
    torch.testing.assert_close(Slope(phi, activation).values(), slope, rtol=1e-10, atol=1e-12)
    assert (Slope(phi).values() - slope).abs().max() > 0.1


# member, row, N_out, N_in: every choice of tiles, and sizes that do not fill them
SHAPES = [
    (3, 3, 40, 24),
    (2, 20, 33, 17),
    (2, 70, 20, 35),
    (2, 3, 16, 3),
    (2, 3, 1, 16),
    (2, 3, 1, 140),
    (2, 20, 1, 64),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_pytorch(both, shape):
    kernels, torch_products = both
    members, rows, n_out, n_in = shape
    w, x, g = fields(members, n_out, n_in), fields(members, rows, n_in), fields(members, rows, n_out)
    pairs, pairs_t = ((fields(members, rows, 7), fields(members, 7, n)) for n in (n_out, n_in))
    add, slope = fields(members, 1, n_out), fields(members, rows, n_in)
    double = torch.Tensor.double
    same(kernels.image(x, w, scale=0.3), torch_products.image(x.double(), w.double(), scale=0.3))
    for phi in ACTIVATIONS:
        arguments = {"scale": 0.3, "pairs": pairs, "add": add}
        in_double = {"scale": 0.3, "pairs": tuple(map(double, pairs)), "add": add.double()}
        found = kernels.activated(x, w, phi, **arguments, keep=True)
        expected = torch_products.activated(x.double(), w.double(), phi, **in_double, keep=True)
        same(found.y, expected.y)
        same(found.phi.values, expected.phi.values)
        same(found.slope.values(), expected.slope.values())
    found = kernels.pullback(g, w, scale=0.3, pairs=pairs_t, slope=Slope(slope))
    in_double = {"pairs": tuple(map(double, pairs_t)), "slope": Slope(slope.double())}
    same(found, torch_products.pullback(g.double(), w.double(), scale=0.3, **in_double))
    for c in (None, fields(members, rows)):
        ours, theirs = w.clone(), w.double()
        kernels.accumulate(ours, g, x, c, keep=0.9, scale=0.2)
        torch_products.accumulate(
            theirs, g.double(), x.double(), None if c is None else c.double(), keep=0.9, scale=0.2
        )
        same(ours, theirs)


BF16 = pytest.param(
    "bf16",
    marks=pytest.mark.skipif(DEVICE.type == "cpu", reason="Triton's interpreter converts to bf16 by cutting off"),
)


@pytest.mark.parametrize("dtype", ["tf32", BF16])
def test_factors_are_rounded_to_the_nearest(dtype):
    """A product of many numbers of one sign shows a rounding that always goes one way."""
    require_triton()
    kernels = Products(PRECISIONS[dtype], DEVICE, kernels=True)
    x, w = 1 + fields(1, 16, 256).abs(), 1 + fields(1, 64, 256).abs()
    w = w.to(PRECISIONS[dtype].start)
    for found, exact in (
        (kernels.image(x, w), x.double() @ w.double().mT),
        (kernels.pullback(kernels.image(x, w) / 1e3, w), (x.double() @ w.double().mT) / 1e3 @ w.double()),
    ):
        off = (found.double() / exact - 1).mean()
        # each factor is off by 2^-11 (2^-8) of itself at most, at random: 2^-11 / sqrt(3 x 16 x 256); cut off, by 2^-11
        unit = {"tf32": 2.0**-11, "bf16": 2.0**-8}[dtype]
        assert abs(off) < unit / 10
        assert abs(found.double() / exact - 1).max() < 2 * unit


@pytest.mark.parametrize("dtype", ["float32", "tf32", BF16])
def test_what_is_not_a_number_stays_so(dtype):
    require_triton()
    kernels = Products(PRECISIONS[dtype], DEVICE, kernels=True)
    bits = torch.tensor([0x7FFFFFFF, 0x7FC00000, 0x7F800000], dtype=torch.int32, device=DEVICE)
    x = torch.ones(1, 4, 20, device=DEVICE)
    x[0, :3, 5] = bits.view(torch.float32)  # two that are none, and infinity
    found = kernels.image(x, torch.ones(1, 16, 20, device=DEVICE).to(PRECISIONS[dtype].start))[0, :, 0]
    assert (~torch.isfinite(found)).tolist() == [True, True, True, False]


def test_slopes_of_samples_serve_all_their_outputs_and_members_may_share_fields(both):
    kernels, torch_products = both
    w, g, slope = fields(2, 18, 22), fields(2, 12, 18), fields(2, 4, 22)
    expected = torch_products.pullback(g.double(), w.double(), scale=1.0, slope=Slope(slope.double()))
    same(kernels.pullback(g, w, scale=1.0, slope=Slope(slope)), expected)
    by_hand = (g @ w).view(2, 4, 3, 22) * slope[:, :, None]
    same(by_hand.view(2, 12, 22), expected)
    x = fields(12, 22).expand(2, -1, -1)
    same(kernels.image(x, w, scale=1.0), x.double() @ w.double().mT)
    part = fields(2, 9, 22)[:, 2:7]
    same(kernels.image(part, w, scale=1.0), part.double() @ w.double().mT)


def test_rows_need_not_lie_one_after_the_other(both):
    kernels, _ = both
    w, x, g = fields(2, 18, 22), fields(2, 22, 9).mT, fields(2, 18, 9).mT
    same(kernels.image(x, w), x.double() @ w.double().mT)
    same(kernels.pullback(g, w), g.double() @ w.double())
    ours = w.clone()
    kernels.accumulate(ours, g, x, None)
    same(ours, w.double() + g.double().mT @ x.double())
    with pytest.raises(ValueError, match="updated in place"):
        kernels.accumulate(fields(2, 22, 18).mT, g, x, None)


@pytest.mark.parametrize("root_seed", [3, 3 + 2**40, 2**64 - 5])
def test_normals_are_those_of_pytorch(root_seed):
    require_triton()
    kernels = importlib.import_module("finite_nets.device.triton")
    members = torch.tensor([0, 5, 2**31 + 7], device=DEVICE)
    out = torch.full((3, 63), torch.nan, device=DEVICE)
    kernels.normals(out, members, root_seed=root_seed, width=9, parameter=1)
    expected = random.normals((63,), root_seed=root_seed, width=9, parameter=1, members=members, dtype=torch.float64)
    # float32 keeps 24 of the 32 bits of a word: radii near zero differ most
    assert abs(out.double() - expected).max() < 1e-4
    assert abs(out.double() - expected).median() < 1e-6


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU kernels are what is used")
@pytest.mark.parametrize(
    ("name", "rooms"),
    [
        ("few samples in many dimensions", (0, 8)),  # of four samples; others are of five
        ("momentum and decay", (12,)),
        ("outputs", (0,)),
        ("residual, biases, a frozen matrix", (12,)),
    ],
)
def test_networks_train_by_kernels_as_without(monkeypatch, name, rooms):
    require_triton()
    few = {"seeds": 2, "save_steps": [1, 3]}  # interpreted, kernels take their time; pairs are folded after two steps
    expected = trained(DELAYED[name], **few)
    for module in (random, finite_nets.device.products, finite_nets.ensembles.budget):
        monkeypatch.setattr(module, "have_kernels", lambda _: True)
    for room in rooms:
        monkeypatch.setattr(perceptrons, "room", lambda *_, room=room: room)
        found = trained(DELAYED[name], "float32", **few)
        for variable in ("prediction", "ntk"):
            # float32 through three steps
            np.testing.assert_allclose(found[variable], expected[variable], rtol=1e-3, atol=2e-5)
        assert abs(found.prediction.astype(float) - expected.prediction).max() > 0


def test_precisions_are_refused_by_name():
    with pytest.raises(ValueError, match="dtype='half' is not offered; choose one of float64, float32, tf32, bf16"):
        trained(some_problem(), "half")
    assert dataclasses.is_dataclass(SINGLE)
