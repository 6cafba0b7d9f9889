"""The engine under every optimiser, loss, flow and architecture: closed forms, trained networks, orders, devices."""

import dataclasses
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import dmft
import finite_nets
from conftest import first_of
from dmft.drivers import in_law, run
from dmft.engine import basis, flow, loop, network, population
from dmft.engine.rows import Rows
from dmft.errors import DivergenceError
from dmft.limits import two_layer_linear
from dmft.limits.lazy import lazy_limit
from oracles import on_virtual_devices

STEPS, FEATURES = 5, 6
PREDICTION = {"observables": ["prediction"]}
FEW = {"particles": 128, "scrambles": 2}
# float64 rounding through a few steps of closed recursions of numbers of order one, written in another way
ROUNDING = 1e-10


def some_task(kind="squared", outputs=None):
    """Three training and two test samples."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((5, FEATURES)), rng.standard_normal((5, outputs or 1))
    if kind in ("logistic", "hinge"):
        y = np.sign(y)
    elif kind == "cross_entropy":
        y = np.eye(outputs)[np.arange(5) % outputs]
    y = y if outputs else y[:, 0]
    return dmft.Task(x[:3], y[:3], x[3:], y[3:])


def some_problem(kind="squared", outputs=None, training=None, net=None):
    net = net or dmft.MLP(2, dmft.tanh(0.8), 1.3)
    return dmft.Problem(net, some_task(kind, outputs), training or dmft.GradientDescent(0.8, STEPS), kind)


def changed(problem, **changes):
    """The problem with some fields of its network, its training or itself replaced."""
    for part in ("network", "training"):
        spec = getattr(problem, part)
        own = {k: changes.pop(k) for k in list(changes) if k in {f.name for f in dataclasses.fields(spec)}}
        problem = dataclasses.replace(problem, **{part: dataclasses.replace(spec, **own)})
    return dataclasses.replace(problem, **changes)


GD = partial(dmft.GradientDescent, steps=STEPS)
SCHEDULE = (0.8, 0.5, 0.9, 0.6, 0.7)
BATCHES = ((0, 1), (2, 0), (1, 2), (0, 2), (2, 1))
ONE_PASS = {"batches": dmft.one_pass(3, 1), "observe": "test"}
ONE_PASS_BACKWARDS = {"batches": ((2,), (1,), (0,))}

# ---- closed recursions -----------------------------------------------------------------------------------------------

LINEAR, UNCENTERED = (dmft.MLP(1, dmft.linear(), 1.3, centered) for centered in (True, False))
linear_problem = partial(some_problem, net=LINEAR)
EXACT = {  # problem, and what its twin has in place
    "schedule": (linear_problem(training=GD(SCHEDULE)), {"learning_rate": SCHEDULE[::-1]}),
    "momentum": (linear_problem(training=GD(0.2, momentum=0.9)), {"momentum": 0.8}),
    "weight decay": (linear_problem(training=GD(0.4, weight_decay=0.2)), {"weight_decay": 0.0}),
    "momentum and weight decay": (
        linear_problem(training=GD(SCHEDULE, momentum=0.5, weight_decay=0.2)),
        {"weight_decay": 0.1},
    ),
    "minibatches": (linear_problem(training=GD(0.5, batches=BATCHES)), {"batches": (BATCHES[1], BATCHES[0], *BATCHES[2:])}),
    "everything": (
        linear_problem(training=GD(SCHEDULE, momentum=0.5, weight_decay=0.2, batches=BATCHES)),
        {"batches": None},
    ),
    "one pass": (
        some_problem(training=dmft.GradientDescent(0.5, 3, **ONE_PASS), net=UNCENTERED),
        ONE_PASS_BACKWARDS,
    ),
    "one pass with momentum, three outputs": (
        some_problem("cross_entropy", 3, dmft.GradientDescent(0.5, 3, 0.4, 0.1, **ONE_PASS), UNCENTERED),
        {"momentum": 0.3},
    ),
    "euler": (linear_problem(training=dmft.GradientFlow(0.7, 0.6, STEPS, "euler")), {"training": GD(0.7 * 0.6)}),
    "euler, three outputs": (
        linear_problem("cross_entropy", 3, dmft.GradientFlow(0.7, 0.6, STEPS, "euler")),
        {"training": GD(0.7 * 0.6)},
    ),
    "logistic": (linear_problem("logistic"), {"loss": "squared"}),
    "hinge": (linear_problem("hinge"), {"loss": "logistic"}),
    "squared, factor 2": (linear_problem(), {"learning_rate": 1.6}),
    "squared, three outputs": (linear_problem("squared", 3), {"learning_rate": 1.6}),
    "cross-entropy, three outputs": (linear_problem("cross_entropy", 3), {"loss": "squared"}),
    "everything, logistic, three outputs": (
        linear_problem("logistic", 3, GD(SCHEDULE, momentum=0.5, weight_decay=0.2, batches=BATCHES)),
        {"momentum": 0.4},
    ),
}  # fmt: skip


# of the others the default ones hold every part: a loss, several outputs, a scheme, a stream
MORE = ("one pass", "euler", "logistic", "squared, three outputs")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in MORE else n for n in EXACT])
def test_two_layer_linear_networks_follow_the_closed_recursion(name):
    problem, change = EXACT[name]
    solved = dmft.solve(problem, observables=["prediction", "loss", "feature_kernel", "gradient_kernel", "ntk"])
    closed = two_layer_linear(problem)
    assert set(solved.data_vars) == set(closed.data_vars)
    for variable in closed.data_vars:
        np.testing.assert_allclose(solved[variable], closed[variable], atol=ROUNDING, err_msg=str(variable))
    twin = two_layer_linear(changed(problem, **change))
    assert abs(solved.prediction - twin.prediction).max() > 1e-3


@pytest.mark.slow
def test_kernels_between_outputs_do_not_change_what_is_learned():
    """Backward passes from the loss, and from every output; of deep linear networks, exactly."""
    for net in (dmft.MLP(2, dmft.linear(), 1.3), dmft.ResidualMLP(3, dmft.linear(), 1.3)):
        training = GD(SCHEDULE, momentum=0.5, weight_decay=0.2, batches=BATCHES)
        problem = some_problem("cross_entropy", 3, training, net)
        few, every = (dmft.solve(problem, observables=names) for names in (None, ["prediction", "ntk"]))
        assert set(few.data_vars) & {"ntk", "gradient_kernel"} == set()
        np.testing.assert_allclose(few.prediction, every.prediction, atol=ROUNDING)
        kernel = every.ntk.values.reshape(STEPS + 1, 15, 15)
        np.testing.assert_allclose(kernel, kernel.transpose(0, 2, 1), atol=ROUNDING)
        # outputs couple once features are learned, and not before
        between = every.ntk.values[:, :, 0, :, 1]
        assert abs(between[0]).max() < ROUNDING
        assert abs(between[-1]).max() > 1e-2


# ---- in law, and in the limit, trained networks ----------------------------------------------------------------------

COMBINED = some_problem(
    "cross_entropy",
    3,
    GD(SCHEDULE, momentum=0.5, weight_decay=0.1, batches=BATCHES),
    dmft.ResidualMLP(4, dmft.tanh(), 1.2, branch_scale=0.6),
)
DECAYING = some_problem(training=GD(0.8, weight_decay=0.15))
stream = partial(
    some_problem,
    "logistic",
    training=dmft.GradientDescent(1.0, 3, momentum=0.3, weight_decay=0.1, **ONE_PASS),
)
ROSENBROCK = some_problem(training=dmft.GradientFlow(1.0, 0.8, STEPS))
# All samples jump over the margin: at every step they are more than four standard deviations of networks of width 128
# away from it.  Nearer to it some networks are on the other side, and means are no series in 1/N.
OVER_THE_MARGIN = (0.5, 0.5, 0.6, 3.0, 0.5)
FAMILIES = {  # problem, and what its twins have in place
    "residual, momentum, decay, minibatches, cross-entropy": (COMBINED, {"branch_scale": 0.9}, {"weight_decay": 0.0}),
    "one pass, biases, a frozen layer": (
        stream(net=dmft.MLP(3, dmft.tanh(), 2.5, centered=False, bias=0.7, frozen=[1])),
        ONE_PASS_BACKWARDS,
        {"frozen": ()},
        {"bias": 0.0},
    ),
    "weight decay": (DECAYING, {"weight_decay": 0.0}),
    "one pass": (stream(net=dmft.MLP(2, dmft.tanh(0.8), 1.3, centered=False)), ONE_PASS_BACKWARDS),
    "rosenbrock": (ROSENBROCK, {"training": GD(0.8)}),
    "momentum": (some_problem(training=GD(0.4, momentum=0.7)), {"momentum": 0.5}),
    "minibatches": (some_problem(training=GD(0.8, batches=BATCHES)), {"batches": BATCHES[::-1]}),
    "residual": (some_problem(net=dmft.ResidualMLP(4, dmft.tanh(), 1.3)), {"branch_scale": 0.7}),
    "residual, relu": (some_problem(training=GD(0.3), net=dmft.ResidualMLP(3, dmft.relu(), 1.3)), {"branch_scale": 0.8}),
    "euler": (some_problem(training=dmft.GradientFlow(1.0, 0.8, STEPS, "euler")), {"training": GD(0.8)}),
    "rosenbrock, cross-entropy, residual": (
        some_problem("cross_entropy", 3, dmft.GradientFlow(1.0, 0.8, STEPS), dmft.ResidualMLP(3, dmft.tanh(), 1.3)),
        {"learning_rate": 1.3},
    ),
    "logistic": (some_problem("logistic"), {"loss": "squared"}),
    "hinge": (some_problem("hinge", training=GD(OVER_THE_MARGIN)), {"loss": "logistic"}),
    "cross-entropy": (some_problem("cross_entropy", 3), {"loss": "squared"}),
    "biases, a frozen layer": (
        some_problem(net=dmft.MLP(3, dmft.tanh(), 1.3, bias=0.7, frozen=[1])), {"frozen": ()}
    ),
    "residual, biases, frozen inputs": (
        some_problem(net=dmft.ResidualMLP(3, dmft.tanh(), 1.3, bias=0.5, frozen=[0])), {"bias": 0.0}
    ),
}  # fmt: skip
DEFAULT = (
    "residual, momentum, decay, minibatches, cross-entropy",
    "one pass, biases, a frozen layer",
    "rosenbrock",
)
BY_FAMILY = pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
WIDTH, SEEDS = 24, 1000
# Means and variances at the last two steps: 8 to 60 correlated numbers, so that more than 5 standard errors have a
# probability below 60 x 6e-7 = 4e-5 (errors of variances, from fourth moments, are themselves known to a tenth)
BOUND = 5.0


def last_steps(ensemble):
    """Predictions (seed, number)."""
    return ensemble.prediction.values[0, :, -2:].reshape(ensemble.sizes["seed"], -1)


def largest_z(a, b):
    """Of differences between means, and between variances, of two samples (seed, number)."""
    means = (a.mean(0) - b.mean(0)) / np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
    fourth = [((x - x.mean(0)) ** 4).mean(0) - x.var(0) ** 2 for x in (a, b)]
    variances = (a.var(0) - b.var(0)) / np.sqrt(fourth[0] / len(a) + fourth[1] / len(b))
    return max(abs(means).max(), abs(variances).max())


def trained(problem, seeds=SEEDS):
    arguments = PREDICTION | {"widths": [WIDTH], "seeds": seeds, "dtype": "float64"}
    return last_steps(finite_nets.train_ensemble(problem, **arguments))


def sampled(problem, seeds=SEEDS):
    return last_steps(finite_nets.sample_in_law(problem, widths=[WIDTH], seeds=seeds, **PREDICTION))


@BY_FAMILY
def test_finite_populations_are_in_law_trained_networks(name):
    problem, *changes = FAMILIES[name]
    seeds = 600 if name in DEFAULT else SEEDS  # of these the twins are furthest
    in_law = sampled(problem, seeds)
    assert largest_z(in_law, trained(problem, seeds)) < BOUND
    for change in changes:
        assert largest_z(in_law, trained(changed(problem, **change), seeds)) > 2 * BOUND


@pytest.mark.slow
def test_initial_matrices_decay_too(monkeypatch):
    """d of `dmft.engine.matrix`: without it the law is another one."""
    expected = trained(DECAYING)
    assert largest_z(sampled(DECAYING), expected) < BOUND
    moved = network.Network.moved

    def without_d(self, change, rate=1.0):
        after = moved(self, change, rate)
        kept = (dataclasses.replace(m, trained=m.trained._replace(initial=jnp.ones(()))) for m in after.matrices)
        return dataclasses.replace(after, matrices=tuple(kept))

    monkeypatch.setattr(network.Network, "moved", without_d)
    # compiled code would not see the change
    monkeypatch.setattr(in_law, "_sampled", in_law._sampled.__wrapped__)
    monkeypatch.setattr(loop, "advance", loop.advance.__wrapped__)
    assert largest_z(sampled(DECAYING), expected) > 2 * BOUND


def extrapolated(problem, width, seeds):
    """The limit of trained networks without their bias of order 1/N, 2 m(2N) - m(N), and its standard error."""
    nets = finite_nets.train_ensemble(problem, widths=[width, 2 * width], seeds=seeds, **PREDICTION).prediction
    weights = np.array([-1.0, 2.0])
    limit = np.tensordot(weights, nets.mean("seed").values, axes=1)
    return limit, np.sqrt(np.tensordot(weights**2, nets.var("seed", ddof=1).values / seeds, axes=1))


def z_scores(problem, limit, limit_se, **numerics):
    solved = dmft.solve(problem, **PREDICTION, **numerics)
    moving = slice(1, None)  # centered networks start from zero
    deviation, se = solved.prediction.values - limit, np.hypot(solved.prediction_se.values, limit_se)
    return (abs(deviation[moving]) / se[moving]).max()


def agrees_in_the_limit(problem, seeds, width=128, **numerics):
    found = extrapolated(problem, width, seeds)
    # at most 75 correlated numbers; where the error of eight scrambles counts (t_7), 4.5 has a probability of 3e-3
    assert z_scores(problem, *found, **numerics) < 4.5
    assert z_scores(changed(problem, gamma0=1.2 * problem.network.gamma0), *found, **numerics) > 7


def test_the_limit_is_that_of_trained_networks():
    agrees_in_the_limit(COMBINED, seeds=400, width=64, particles=1024)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAMILIES)[1:])
def test_the_limit_of_every_family_is_that_of_trained_networks(name):
    agrees_in_the_limit(FAMILIES[name][0], seeds=1000)


# ---- gradient flow ---------------------------------------------------------------------------------------------------


def one_sample(training, gamma0=1.0, activation=None):
    """K^x = 1, y = 1."""
    return dmft.Problem(dmft.MLP(1, activation or dmft.linear(), gamma0), dmft.Task([[1.0]], [1.0]), training)


def time_to(f, gamma0):
    """Of the two-layer linear network on one sample: f' = K (1 - f) with K = 2 sqrt(1 + gamma0^2 f^2)."""
    return quad(lambda a: 1 / (2 * np.sqrt(1 + (gamma0 * a) ** 2) * (1 - a)), 0, f, epsabs=1e-13)[0]


