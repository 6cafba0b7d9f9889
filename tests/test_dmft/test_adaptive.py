"""Steps chosen from the local error: as accurate as fine uniform ones, and as few as decades of time need."""

import dataclasses
import re

import numpy as np
import pytest

import dmft
from dmft.drivers import adaptive_flow
from dmft.drivers.run import Run
from dmft.errors import DivergenceError
from dmft.limits import two_layer_linear
from dmft.limits.lazy import lazy_limit

FLOW = dmft.GradientFlow(1.0, 1.0, 1)
CHOOSING = {"particles": 128}
END = {"observables": ["prediction"], "particles": 256, "scrambles": 2}


def some_problem(network, training=FLOW):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((5, 6)), rng.standard_normal(5)
    return dmft.Problem(network, dmft.Task(x[:3], y[:3], x[3:], y[3:]), training)


def ill_conditioned(activation, gamma0):
    """K^x of the training samples has the eigenvalues 1, 1e-2 and 1e-4."""
    Q = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    x = np.sqrt(3) * Q * np.sqrt([1.0, 1e-2, 1e-4])
    return dmft.Problem(dmft.MLP(1, activation, gamma0), dmft.Task(x, [1.0, -1.0, 0.5]), FLOW)


def at_end(problem):
    """Predictions at the last step."""
    return dmft.solve(problem, save_steps=[problem.training.steps], **END).prediction.values[0]


def uniform(problem, until, steps):
    return dataclasses.replace(problem, training=dmft.GradientFlow(1.0, until / steps, steps))


# the same points at any grid: no matrices to reveal, or exact; differences are those of the steps
PROBLEMS = {
    "one hidden layer": some_problem(dmft.MLP(1, dmft.tanh(0.8), 1.3)),
    "deep linear": some_problem(dmft.MLP(2, dmft.linear(), 1.3)),
}
UNTIL = 8.0
RICHER = {
    name: dataclasses.replace(p, network=dataclasses.replace(p.network, gamma0=1.4)) for name, p in PROBLEMS.items()
}


