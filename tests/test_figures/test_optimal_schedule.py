"""The figure of an optimal schedule: better than every constant rate in the limit, and drawn as it is."""

import numpy as np
import pytest

import dmft
from figures import optimal_schedule


@pytest.fixture(scope="module")
def found():
    """Of linear networks, whose limit takes no particles."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 6)), np.sign(rng.standard_normal(4))
    begin = dmft.Problem(dmft.MLP(1, dmft.linear()), dmft.Task(x, y), dmft.GradientDescent(0.3, 4))
    return optimal_schedule.make(begin, rates=(0.8, 1.2, 1.6), widths=(64, 512), seeds=128, bounds=(0.05, 2.0))


def test_a_schedule_is_better_than_every_constant_rate_in_the_limit_and_at_finite_width(found):
    constant, schedule = (found.sel(training=name) for name in optimal_schedule.TRAININGS)
    assert len(set(constant["learning_rate"].values)) == 1
    assert found["rate_loss"].min() >= constant["loss_limit"][-1] * (1 - 1e-6) > 1.2 * schedule["loss_limit"][-1]
    wide = found.sel(width=512).isel(time=-1)
    assert wide["loss_mean"][1] + 3 * wide["loss_mean_se"][1] < wide["loss_mean"][0]
    error = 4 * wide["loss_mean_se"] + 0.1 * abs(wide["last_loss_predicted"] - wide["loss_limit"])  # and 1 / N^2
    assert (abs(wide["loss_mean"] - wide["last_loss_predicted"]) < error).all()
    assert (abs(wide["loss_mean"] - wide["loss_limit"]) > error).any()  # the limit alone is not enough


def test_what_is_drawn_are_these_numbers(found):
    rates, swept, course, widths = optimal_schedule.figure(found).axes
    for ax, values in (
        (rates, found["learning_rate"]),
        (course, found["loss_limit"]),
        (widths, found["last_loss_predicted"]),
    ):
        drawn = [line.get_ydata() for line in ax.lines]
        assert all(any(np.array_equal(y, row) for y in drawn) for row in values)
    assert any(np.array_equal(line.get_ydata(), found["rate_loss"]) for line in swept.lines)
    with pytest.raises(ValueError, match=r"figures\.optimal_schedule\.make\(problem\)"):
        optimal_schedule.figure(found.drop_vars("rate_loss"))