@pytest.mark.parametrize(("scheme", "order"), [("rosenbrock", 2), ("euler", 1)])
def test_schemes_converge_to_the_closed_form_with_their_orders(scheme, order):
    gamma0, until, errors = 2.0, 0.5, []
    for steps in (32, 64):
        problem = one_sample(dmft.GradientFlow(1.0, until / steps, steps, scheme), gamma0)
        f = float(dmft.solve(problem, save_steps=[steps], **PREDICTION).prediction[0, 0])
        errors.append(abs(time_to(f, gamma0) - until))
    # the next order of the error is relatively dt K = 1/32 times 4
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.13)
    assert errors[1] < 0.5 * (4 * until / 64) ** order  # dt K
    assert abs(time_to(f, 1.2 * gamma0) - until) > 0.01


# Gauss-Hermite quadrature by other code: gamma0: (Delta, NTK) at t = 50, 125, 249
PUBLISHED = {
    0.2: ((0.45467654, 0.13860704, 0.01930023), (1.5671365, 1.57491323, 1.57874173)),
    1.0: ((0.44389483, 0.11513714, 0.01072742), (1.68761259, 1.8545728, 1.915926)),
    4.0: ((0.328712783, 0.0241957, 2.40742e-4), (2.981121, 3.614990, 3.658896)),
}