@pytest.mark.parametrize(
    ("name", "tolerances"),
    [
        ("one hidden layer", (1e-2, 1e-3, 1e-4)),
        pytest.param("deep linear", (1e-3, 1e-4), marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_errors_are_of_the_size_of_the_tolerance_and_fall_with_it(name, tolerances):
    problem, errors = PROBLEMS[name], []
    coarse, fine = (at_end(uniform(problem, UNTIL, steps)) for steps in (200, 400))
    exact = (4 * fine - coarse) / 3  # second order
    assert abs(fine - exact).max() < 1e-5  # steps of 1/50; what is left after extrapolation is a fiftieth of it
    scale = np.sqrt(np.mean(problem.task.y_train**2))
    for tolerance in tolerances:
        chosen = dmft.adaptive_flow(problem, UNTIL, tolerance=tolerance, **CHOOSING)
        assert chosen.training.times[-1] == pytest.approx(UNTIL, rel=1e-12)  # rounding of a sum
        errors.append(abs(at_end(chosen) - exact).max() / scale)
        assert errors[-1] < tolerance  # of its size; measured .01 to .8 of it
    # dt^2 is proportional to the tolerance, and errors are nearly (measured 5 to 7, not 10)
    assert errors[0] > 4 * errors[1]
    assert errors[-2] > 4 * errors[-1]
    # twin: a richness off by 8 %
    assert abs(at_end(uniform(RICHER[name], UNTIL, 200)) - exact).max() / scale > 1e-2


def test_small_eigenvalues_relax_on_their_own_time_scale():
    until = 1e4  # the rate of the last mode is 2 1e-4 / 3: a factor exp(-2/3) is left
    problem = ill_conditioned(dmft.linear(), 1e-4)
    chosen = dmft.adaptive_flow(problem, until, **CHOOSING)
    exact = lazy_limit(chosen, save_steps=[0, chosen.training.steps]).prediction.values[-1]
    y = problem.task.y_train
    slow = np.linalg.eigh(problem.task.input_kernel)[1][:, 0]
    assert slow @ (y - exact) / (slow @ y) == pytest.approx(np.exp(-2 / 3), rel=1e-6)  # of the lazy limit, K = 2 K^x
    tolerance = 1e-3 * np.sqrt(np.mean(y**2))
    # corrections to the lazy limit: gamma0^2 / 1e-4 = 1e-4 of what is learned in the last mode
    np.testing.assert_allclose(at_end(chosen), exact, atol=tolerance)
    rich = dataclasses.replace(problem, network=dmft.MLP(1, dmft.linear(), 0.03))
    chosen = dmft.adaptive_flow(rich, until, **CHOOSING)
    closed = two_layer_linear(chosen, save_steps=[0, chosen.training.steps]).prediction.values[-1]
    assert abs(closed - exact).max() > 10 * tolerance
    np.testing.assert_allclose(at_end(chosen), closed, atol=tolerance)
    # twin: as many equal steps
    assert abs(at_end(uniform(rich, until, chosen.training.steps)) - closed).max() > 5 * tolerance


def test_the_number_of_steps_grows_like_the_logarithm_of_time():
    problem = ill_conditioned(dmft.linear(), 1e-4)
    one, three, later = (dmft.adaptive_flow(problem, until, **CHOOSING).training.steps for until in (1e1, 1e6, 1e8))
    # three modes, two decades apart, cost as many steps each as the first; a time in which nothing happens costs those
    # in which dt grows by GROWTH, 1.7 a decade
    assert one < three < 4 * one
    assert later - three <= 2 * 1.7 + 1
    # dt^2 ~ tolerance
    few = dmft.adaptive_flow(problem, 1e6, tolerance=1e-2, **CHOOSING).training.steps
    assert few < three / 2


@pytest.mark.slow
def test_a_deep_network_reaches_long_times_in_few_growing_steps(monkeypatch):
    problem = some_problem(dmft.MLP(2, dmft.tanh(0.8), 1.3))
    chosen = dmft.adaptive_flow(problem, 1e6, **CHOOSING)
    sizes = np.array(chosen.training.step_size)
    assert len(sizes) < 300
    assert sizes.sum() == pytest.approx(1e6, rel=1e-12)
    assert sizes.max() > 1e5 * sizes[0]
    assert (sizes[1:] / sizes[:-1]).max() < adaptive_flow.GROWTH * (1 + 1e-9)  # rounding
    assert len(sizes) < 1.6 * dmft.adaptive_flow(problem, 1e3, **CHOOSING).training.steps
    assert chosen.network == problem.network
    assert chosen.task == problem.task
    # the same arguments choose the same steps, another scramble nearly the same
    assert dmft.adaptive_flow(problem, 1e6, **CHOOSING) == chosen
    other = dmft.adaptive_flow(problem, 1e6, seed=1, **CHOOSING)
    assert other != chosen
    assert other.training.steps == pytest.approx(len(sizes), rel=0.2)
    # matrices that begin with too little room
    monkeypatch.setattr(Run, "first_capacity", 30)
    grown = dmft.adaptive_flow(problem, 1e6, **CHOOSING)
    assert grown.training.steps == pytest.approx(len(sizes), rel=0.2)


def test_the_learning_rate_is_kept_and_scales_time():
    slow, fast = (
        dmft.adaptive_flow(some_problem(dmft.MLP(1), dmft.GradientFlow(rate, 1.0, 1)), until, **CHOOSING).training
        for rate, until in ((1.0, 8.0), (4.0, 2.0))
    )
    assert fast.learning_rate == 4.0
    # the same eta t: rounding
    np.testing.assert_allclose(fast.times, slow.times, rtol=1e-9)
    assert fast.times[-1] == pytest.approx(8.0)


def test_ends_too_early_with_a_warning():
    problem = PROBLEMS["one hidden layer"]
    with pytest.warns(
        UserWarning, match=r"max_steps=7 ended at time 1.47, before until=1000; raise it, or the tolerance=0.001"
    ):
        short = dmft.adaptive_flow(problem, 1e3, max_steps=7, **CHOOSING)
    assert short.training.steps == 7
    assert short.training.times[-1] < 1e3


def test_an_error_that_is_no_number_at_any_step_is_a_divergence(monkeypatch):
    problem, trial = PROBLEMS["one hidden layer"], adaptive_flow._trial

    def leaves_the_numbers(network, rule, t, rate, *, form):
        network, error = trial(network, rule, t, rate, form=form)
        return network, error * np.nan if t >= 3 else error

    monkeypatch.setattr(adaptive_flow, "_trial", leaves_the_numbers)
    with pytest.raises(DivergenceError, match=r"at time 0\.\d+ no step is small enough for a local error of 0.001"):
        dmft.adaptive_flow(problem, 10.0, **CHOOSING)


def test_progress_on_request(capsys):
    dmft.adaptive_flow(PROBLEMS["one hidden layer"], 10.0, progress=True, **CHOOSING)
    assert "100/100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"problem": FLOW}, TypeError, "adaptive_flow expects a dmft.Problem, got GradientFlow"),
        ({"problem": some_problem(dmft.MLP(1), dmft.GradientDescent(0.1, 5))}, ValueError, 'give a dmft.GradientFlow with the scheme "rosenbrock"'),
        ({"problem": some_problem(dmft.MLP(1), dmft.GradientFlow(0.1, 0.1, 5, "euler"))}, ValueError, 'with the scheme "rosenbrock"'),
        ({"until": 0}, ValueError, "until=0 must be positive"),
        ({"until": np.inf}, ValueError, "until=inf must be positive and finite"),
        ({"tolerance": -1e-3}, ValueError, "tolerance=-0.001 must be positive"),
        ({"max_steps": 0}, ValueError, "max_steps=0 is too small"),
        ({"particles": 100}, ValueError, "particles=100 is not a power of two"),
        ({"basis_tolerance": 0.5}, ValueError, "tolerance=0.5 must lie between"),
        ({"seed": -1}, ValueError, "seed=-1 is too small"),
        ({"device": "tpu"}, ValueError, "device='tpu' is unknown"),
    ],
)  # fmt: skip
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        dmft.adaptive_flow(**{"problem": PROBLEMS["one hidden layer"], "until": 10.0} | arguments)
