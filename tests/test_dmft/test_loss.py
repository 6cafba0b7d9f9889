"""Losses of outputs at several positions: their derivatives, and the sum over positions."""

import numpy as np
import pytest

from dmft.specs import loss

RNG = np.random.default_rng(0)
F = RNG.standard_normal((5, 6))  # two outputs at three positions
TARGETS = {
    "squared": RNG.standard_normal((5, 6)),
    "logistic": RNG.choice([-1.0, 1.0], (5, 6)),
    "cross_entropy": np.eye(2)[RNG.integers(0, 2, (5, 3))].reshape(5, 6),
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_loss_of_positions_is_a_sum_and_its_derivatives_are_those(name):
    y, several = TARGETS[name], loss.of_positions(name, 3)
    each = [loss.values(np, name, F[:, i : i + 2], y[:, i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_allclose(loss.values(np, several, F, y), sum(each), rtol=1e-13)
    h = 1e-6
    shifted = [(F + h * e, F - h * e) for e in np.eye(6)]
    slopes = [(loss.values(np, several, a, y) - loss.values(np, several, b, y)) / (2 * h) for a, b in shifted]
    np.testing.assert_allclose(loss.descent(np, several, F, y), -np.stack(slopes, -1), atol=1e-8)
    bends = [(loss.descent(np, several, b, y) - loss.descent(np, several, a, y)) / (2 * h) for a, b in shifted]
    np.testing.assert_allclose(loss.curvature(np, several, F, y), np.stack(bends, -1), atol=1e-8)
    if name == "cross_entropy":  # of all outputs together it is another
        assert abs(loss.values(np, name, F, y) - sum(each)).max() > 0.1


def test_targets_are_classes_at_every_position():
    y = TARGETS["cross_entropy"]
    assert loss.of_classes("cross_entropy/3", y)
    assert not loss.of_classes("cross_entropy", y)
    loss.check_targets("cross_entropy/3", y)
    with pytest.raises(ValueError, match=r"loss='cross_entropy', of each of 3 positions, needs targets"):
        loss.check_targets("cross_entropy/3", 2 * y)
    right = (F.reshape(5, 3, 2).argmax(-1) == y.reshape(5, 3, 2).argmax(-1)).mean(1)
    np.testing.assert_allclose(loss.correct(np, "cross_entropy/3", F, y), right)
