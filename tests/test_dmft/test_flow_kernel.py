"""Gradient flow with weight decay, t -> infinity: closed forms and the convex problem against networks at rest.

Networks at rest forget their initial weights and, where they are linear, their width: final matrices have rank one.
Decays are lambda = P times the weight decay of the problem, as in the equations.
"""

from dataclasses import replace

import numpy as np
import pytest

import dmft
import finite_nets
from dmft.adaptive_kernels import linear_flow, two_layer_flow
from dmft.adaptive_kernels.rest import at_rest, late_steps, regression
from dmft.errors import NotConvergedError

RELU = dmft.Activation("relu", scale=2**-0.5)  # max(h, 0)
P, TEST = 6, 3


def problem(activation, depth, *, gamma0=1.0, decay=0.3, dt=0.1, until=20.0, dimension=8, seed=0, samples=P):
    """dt, until: steps of the flow whose loss is a sum, and its end, in units of 1 / decay."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((samples + TEST, dimension)), np.sign(rng.standard_normal(samples + TEST))
    task = dmft.Task(x[:samples], y[:samples], x[samples:], y[samples:])
    network = dmft.MLP(depth, activation, gamma0=gamma0, centered=False)
    training = dmft.GradientDescent(samples * dt, steps=round(until / decay / dt), weight_decay=decay / samples)
    return dmft.Problem(network, task, training)


def flow(described, **settings):
    return dmft.adaptive_kernel(described, kind="flow", **settings)


def networks(described, *, width=60, seeds=1, looks=2, observables=("prediction",), **settings):
    steps = late_steps(described.training, looks)
    return finite_nets.train_ensemble(
        described,
        widths=[width],
        seeds=seeds,
        save_steps=steps,
        observables=observables,
        dtype="float64",
        device="cpu",
        **settings,
    )


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_deep_linear_networks_come_to_rest_at_the_closed_form(depth):
    described = problem(dmft.linear(), depth, dt=0.1 / depth)  # steps below 2 / K, which grows with depth
    theory = flow(described)
    nets = networks(described, observables=("prediction", "feature_kernel", "gradient_kernel", "ntk"))
    at_end = nets.isel(width=0, seed=0, step=-1)
    left = np.exp(-20)  # of the initial weights, 2e-9; what they have been enters to second order
    for name in ("prediction", "feature_kernel", "gradient_kernel", "ntk"):
        error = abs(theory[name] - at_end[name]).max() / abs(theory[name]).max()
        assert error < 100 * left, name
    assert theory.attrs["identity_error"] < 1e-12
    # with the decay of the mean in place of the sum, the prediction is another
    other = linear_flow.state(described.task.input_kernel, described.task.y_train, theory.rho, depth=depth, decay=0.05)
    assert abs(other.prediction - at_end["prediction"].values).max() > 0.02


def test_scaled_activations_rescale_the_closed_form():
    described = problem(dmft.Activation("linear", scale=1.3), 2, dt=0.03)
    theory, nets = (
        flow(described),
        networks(described, observables=("prediction", "ntk")).isel(width=0, seed=0, step=-1),
    )
    for name in ("prediction", "ntk"):
        assert abs(theory[name] - nets[name]).max() < 1e-6
    assert abs(flow(problem(dmft.linear(), 2))["prediction"] - nets["prediction"]).max() > 0.01


def test_below_the_threshold_everything_decays():
    base = problem(dmft.linear(), 1)
    y, kernel = base.task.y_train, base.task.input_kernel[:P, :P]
    threshold = 0.3 / np.sqrt(y @ kernel @ y)
    below, above = (problem(dmft.linear(), 1, gamma0=ratio * threshold, until=60.0) for ratio in (0.63, 1.26))
    assert not flow(below)["prediction"].any()
    assert abs(networks(below)["prediction"].isel(step=-1)).max() < 1e-6
    found = flow(above)["prediction"]
    assert abs(found).max() > 0.05
    assert abs(networks(above)["prediction"].isel(step=-1) - found).max() < 1e-5


def test_roots_of_deeper_networks_come_in_pairs_of_which_energy_tells_the_stable():
    y, kernel = np.ones(1), np.eye(1)
    found = linear_flow.roots(kernel, y, depth=2, gamma0=1.0, decay=0.3)
    assert found.stable.tolist() == [False, True]
    rho = found.rho[:, None] * (1 + np.array([-1e-3, 0.0, 1e-3]))
    energy = (1 - rho**1.5) ** 2 / 2 + 3 * 0.3 * rho / 2  # of one sample, f = rho^((L+1)/2) / gamma0
    np.testing.assert_allclose(energy[:, 1], found.energy, rtol=1e-12)
    assert (np.diff(np.sign(np.diff(energy, axis=1)), axis=1).ravel() == [-2, 2]).all()  # a maximum, a minimum
    assert not len(linear_flow.roots(kernel, y, depth=2, gamma0=0.2, decay=0.3).rho)
    collapsed = flow(problem(dmft.linear(), 2), collapsed=True)
    assert not collapsed["prediction"].any()
    assert not collapsed["ntk"].any()


def test_largest_correlations_are_those_over_all_directions():
    rng = np.random.default_rng(1)
    X, delta = rng.standard_normal((7, 2)), rng.standard_normal(7)
    angles = np.linspace(0, 2 * np.pi, 20001)
    n = np.stack([np.cos(angles), np.sin(angles)], 1)
    for slopes in ((0.0, 1.0), (0.3, 1.0), (1.0, 0.2)):
        search = two_layer_flow._Search(X, delta, slopes, 1.0)
        c = search.features(n) @ delta
        found = search.every(delta)
        # of a grid of 3e-4, below a maximum by at most slope times spacing
        for sign, best in ((1, c.max()), (-1, -c.min())):
            exact = (sign * found.weights).max()
            assert best <= exact + 1e-12 < best + 3e-4 * np.linalg.norm(delta) * np.linalg.norm(X)
        raised = search.raised(delta, n[::2000])
        assert raised.weights.max() == pytest.approx(found.weights.max(), rel=1e-9)


def test_two_layers_are_a_convex_problem_whose_gap_is_certified():
    described = problem(RELU, 1, dimension=2, seed=3, samples=8)
    theory = flow(described)
    assert theory.attrs["certified"]
    assert 0 <= theory.attrs["gap"] < 1e-10
    assert theory.attrs["identity_error"] < 1e-5
    y, X = described.task.y_train, described.task.x_train / np.sqrt(2)
    search = two_layer_flow._Search(X, y, (0.0, 1.0), 0.3)
    found = two_layer_flow.minimum(X, y, (0.0, 1.0), 0.3, tolerance=1e-10, most=100, seed=0)
    worse = found.neurons._replace(weights=found.neurons.weights * 1.01)
    assert search.certificate(worse, worse.directions, np.inf)[0] > 1e-5  # 1 per cent off is seen
    with pytest.raises(NotConvergedError, match="duality gap") as refused:
        flow(described, iterations=1)
    assert abs(refused.value.estimate["prediction"] - theory["prediction"]).max() < 1.0


def test_two_layer_networks_come_to_rest_there_and_kernels_of_one_step_do_not_tell():
    described = problem(RELU, 1, dimension=2, seed=3, samples=8, dt=0.02, until=30.0)
    theory = flow(described)
    nets = networks(
        described, width=100, looks=32, two_time=True, observables=("prediction", "feature_kernel", "gradient_kernel")
    )
    rest = at_rest(described, nets).isel(width=0, seed=0)
    # of the order of steps, not of widths: .009, .005, .003, .0012 for dt = .1, .05, .02, .01
    assert abs(rest["prediction"] - theory["prediction"]).max() < 5e-3
    assert abs(rest["feature_kernel"] - theory["feature_kernel"]).max() < 2e-2 * theory["feature_kernel"].max()
    assert rest["identity_error"] < 5e-3
    assert rest["instant_error"] > 5 * rest["identity_error"]
    half = regression(rest["ntk"].values, described.task.y_train, 0.3)  # lambda alone in place of 2 lambda
    assert abs(half - rest["prediction"].values).max() > 0.02
    twice = flow(problem(RELU, 1, dimension=2, seed=3, samples=8, decay=0.6))
    assert abs(twice["prediction"] - rest["prediction"]).max() > 0.02


def test_training_of_the_limit_comes_to_rest_at_the_closed_form():
    described = problem(dmft.linear(), 1, until=14.0)
    theory, trained = flow(described), flow(described, method="training")
    assert abs(theory["prediction"] - trained["prediction"]).max() < 5e-4
    assert abs(theory["ntk"] - trained["ntk"]).max() < 5e-4 * theory["ntk"].max()
    early = replace(described, training=replace(described.training, steps=60))
    with pytest.raises(NotConvergedError, match="initial_weights") as refused:
        flow(early, method="training")
    assert refused.value.estimate.attrs["initial_weights"] == pytest.approx(0.97**60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": dmft.GradientDescent(0.1, 5)}, "weight decay 0"),
        ({"training": dmft.GradientFlow(1.0, 0.1, 5)}, "weight_decay"),
        ({"training": dmft.GradientDescent(0.1, 1, weight_decay=0.1, batches=((0, 1),))}, "never comes to rest"),
        ({"training": dmft.Adam(0.1, 5, weight_decay=0.1)}, "no linear optimiser"),
        ({"network": dmft.MLP(1, dmft.tanh())}, "not homogeneous"),
        ({"network": dmft.MLP(1, dmft.relu(), bias=0.5)}, "bias=0.5"),
        ({"network": dmft.ResidualMLP(2, dmft.relu())}, "ResidualMLP"),
        ({"task": dmft.Task(np.eye(2), np.eye(2))}, "2 outputs"),
    ],
)
def test_what_has_no_such_kernel_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        flow(replace(problem(RELU, 1), **change))


def test_arguments_are_checked():
    deep = problem(RELU, 2)
    with pytest.raises(ValueError, match="it has training"):
        flow(deep, method="convex")
    with pytest.raises(ValueError, match="collapsed"):
        flow(deep, collapsed=True)
    brief = problem(RELU, 1, until=0.4)
    linear = replace(brief, network=dmft.MLP(1, dmft.linear()))
    with pytest.raises(NotConvergedError, match="remaining nan"):  # too few steps to say
        flow(linear, method="training", tolerance=10.0)
    with pytest.raises(ValueError, match="sets=1 is too small"):  # errors are those over sets
        flow(brief, method="training", sets=1)
    for described, settings, words in (
        (
            linear,
            {"tolerance": 1e-3, "seed": 1},
            "tolerance=0.001, seed=1 are not for method='closed form': leave them",
        ),
        (linear, {"method": "training", "sets": 2}, "sets=2 is not for linear networks, trained exactly: leave it out"),
        (brief, {"particles": 64, "device": "gpu"}, "particles=64, device='gpu' are not for method='convex'"),
    ):
        with pytest.raises(ValueError, match=words):
            flow(described, **settings)
    with pytest.raises(ValueError, match="two_time"):
        at_rest(brief, networks(brief))


def test_what_remains_is_told_by_steps_after_the_start():
    described = problem(dmft.linear(), 1, until=2.0)
    last = described.training.steps
    wanted = {"observables": ("prediction", "feature_kernel", "gradient_kernel"), "two_time": True}
    late = [*range(last - 8, last + 1)]
    found = {
        first: at_rest(described, dmft.solve(described, save_steps=[first, *late], **wanted))["remaining"]
        for first in (0, last // 2)
    }
    assert np.isnan(found[0])  # nothing follows from f = 0, whatever the time since then
    assert 0.01 < found[last // 2] < 1


def test_a_gap_that_is_no_number_is_refused(monkeypatch):
    minimum = two_layer_flow.minimum
    monkeypatch.setattr(two_layer_flow, "minimum", lambda *a, **k: minimum(*a, **k)._replace(gap=np.nan))
    with pytest.raises(NotConvergedError, match="duality gap is nan"):
        flow(problem(RELU, 1, samples=3))


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "dimension"), [(1, 30), (2, 30), (3, 30)])
def test_identity_holds_for_kernels_averaged_over_late_steps(depth, dimension):
    described = problem(RELU, depth, dimension=dimension, seed=3, samples=8, dt=0.03, until=60.0)
    kernels = ("prediction", "feature_kernel", "gradient_kernel")
    nets = networks(described, width=200, seeds=2, looks=256, two_time=True, observables=kernels)
    rest = at_rest(described, nets).isel(width=0)
    print(depth, {name: rest[name].values for name in ("identity_error", "instant_error", "remaining")})
    assert (rest["identity_error"] < 2e-4).all()  # measured 7e-5 to 1.3e-4; of 32 steps up to 1.5e-3
    assert (rest["instant_error"] > 50 * rest["identity_error"]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "until"), [(3, 50.0), (4, 200.0)])
def test_two_layer_networks_approach_the_convex_problem_with_their_steps(seed, until):
    # what is left falls fast for the first, slowly for the second: .05, .03, .01, 1e-3 at lambda t = 12, 25, 50, 100
    theory, found = flow(problem(RELU, 1, dimension=2, seed=seed, samples=8))["prediction"], []
    for dt in (0.01, 0.005):
        described = problem(RELU, 1, dimension=2, seed=seed, samples=8, dt=dt, until=until)
        found.append(networks(described, width=100, looks=64)["prediction"].isel(width=0, seed=0).mean("step"))
        print(seed, dt, abs(found[-1] - theory).values)
    off = abs(2 * found[1] - found[0] - theory).max()  # to steps of zero; measured 6e-5, 6e-4
    assert off < 1e-3
    assert abs(found[0] - theory).max() > 1e-3  # not at steps that are not
    more = flow(problem(RELU, 1, dimension=2, seed=seed, samples=8, decay=0.306))["prediction"]
    assert abs(2 * found[1] - found[0] - more).max() > 2 * off  # nor of a decay of 2 per cent more


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_training_of_the_limit_with_kinks_comes_to_rest_beside_wide_networks(depth):
    # of two hidden layers fewer particles and steps: their matrices meet a new direction at every jump of a slope
    described = problem(RELU, depth, dt=0.1, until=100.0 if depth == 1 else 12.0)
    trained = flow(described, method="training", sets=2, tolerance=0.3, particles=2048 if depth == 1 else 512)
    nets = networks(described, width=1000, seeds=4)["prediction"].isel(width=0).mean(["seed", "step"])
    print(depth, trained.attrs, abs(trained["prediction"] - nets).values)
    assert trained.attrs["instant_error"] > 2 * trained.attrs["identity_error"]
    assert abs(trained["prediction"] - nets).max() < 5e-2
    if depth == 1:
        assert abs(trained["prediction"] - flow(described)["prediction"]).max() < 2e-2


@pytest.mark.slow
def test_limit_with_decay_is_that_of_wide_networks():
    """Weights that fade by .95 a step: a bias that falls like 1/N, from 8e-3 at N = 128 in a tanh residual network."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 8)), np.sign(rng.standard_normal(4))
    network = dmft.ResidualMLP(2, dmft.tanh(), gamma0=1.0, branch_scale=0.5)
    decaying = dmft.Problem(network, dmft.Task(x, y), dmft.GradientDescent(1.0, 10, weight_decay=0.05))
    theory = dmft.solve(decaying, particles=8192, observables=["prediction"])["prediction"]
    assert decaying.training.memory.d[-1] == pytest.approx(0.95**10)
    biases = []
    for width, seeds in ((128, 4000), (512, 1000)):
        nets = finite_nets.train_ensemble(decaying, widths=[width], seeds=seeds, observables=["prediction"])
        f = nets["prediction"].isel(width=0)
        bias, error = abs(f.mean("seed") - theory).max().item(), (f.std("seed").max() / np.sqrt(seeds)).item()
        print(width, bias, error)
        biases.append(bias)
        assert bias < 1.5 / width + 4 * error
    frozen = dmft.solve(replace(decaying, training=dmft.GradientDescent(1.0, 10)), particles=1024, scrambles=2)
    assert abs(frozen["prediction"] - theory).max() > 5 * biases[-1]
