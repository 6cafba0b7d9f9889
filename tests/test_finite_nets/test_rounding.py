"""Networks of few bits, against plain PyTorch with straight-through rounding on the same weights."""

import numpy as np
import pytest
import torch

import dmft
import finite_nets
from finite_nets import Quantisation
from finite_nets.device import rounding
from finite_nets.device.host import usual_torch
from finite_nets.device.precision import PRECISIONS
from finite_nets.ensembles.ensemble import with_quantisation
from finite_nets.ensembles.recording import Plan
from finite_nets.training.programs import trainer_of

CPU = torch.device("cpu")
WIDTH, STEPS, MEMBER = 12, 4, 3
RATE, MOMENTUM = 0.5, 0.4
TANH = dmft.tanh()


def task(shape=(5,), outputs=None, n_train=4, n_test=3):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((n_train + n_test, *shape)), rng.standard_normal((n_train + n_test, outputs or 1))
    y = y if outputs else y[:, 0]
    return dmft.Task(x[:n_train], y[:n_train], 2 * x[n_train:], y[n_train:])  # test inputs beyond the largest


def perceptron(**options):
    training = dmft.GradientDescent(RATE, STEPS, momentum=MOMENTUM)
    return dmft.Problem(dmft.MLP(2, TANH, 1.3, **options), task(outputs=2), training)


def convolution():
    training = dmft.GradientDescent(RATE, STEPS, momentum=MOMENTUM)
    return dmft.Problem(dmft.CNN(2, 3, TANH, 1.3), task((6, 2)), training)


def straight(v, bits, largest):
    """Q(v) forward, the identity backward."""
    if bits is None:
        return v
    n = 2 ** (bits - 1) - 1
    q = largest / n * torch.clamp(torch.round(v / (largest / n)), -n, n)
    return v + (q - v).detach()


def rows(w, bits):
    return straight(w, bits, w.detach().abs().amax(-1, keepdim=True))


def tensor_of(v, bits, n_train):
    return straight(v, bits, v[:n_train].detach().abs().max())


def product(v, w, bits, acts, n_train):
    return tensor_of(v, acts, n_train) @ rows(w, bits).T


def output_of(problem, quantisation, x, weights):
    """f (sample, output), not centered."""
    bits, acts, n = quantisation.weights, quantisation.activations, problem.task.n_train
    outer = (bits, acts) if quantisation.ends else (None, None)
    first, hidden, readout, *biases = weights
    h = product(x, first, *outer, n)
    v = torch.tanh(h)
    if v.ndim == 3:  # positions: zeros outside, three places side by side
        padded = torch.nn.functional.pad(v, (0, 0, 1, 1))
        v = torch.cat([padded[:, k : k + 6] for k in range(3)], dim=-1) / 3**0.5
    h = product(v, hidden, bits, acts, n) / WIDTH**0.5
    for b in biases:
        h = h + problem.network.bias * b
    v = torch.tanh(h)
    v = v.mean(1) if v.ndim == 3 else v
    return product(v, readout, *outer, n) / (problem.network.gamma0 * WIDTH)


def by_torch(problem, quantisation, trainer):
    """Predictions (step, sample, output) of one network, by autograd and `torch.optim.SGD`."""
    with usual_torch(CPU):
        drawn = trainer.draw(WIDTH, torch.tensor([MEMBER]), 0)
    weights = [w[0].clone().requires_grad_() for w in drawn]
    network = problem.network
    x = torch.tensor(network.inputs(problem.task.x))
    if network.bias:
        x = torch.cat([x, torch.full((len(x), 1), float(network.bias), dtype=x.dtype)], dim=1)
    y, n = torch.tensor(problem.task.targets), problem.task.n_train
    optimiser = torch.optim.SGD(weights, lr=RATE * network.gamma0**2 * WIDTH, momentum=MOMENTUM)
    found, start = [], None
    for _ in range(STEPS + 1):
        f = output_of(problem, quantisation, x, weights)
        start = f.detach() if start is None else start
        found.append((f - start).detach().numpy())
        optimiser.zero_grad()
        (((f - start)[:n] - y[:n]) ** 2).sum(1).mean().div(2).backward()
        optimiser.step()
    return np.array(found)


def trainer_with(problem, quantisation):
    plan = Plan(problem, np.arange(STEPS + 1), frozenset(["loss"]))
    return trainer_of(problem, CPU, with_quantisation(PRECISIONS["float64"], quantisation, plan))