def flow_on_one_sample(gamma0, scrambles=8, **changes):
    training = dmft.GradientFlow(**{"learning_rate": 1.0, "step_size": 0.01, "steps": 249, "scheme": "euler"} | changes)
    problem = one_sample(training, gamma0, dmft.tanh(0.4))
    return dmft.solve(
        problem, save_steps=[50, 125, 249], observables=["prediction", "ntk"], particles=8192, scrambles=scrambles
    )


def is_published(solved, gamma0):
    """Within 6 standard errors of eight scrambles (t_7: 5e-4), and half of the last digit."""
    delta, ntk = PUBLISHED[gamma0]
    close = abs(1 - solved.prediction.values[:, 0] - delta) < 6 * solved.prediction_se.values[:, 0] + 5e-8
    return close.all() and (abs(solved.ntk.values[:, 0, 0] - ntk) < 6 * solved.ntk_se.values[:, 0, 0] + 6e-6).all()


@pytest.mark.parametrize("gamma0", first_of(reversed(PUBLISHED)))  # the richest moves most
def test_euler_flow_of_one_sample_gives_the_published_numbers(gamma0):
    solved = flow_on_one_sample(gamma0)
    assert float(solved.prediction_se.max()) < 5e-5  # measured 3.5e-5: the check has teeth
    assert is_published(solved, gamma0)
    for change in ({"scheme": "rosenbrock"}, {"step_size": 0.0099}):
        assert not is_published(flow_on_one_sample(gamma0, scrambles=2, **change), gamma0)


