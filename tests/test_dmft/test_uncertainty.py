"""What a result says of its own errors, beside its standard errors."""

import re
import warnings

import numpy as np
import pytest

import dmft
from dmft.drivers.uncertainty import warn_of_large_errors
from dmft.text import WIDEST, table


def problem(training, activation=None):
    x = np.random.default_rng(0).standard_normal((4, 3))
    return dmft.Problem(dmft.MLP(1, activation or dmft.linear()), dmft.Task(x, [1, -1, 1, 0.5]), training)


def test_the_largest_error_relative_to_its_quantity_is_named():
    theory = dmft.lazy_limit(problem(dmft.GradientDescent(0.5, 3)))
    scale = float(abs(theory.loss).max())
    errors = np.zeros(4)
    for part, warned in ((0.19, False), (0.55, True)):
        errors[2] = part * scale
        noisy = theory.assign(loss_se=("step", errors), prediction_se=theory.prediction_se + 1e-3)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            warn_of_large_errors(noisy, "Raise particles=64.")
        assert len(seen) == warned
    assert re.match(rf"standard errors of loss reach {0.55 * scale:.2g}, 55 % of its scale", str(seen[0].message))
    assert str(seen[0].message).endswith("Raise particles=64.")
    # nothing is said of rounding, and of what vanishes
    zero, tiny = 0 * theory.loss, 0 * theory.loss + 1e-17
    warn_of_large_errors(theory.assign(loss=tiny, loss_se=tiny), "")
    warn_of_large_errors(theory.assign(loss=zero, loss_se=zero + 1), "")


def test_a_bias_is_uncertain_by_the_scatter_of_networks():
    theory = dmft.lazy_limit(problem(dmft.GradientDescent(0.5, 3)))
    one = 0 * theory.prediction + 1
    found = theory.drop_vars(list(theory.data_vars)).assign(prediction_variance=4 * one, prediction_variance_se=0 * one)
    found.attrs["kind"] = "fluctuations"
    # the bias itself vanishes; networks scatter by 2
    warn_of_large_errors(found.assign(prediction_bias=0.1 * one, prediction_bias_se=0.98 * one), "")
    with pytest.warns(UserWarning, match="prediction_bias reach 1, 51 % of its scale"):
        warn_of_large_errors(found.assign(prediction_bias=0.1 * one, prediction_bias_se=1.02 * one), "")


def test_a_limit_of_two_particles_is_a_guess_and_says_so():
    rich = dmft.Problem(
        dmft.MLP(1, dmft.tanh(), gamma0=2.0), dmft.Task(np.eye(2), [-1, 1]), dmft.GradientDescent(0.5, 3)
    )
    with pytest.warns(UserWarning, match=r"standard errors of \w+ reach .* Raise particles=2, or scrambles=2") as seen:
        dmft.solve(rich, particles=2, scrambles=2)
    assert seen[0].filename == __file__


@pytest.mark.parametrize(("scheme", "within"), [("rosenbrock", 1.5), ("euler", 2.0)])
def test_the_error_of_finite_steps_of_an_exact_flow(scheme, within):
    flow = dmft.GradientFlow(1.0, 0.4, 9, scheme)
    found = dmft.solve(problem(flow), observables=["prediction", "loss"])
    exact = dmft.two_layer_linear(problem(dmft.GradientFlow(1.0, 0.4, 9)))  # which is integrated to 1e-10
    error = float(abs(found.prediction - exact.prediction).max())
    # Richardson's estimate is of the leading order in the step, which is not small here
    assert error / within < found.attrs["step_error"] < error * within
    assert (found.prediction_se == 0).all()


def test_only_exact_flows_know_the_error_of_their_steps():
    assert "step_error" not in dmft.solve(problem(dmft.GradientDescent(0.4, 9)), observables=["prediction"]).attrs


def test_a_wide_table_goes_on_below():
    columns = [["step", "0", "1"], *([f"column {i}", "1.0 +- 0.1", "2.0 +- 0.1"] for i in range(12))]
    parts = table(columns).split("\n\n")
    assert len(parts) == 2
    assert all(len(line) <= WIDEST for part in parts for line in part.splitlines())
    assert all(part.splitlines()[2].startswith("   1") for part in parts)
    assert sum(part.count("column") for part in parts) == 12
    assert table(columns[:1]) == "step\n   0\n   1"