def trained(problem, quantisation, **options):
    options = {"widths": [WIDTH], "seeds": [MEMBER], "dtype": "float64", "observables": ["prediction"]} | options
    return finite_nets.train_ensemble(problem, quantisation=quantisation, **options)


CASES = {
    "weights": (perceptron(), Quantisation(weights=3)),
    "activations": (perceptron(bias=0.4), Quantisation(activations=3)),
    "both": (perceptron(), Quantisation(4, 3)),
    "between": (perceptron(bias=0.4), Quantisation(2, 4, ends=False)),
    "neither": (perceptron(bias=0.4), Quantisation()),
    "convolution": (convolution(), Quantisation(3, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_networks_train_as_plain_pytorch_does(name):
    problem, quantisation = CASES[name]
    found = trained(problem, quantisation)["prediction"].values[0, 0]
    expected = by_torch(problem, quantisation, trainer_with(problem, quantisation))
    found = found.reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    if name != "neither":  # and full precision is elsewhere
        full = by_torch(problem, Quantisation(), trainer_with(problem, quantisation))
        assert abs(full - expected).max() > 1e-3


def test_slopes_at_the_weights_that_are_kept_train_other_networks(monkeypatch):
    """Straight-through rounding goes back through rounded weights; with slopes at those kept in full, elsewhere."""
    problem, quantisation = CASES["both"]
    trainer = trainer_with(problem, quantisation)
    right, rounded = by_torch(problem, quantisation, trainer), product

    def in_full(v, w, *bits):
        full = v @ w.T
        return full + (rounded(v, w, *bits) - full).detach()

    monkeypatch.setitem(globals(), "product", in_full)
    wrong = by_torch(problem, quantisation, trainer)
    np.testing.assert_array_equal(wrong[0], right[0])
    assert abs(wrong - right).max() > 1e-2


def test_rounding_is_to_the_nearest_of_the_levels():
    v = torch.tensor([[-1.0, -0.4, 0.1, 0.2, 0.6]])
    one = torch.ones(1, 1)
    np.testing.assert_allclose(rounding.rounded(v, 2, one), [[-1, 0, 0, 0, 1]])
    np.testing.assert_allclose(rounding.rounded(v, 3, one), [[-1, -1 / 3, 0, 1 / 3, 2 / 3]], rtol=1e-6)
    np.testing.assert_allclose(rounding.rounded(3 * v, 3, one)[0, 0], -1)  # beyond the largest: its end
    assert abs(rounding.rounded(v, 16, one) - v).max() < 2e-5
    assert not rounding.rounded(v, 4, torch.zeros(1, 1)).any()
    zero = rounding.rounded(torch.zeros(2, 3), 4, torch.zeros(2, 1))
    assert torch.isfinite(zero).all()


def test_networks_do_not_depend_on_which_steps_are_saved():
    batches = ((0, 1), (2, 3), (1, 2), (3, 0))
    problem = dmft.Problem(dmft.MLP(2, TANH), task(), dmft.GradientDescent(RATE, STEPS, batches=batches))
    every, last = (
        trained(problem, Quantisation(4, 3), save_steps=steps)["prediction"].isel(step=-1) for steps in (None, [STEPS])
    )
    # activations are scaled by the samples of the batch, not by those that are observed
    np.testing.assert_allclose(last, every, rtol=0, atol=1e-13)
    moments = trained(problem, Quantisation(4, 3), seeds=8, keep="moments", block=4)
    members = trained(problem, Quantisation(4, 3), seeds=8)
    np.testing.assert_allclose(moments["prediction_mean"][0, 1], members["prediction"][0, 4:].mean("seed"), atol=1e-12)


def test_full_precision_is_what_is_trained_without():
    problem = dmft.Problem(dmft.MLP(2, TANH), task((3,)), dmft.GradientDescent(RATE, STEPS))
    found = trained(problem, Quantisation(), observables=["prediction", "ntk"])
    expected = trained(problem, None, observables=["prediction", "ntk"])
    assert found.attrs["quantisation"] == "full precision"
    assert "quantisation" not in expected.attrs
    for name in ("prediction", "ntk"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-11)
    coarse = trained(problem, Quantisation(3), observables=["ntk"])["ntk"]
    assert abs(coarse - expected["ntk"]).max() > 1e-2


def test_optimisers_by_entry_train_rounded_networks():
    problem = dmft.Problem(dmft.MLP(2, TANH), task(outputs=2), dmft.Adam(0.05, STEPS, eps=0.1))
    full, same, coarse = (
        trained(problem, bits)["prediction"].values for bits in (None, Quantisation(), Quantisation(3))
    )
    np.testing.assert_allclose(same, full, rtol=0, atol=1e-12)
    assert np.isfinite(coarse).all()
    assert abs(coarse - full).max() > 1e-3


def test_trained_weights_are_rounded_for_losses_alone():
    problem, bits = perceptron(), [2, 4, 8, 16]
    options = {"widths": [8, WIDTH], "seeds": [1, MEMBER], "dtype": "float64"}
    found = finite_nets.quantise(problem, bits=bits, save_steps=[2, STEPS], **options)
    assert found["post"].values.tolist() == [*bits, np.inf]
    assert found["parameters"].values.tolist() == [n * 5 + n * n + 2 * n for n in (8, WIDTH)]
    assert found["tokens"].values.tolist() == [8, 16]
    nets = trained(problem, Quantisation(), **options | {"observables": ["loss"]})
    for name in ("loss", "test_loss"):
        np.testing.assert_allclose(found[name].sel(post=np.inf), nets[name].sel(step=[2, STEPS]), rtol=1e-12)
    # by plain PyTorch: trained in full, then multiplied with rounded weights
    trainer = trainer_with(problem, Quantisation())
    with usual_torch(CPU):
        state = trainer.start(WIDTH, torch.tensor([MEMBER]), 0)
        for _ in trainer.run(state, frozenset([STEPS]), gradients=False):
            pass
        weights = [w[0].clone() for w in state.weights.tensors]
        begun = [w[0].clone() for w in trainer.draw(WIDTH, torch.tensor([MEMBER]), 0)]
        x = torch.tensor(problem.network.inputs(problem.task.x))
        f = output_of(problem, Quantisation(4), x, weights) - output_of(problem, Quantisation(), x, begun)
        losses = ((f - torch.tensor(problem.task.targets)) ** 2).sum(1) / 2
    one = found.sel(width=WIDTH, seed=MEMBER, step=STEPS, post=4)
    assert one["loss"].item() == pytest.approx(losses[:4].mean().item(), rel=1e-12)
    assert one["test_loss"].item() == pytest.approx(losses[4:].mean().item(), rel=1e-12)
    off = abs(found["test_loss"] - found["test_loss"].sel(post=np.inf)).mean(("width", "seed", "step"))
    assert (off.values[:3] > 3 * off.values[1:4]).all()  # a bit halves the error, or more
    after = finite_nets.quantise(problem, bits=[4], quantisation=Quantisation(weights=4), **options)
    # what was trained with rounded weights does not notice
    np.testing.assert_allclose(after["loss"].sel(post=4), after["loss"].sel(post=np.inf), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Quantisation(weights=1), ValueError, "weights=1"),
        (
            lambda: Quantisation(activations=32),
            ValueError,
            "activations=32 is more than 16 bits; leave activations out",
        ),
        (lambda: Quantisation(2.5), TypeError, "weights=2.5"),
        (lambda: Quantisation(ends=None), TypeError, "ends=None is not True or False"),
        (lambda: trained(perceptron(), 4), TypeError, "quantisation=4 is no finite_nets.Quantisation"),
        (
            lambda: trained(perceptron(), Quantisation(4), observables=["sharpness"]),
            ValueError,
            "sharpness is not defined",
        ),
        (lambda: trained(perceptron(), Quantisation(4), dtype="bf16"), ValueError, 'dtype="bf16"'),
        (lambda: finite_nets.quantise(perceptron(), widths=[4], seeds=1, bits=[]), ValueError, "at least one"),
        (lambda: finite_nets.quantise(perceptron(), widths=[4], seeds=1, bits=[4, 4]), ValueError, "different numbers"),
        (lambda: finite_nets.quantise(3, widths=[4], seeds=1, bits=[4]), TypeError, "expects a dmft.Problem"),
        (
            lambda: trained(dmft.Problem(dmft.MLP(1), task(), dmft.GradientFlow(0.1, 1.0, 2)), Quantisation(4)),
            ValueError,
            "not GradientFlow",
        ),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