def stiff_problem(scheme="rosenbrock"):
    """Steps that grow to fifty times the stability limit of explicit Euler."""
    problem = some_problem(net=dmft.MLP(2, dmft.tanh(), 0.5))
    ntk = lazy_limit(problem, save_steps=[0]).ntk.values[0, :3, :3]
    limit = 2 * 3 / np.linalg.eigvalsh(ntk)[-1]
    return changed(
        problem, training=dmft.GradientFlow(1.0, limit * np.minimum(0.1 * 1.3 ** np.arange(28), 50), scheme=scheme)
    )


@pytest.mark.slow
def test_steps_far_above_the_stability_limit_reach_the_equilibrium(monkeypatch):
    problem, arguments = stiff_problem(), PREDICTION | FEW
    assert problem.training.step_size[-1] == pytest.approx(500 * problem.training.step_size[0])
    solved = dmft.solve(problem, **arguments).prediction.values
    # relaxed: exact but for directions below the tolerance, which are none of the training samples'
    np.testing.assert_allclose(solved[-1, :3], problem.task.y_train, atol=1e-9)
    assert abs(solved[-1] - solved[0]).min() > 0.1
    with pytest.raises(DivergenceError, match=r"diverges at step \d+"):
        dmft.solve(stiff_problem("euler"), **arguments)
    # without the curvature of the loss the scheme is explicit
    curvature = flow.loss.curvature
    monkeypatch.setattr(flow.loss, "curvature", lambda *given: 0 * curvature(*given))
    monkeypatch.setattr(loop, "advance", loop.advance.__wrapped__)  # compiled code would not see the change
    monkeypatch.setattr(run, "CALLS", 1)
    with pytest.raises(DivergenceError, match=r"diverges at step \d+"):
        dmft.solve(problem, **arguments)


# ---- residual networks at initialisation -----------------------------------------------------------------------------

AT_START = {"save_steps": [0], "observables": ["feature_kernel", "gradient_kernel", "ntk"]}


def differences(solved, closed):
    """The largest, in units of standard errors."""
    names = AT_START["observables"]
    return max(float((abs(solved[n] - closed[n]) / (solved[f"{n}_se"] + 1e-12)).max()) for n in names)


@pytest.mark.parametrize(
    ("depth", "activation"),
    [
        (4, dmft.tanh()),
        (4, dmft.relu()),
        pytest.param(8, dmft.tanh(), marks=pytest.mark.slow),
        pytest.param(8, dmft.relu(), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_kernels_of_residual_networks_at_initialisation_are_the_recursion(depth, activation):
    problem = some_problem(net=dmft.ResidualMLP(depth, activation))
    solved = dmft.solve(problem, particles=2048, **AT_START)
    # 425 correlated entries at depth 8, t_7: 9 has a probability of 4e-5 each
    assert differences(solved, lazy_limit(problem, save_steps=[0])) < 9
    for n in AT_START["observables"]:
        assert float(solved[f"{n}_se"].max()) < 0.02 * float(abs(solved[n]).max())
    wider = changed(problem, branch_scale=1.1 * problem.network.branch_scale)
    assert differences(solved, lazy_limit(wider, save_steps=[0])) > 20


# ---- devices, precision, sources of normals --------------------------------------------------------------------------

ON_DEVICES = """
import json, sys
import dmft
from test_training import FEW
problem, linear = (dmft.Problem.from_json(text) for text in json.load(sys.stdin))
found = {}
for devices in (1, 2, 4):
    solved = dmft.solve(problem, devices=devices, **FEW)
    found[devices] = [solved.attrs["device"], solved.prediction.values.tolist(), solved.ntk.values.tolist()]
for name, given, arguments in (
    ("too many", problem, {"devices": 8}),
    ("uneven", problem, {"devices": 3}),
    ("linear", linear, {"devices": 2}),
):
    try:
        dmft.solve(given, **FEW, **arguments)
    except ValueError as error:
        found[name] = str(error)
print(json.dumps(found))
"""
SMALL = some_problem(training=GD(SCHEDULE, momentum=0.5, weight_decay=0.1, batches=BATCHES))


@pytest.mark.slow
def test_any_number_of_devices_gives_the_same_numbers():
    found = on_virtual_devices(4, ON_DEVICES, json.dumps([SMALL.to_json(), linear_problem().to_json()]))
    for devices in ("2", "4"):
        for ours, one in zip(found[devices][1:], found["1"][1:], strict=True):
            # sums in another order: rounding through 6 steps
            np.testing.assert_allclose(ours, one, atol=1e-12)
        assert found[devices][0] == f"cpu: cpu x {devices}"
    # numbers of another scramble are not the same
    assert abs(dmft.solve(SMALL, seed=1, **FEW).prediction.values - found["1"][1]).max() > 1e-5
    assert found["too many"] == "devices=8, but JAX has 4 of kind cpu; use devices=4 or fewer."
    assert found["uneven"] == "particles=128 cannot be spread evenly over devices=3."
    assert found["linear"] == "devices=2: linear networks are solved without particles; use devices=1."


def test_single_precision_is_double_precision_to_rounding():
    arguments = FEW | {"tolerance": 1e-2}
    single, double = (dmft.solve(SMALL, dtype=dtype, **arguments) for dtype in ("float32", "float64"))
    assert single.attrs["dtype"] == "float32"
    # 6e-8 a step and layer, amplified by new directions of relative size down to the tolerance
    for name in ("prediction", "feature_kernel", "gradient_kernel", "ntk"):
        assert 0 < abs(single[name] - double[name]).max() < 1e-4
    # other particles are seen at this level
    assert abs(dmft.solve(SMALL, seed=1, **arguments).prediction - double.prediction).max() > 1e-4


@pytest.mark.slow
def test_normals_made_anew_are_those_that_are_kept(monkeypatch):
    problem = some_problem(training=GD(SCHEDULE, momentum=0.5), net=dmft.ResidualMLP(3, dmft.tanh(), 1.3))
    kept = dmft.solve(problem, **FEW)
    monkeypatch.setattr(run, "STORED_NORMALS", 0)
    anew = dmft.solve(problem, **FEW)
    assert anew.attrs["memory_estimate"] < kept.attrs["memory_estimate"]
    for name in ("prediction", "ntk"):
        # the same integers; products in another order: rounding
        np.testing.assert_allclose(anew[name], kept[name], atol=1e-11)
    assert abs(dmft.solve(problem, **FEW, seed=1).prediction - kept.prediction).max() > 1e-5


# ---- long runs -------------------------------------------------------------------------------------------------------


def directions(steps, tolerance):
    problem = some_problem(training=dmft.GradientDescent(0.2, 150))
    return dmft.solve(
        problem, save_steps=[steps], particles=1024, scrambles=2, tolerance=tolerance, **PREDICTION
    ).attrs["directions"]


@pytest.mark.slow
def test_directions_saturate_in_time():
    half, whole = directions(75, 3e-3), directions(150, 3e-3)
    # 5 samples x 151 steps are met
    assert 5 < whole < 1.5 * half
    assert whole < 60


def decomposed_once(v, Q, crowd, tolerance):
    """As `basis.decompose`, without the second orthogonalisation."""
    residual = v - crowd.inner(v, Q) @ Q
    gram = crowd.inner(residual, residual)
    pivots, rank = basis._pivots(gram, tolerance**2 * crowd.squares(v))
    first = basis._normalising(gram[pivots][:, pivots], jnp.arange(len(v)) < rank)
    return first @ residual[pivots], rank


def decomposed_twice(v, Q, crowd, tolerance):
    d = basis.decompose(v, Rows(Q), crowd, tolerance)
    return d.q, d.rank


def overlaps(decompose, steps=120, size=600, drift=1e-5):
    """The largest error of <Q Q> = 1, and the number of directions, after `steps` blocks of three vectors that turn slowly."""
    crowd, rng = population.particles(np.zeros((0, size))), np.random.default_rng(0)
    first, turns = rng.standard_normal((3, size)), drift * rng.standard_normal((steps, 3, size))

    @jax.jit
    def met(v, turns):
        def body(state, turn):
            v, Q, count = state
            v = v + turn
            q, rank = decompose(v, Q, crowd, 1e-7)
            return (v, jax.lax.dynamic_update_slice_in_dim(Q, q, count, axis=0), count + rank), None

        nothing = jnp.zeros((3 * steps + 3, size)), jnp.zeros((), jnp.int32)
        return jax.lax.scan(body, (v, *nothing), turns)[0][1:]

    Q, count = map(np.asarray, met(first, turns))
    Q = Q[:count]
    return float(abs(Q @ Q.T / size - np.eye(len(Q))).max()), len(Q)


def test_hundreds_of_directions_stay_orthonormal():
    with jax.enable_x64(True):
        error, count = overlaps(decomposed_twice)
        assert count == 360  # every block is new, by a hundred thousandth
        # rounding of 1e-16 over new parts of 1e-5, once more orthogonalised
        assert error < 1e-10
        assert overlaps(decomposed_once)[0] > 1e-6


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"observables": "loss"}, ValueError, "observables='loss': give a list with any of prediction, loss, feature_kernel"),
        ({"observables": []}, ValueError, "observables=[]: give a list"),
        ({"observables": ["spectrum"]}, ValueError, "observables=['spectrum']: give a list"),
        ({"dtype": "float16"}, ValueError, "dtype='float16' is not offered; choose one of float64, float32"),
        ({"devices": 0}, ValueError, "devices=0 is too small; it must be at least 1"),
        ({"devices": 1.5}, TypeError, "devices=1.5 is not an integer"),
        ({"devices": 999}, ValueError, "devices=999, but JAX has "),
    ],
)  # fmt: skip
def test_solve_refuses(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        dmft.solve(SMALL, **arguments)


DESCENT = partial(dmft.GradientDescent, 0.1, 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DESCENT(momentum=1), ValueError, "momentum=1 must be at least 0 and below 1"),
        (lambda: DESCENT(momentum="heavy"), TypeError, "momentum='heavy' is not a number"),
        (lambda: DESCENT(weight_decay=-1), ValueError, "weight_decay=-1 must be at least 0 and finite"),
        (lambda: DESCENT(weight_decay=np.inf), ValueError, "weight_decay=inf must be at least 0 and finite"),
        (lambda: DESCENT(batches=[0, 1]), ValueError, "batches has shape (2,) and dtype int64; expected integers (step, position)"),
        (lambda: DESCENT(batches=[[0.5], [1.0]]), ValueError, "batches has shape (2, 1) and dtype float64; expected integers"),
        (lambda: DESCENT(batches=[[0], [1], [2]]), ValueError, "batches holds 3 batches for 2 steps; give one for each"),
        (lambda: DESCENT(batches=[[0, 1], [2]]), ValueError, "batches are of different sizes; give as many samples at every step"),
        (lambda: DESCENT(batches=[[0, 1], [2, 2]]), ValueError, "the batch of step 1 holds a sample twice"),
        (lambda: DESCENT(batches=[[0], [-1]]), ValueError, "and no negative index"),
        (lambda: DESCENT(batches=[[], []]), ValueError, "batches has shape (2, 0)"),
        (lambda: some_problem(training=DESCENT(batches=[[0], [3]])), ValueError, "batches hold the sample 3; the task has training samples 0..2"),
        (lambda: DESCENT(observe="train"), ValueError, "observe='train' is unknown; choose one of all, test"),
        (lambda: some_problem(training=DESCENT(observe="test")), ValueError, 'observe="test" with centered=True'),
        (
            lambda: dmft.Problem(dmft.MLP(1, centered=False), dmft.Task([[1.0]], [1.0]), DESCENT(observe="test")),
            ValueError,
            'observe="test" leaves nothing to observe: the task has no test samples',
        ),
        (lambda: dmft.GradientDescent((0.1, 0.2, 0.3), 2), ValueError, "learning_rate has 3 entries for 2 steps; give one number, or one for each"),
        (lambda: dmft.GradientDescent((0.1, -0.2), 2), ValueError, "learning_rate[1]=-0.2 must be at least 0"),
        (lambda: dmft.GradientDescent((0.0, 0.0), 2), ValueError, "learning_rate is zero at every step: nothing would be learned"),
        (lambda: dmft.GradientFlow(0.1, (0.1, 0.0)), ValueError, "step_size[1]=0.0 must be positive"),
        (lambda: dmft.GradientFlow(0.1, 0.1, 5, "heun"), ValueError, "scheme='heun' is unknown; choose one of rosenbrock, euler"),
        (lambda: dmft.GradientFlow(0.1, 0, 5), ValueError, "step_size=0 must be positive"),
        (lambda: dmft.GradientFlow(0.1, (0.1, 0.2), 3), ValueError, "step_size has 2 entries for 3 steps"),
        (lambda: dmft.GradientFlow(0.1, 0.1), ValueError, "steps=0 is too small"),
        (lambda: dmft.GradientFlow((0.1, 0.2), 0.1, 2), TypeError, "learning_rate=(0.1, 0.2) is not a number"),
        (lambda: dmft.ResidualMLP(2, branch_scale=0), ValueError, "branch_scale=0 must be positive"),
        (lambda: dmft.random_batches(3, 4, 5), ValueError, "size=4 is more than the n_train=3 samples; take a smaller batch"),
        (lambda: dataclasses.replace(some_problem("logistic"), loss="cross_entropy"), ValueError, 'For targets -1 and +1 take loss="logistic"'),
        (lambda: dataclasses.replace(some_problem("squared"), loss="logistic"), ValueError, "loss='logistic' needs targets -1 or +1; found "),
        (lambda: dataclasses.replace(some_problem("cross_entropy", 3), loss="hinge"), ValueError, "For one-hot targets give 2 y - 1"),
    ],
)  # fmt: skip
def test_specs_refuse(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
