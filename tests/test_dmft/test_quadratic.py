"""The quadratic perceptron: closed moments against explicit networks, its losses, and when it generalises."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import comparisons
import dmft
import finite_nets
from dmft.errors import DivergenceError, MemoryEstimateError
from dmft.random_data import quadratic
from finite_nets.quadratic import WEIGHTS

STEPS = 60
ONCE = np.array([0, 7, STEPS])


def problem(data=None, training=None, **network):
    given = {"gamma0": 0.5, "curvature": 0.5, **network}
    data = dmft.QuadraticTeacher(dimension=8, samples=30) if data is None else data
    training = dmft.GradientDescent(3.0, STEPS) if training is None else training
    return dmft.Problem(dmft.QuadraticPerceptron(**given), data, training)


def any_data():
    """Data that no teacher made."""
    r = np.random.default_rng(2)
    return dmft.Task(r.standard_normal((20, 8)), r.standard_normal(20), r.standard_normal((5, 8)), r.standard_normal(5))


def weights(width, dimension=8):
    """Those of the member with seed index 0."""
    from finite_nets.ensembles.simulated import Draws

    return Draws(torch.tensor([0]), 0, width, torch.float64)(WEIGHTS, width, dimension)[0].numpy()


HEAVY = dmft.GradientDescent(0.5, STEPS, momentum=0.8, weight_decay=0.01)
CASES = {
    "teacher": problem(),
    "momentum and decay": problem(training=HEAVY, centered=False),
    "population": problem(dmft.QuadraticTeacher(8)),
    "any data": problem(any_data(), replace(HEAVY, learning_rate=0.2)),
}


@pytest.mark.parametrize("case", CASES)
def test_two_moments_are_all_of_a_network(case):
    described = CASES[case]
    nets = finite_nets.train_ensemble(described, widths=[12], seeds=1, dtype="float64", device="cpu", save_steps=ONCE)
    closed = quadratic.march_quadratic(described, steps=ONCE, start=quadratic.moments(weights(12))).values
    assert nets["loss"][0, 0, -1] < 0.5 * nets["loss"][0, 0, 0]  # it learns
    for name, value in closed.items():
        np.testing.assert_allclose(nets[name].values[0, 0], value, atol=1e-12, err_msg=name)  # rounding
    wrong = quadratic.march_quadratic(described, steps=ONCE).values  # of infinitely many neurons
    assert abs(wrong["loss"][1:] / nets["loss"].values[0, 0, 1:] - 1).max() > 1e-3


def test_networks_follow_the_gradient_of_their_loss():
    """The first step is -eta gamma0^2 N dloss/dw by automatic differentiation of plain code."""
    described = problem(any_data(), dmft.GradientDescent(0.7, 1), centered=False)
    task, model, N = described.task, described.network, 12

    def losses(w):
        h = torch.as_tensor(task.x) @ w.T / 8**0.5
        r = torch.as_tensor(task.y) - (h + model.curvature / 2 * h**2).sum(-1) / (model.gamma0 * N)
        return (r[:20] ** 2).mean() / 2, (r[20:] ** 2).mean() / 2

    w = torch.tensor(weights(N), requires_grad=True)
    (gradient,) = torch.autograd.grad(losses(w)[0], w)
    after = w.detach() - 0.7 * model.gamma0**2 * N * gradient
    nets = finite_nets.train_ensemble(described, widths=[N], seeds=1, dtype="float64", device="cpu")
    for i, at in enumerate((w.detach(), after)):
        for name, value in zip(("loss", "test_loss"), losses(at), strict=True):
            np.testing.assert_allclose(nets[name].values[0, 0, i], value, rtol=1e-12)
    assert (
        abs(losses(w.detach() - 0.5 * 0.7 * model.gamma0**2 * N * gradient)[0] / nets["loss"].values[0, 0, 1] - 1)
        > 1e-3
    )


def test_population_averages_by_monte_carlo():
    """(6) and (7), of error matrices as they come, against many draws of x; a wrong factor is seen."""
    r = np.random.default_rng(3)
    D, n = 4, 4 * 10**5
    a, A = r.standard_normal(D), r.standard_normal((D, D))
    A = A + A.T + np.eye(D)
    x = r.standard_normal((n, D)) / D**0.5
    error = ((x @ A) * x).sum(1) / 2 - x @ a
    squares = error**2 / 2
    se = squares.std() / n**0.5
    losses = quadratic.losses_of_teacher(a, A)
    assert abs(squares.mean() - losses["test_loss"]) < 5 * se
    assert all(losses[part] > 20 * se for part in quadratic.PARTS)  # each would be missed
    b1, B1 = quadratic.descent_of_population(a, A)
    for found, samples in ((b1, error[:, None] * x), (B1, error[:, None, None] * x[:, :, None] * x[:, None, :])):
        assert (abs(samples.mean(0) - found) < 5 * samples.std(0) / n**0.5).all()
        assert (abs(samples.mean(0) - 2 * found) > 5 * samples.std(0) / n**0.5).any()


def test_wide_networks_are_the_limit():
    described = problem()
    nets = finite_nets.train_ensemble(described, widths=[100, 400], seeds=20, save_steps=ONCE, device="cpu")
    theory = dmft.solve(described, save_steps=ONCE)
    compared = comparisons.compare(theory, nets)
    assert abs(compared["test_loss_deviation"].sel(width=400, step=STEPS)) < 0.02 * theory["test_loss"][-1]
    for name in ("offset_error", "misalignment", "linear_power", "ntk_change"):
        x = nets[name].sel(width=400).values
        bound = 5 * x.std(0) / x.shape[0] ** 0.5 + 0.03 * theory[name].values
        assert (abs(x.mean(0) - theory[name].values) <= bound + 1e-7).all(), name  # corrections D / N, and float32
    lazier = dmft.solve(problem(gamma0=0.4), save_steps=ONCE)
    x = nets["ntk_change"].sel(width=400).values[:, -1]
    assert abs(x.mean() - lazier["ntk_change"][-1]) > 10 * x.std() / len(x) ** 0.5


@pytest.mark.parametrize("xp", [np.float64, np.float32, torch.float32])
def test_targets_that_do_not_vary_have_no_alignment(xp):
    """A zero over a zero, in single precision too."""
    kernel, y = np.diag([1e-6, 3e-6, 2e-6]), np.ones(3)
    made = torch.tensor if xp is torch.float32 else np.array
    kernel, constant, other = (made(a, dtype=xp) for a in (kernel, y, np.arange(3.0)))
    assert float(quadratic.target_alignment(kernel, constant)) == 0
    assert 0.1 < float(quadratic.target_alignment(kernel, other)) < 1


def test_predictions_of_tasks():
    described = CASES["any data"]
    theory = dmft.solve(described)
    f, y = theory["prediction"], described.task.y
    assert theory["prediction"].dims == ("step", "sample")
    np.testing.assert_allclose(theory["loss"], ((f - y) ** 2)[:, :20].mean("sample") / 2)
    np.testing.assert_allclose(theory["test_loss"], ((f - y) ** 2)[:, 20:].mean("sample") / 2)
    assert "offset_error" not in theory


def lazy_and_rich(**data):
    """Delay and final test loss against laziness, at a size that takes a second."""
    described = problem(dmft.QuadraticTeacher(20, 110), dmft.GradientDescent(10.0, 1500), curvature=0.25, **data)
    saved = np.unique(np.geomspace(1, 1500, 60).astype(int))
    problems = dmft.vary(described, gamma0=[4.0, 1.0, 0.25])
    results = dmft.stack([dmft.solve(each, save_steps=saved) for each in problems], "gamma0")
    return results, comparisons.grokking(results, threshold=0.025)


def test_laziness_delays_generalisation():
    results, found = lazy_and_rich()
    assert found["delay"].dims == ("gamma0",)
    rich, _, lazy = found["delay"].values
    assert 1 < rich < 0.7 * lazy or np.isnan(lazy)
    assert (np.diff(found["last_test_loss"]) > 0).all()
    assert (np.diff(results["ntk_change"].isel(step=-1)) < 0).all()
    assert (results["target_alignment"].isel(step=-1) > results["target_alignment"].isel(step=0)).all()
    # a result that never falls below has no time
    never = comparisons.grokking(results, threshold=1e-9)
    assert np.isnan(never["test_time"]).all()
    assert found.attrs["analysis"] == "grokking"
    assert found["delay"].attrs["long_name"]


# ---- the sweeps of arXiv:2310.06110, slow -----------------------------------------------------------------------------


def drawn(dimension, samples):
    """The data with which the numbers below were found first, by independent code: one generator for all of them."""
    r = np.random.default_rng(0)
    data = dmft.QuadraticTeacher(dimension, samples)
    x, b = r.standard_normal((samples, dimension)), r.standard_normal(dimension)
    vars(data).update(x=x, direction=b * (dimension**0.5 / np.linalg.norm(b)))
    return data


def swept(values, data, *, eta, curvature=0.25, alpha=None, steps=20_000):
    """Results and `grokking` at a mean square of .05, of laziness alpha or, at one of these, of curvatures."""
    saved = np.unique(np.concatenate([[0], np.geomspace(1, steps, 200).astype(int)]))
    results = {}
    for value in values:
        network = dmft.QuadraticPerceptron(
            1 / (value if alpha is None else alpha), curvature if alpha is None else value
        )
        described = dmft.Problem(network, data, dmft.GradientDescent(eta, steps))
        results[value] = dmft.solve(described, save_steps=saved)
    stacked = dmft.stack(results, "value")
    return stacked, comparisons.grokking(stacked, threshold=0.025)


@pytest.mark.slow
def test_laziness_at_many_samples():
    _, found = swept([0.1, 0.25, 0.5, 1.0, 2.0], drawn(50, 450), eta=10.0)
    print("delay", found["delay"].values, "final", 2 * found["last_test_loss"].values)
    np.testing.assert_allclose(found["delay"], [2.0, 2.1, 2.3, 2.8, 3.8], rtol=0.06)  # of the recorded steps
    np.testing.assert_allclose(2 * found["last_test_loss"], [0.0001, 0.0006, 0.0019, 0.0060, 0.0179], rtol=0.3)


@pytest.mark.slow
def test_laziness_at_few_samples_ends_at_the_plateau_of_kernels():
    stacked, found = swept([0.25, 0.5, 2.0, 8.0, 32.0, 128.0], drawn(50, 250), eta=12.0)
    print("delay", found["delay"].values, "final", 2 * found["last_test_loss"].values)
    print("change of the NTK", stacked["ntk_change"].isel(step=-1).values)
    np.testing.assert_allclose(found["delay"][:2], [11.5, 18.1], rtol=0.06)
    np.testing.assert_allclose(2 * found["last_test_loss"][1:], [0.028, 0.129, 0.303, 0.422, 0.470], rtol=0.03)
    np.testing.assert_allclose(stacked["ntk_change"][1:, -1], [0.57, 0.13, 0.03, 0.01, 0.00], atol=0.006)


@pytest.mark.slow
def test_worse_alignment_ends_better():
    _, found = swept([0.1, 0.25, 0.5, 1.0], drawn(50, 250), eta=4.0, alpha=0.5, steps=8000)
    print("final", 2 * found["last_test_loss"].values)
    np.testing.assert_allclose(2 * found["last_test_loss"], [0.015, 0.028, 0.065, 0.126], rtol=0.08)


@pytest.mark.slow
def test_only_many_samples_generalise():
    ends = []
    for samples in (50, 120, 500):
        _, found = swept([0.5], drawn(40, samples), eta=4.0, curvature=0.5, steps=5000)
        ends.append(2 * found["last_test_loss"].item())
    print("final", ends, "delay", found["delay"].values)
    np.testing.assert_allclose(ends[:2], [0.69, 0.42], rtol=0.3)  # of another draw of the data
    assert ends[2] < 0.003
    np.testing.assert_allclose(found["delay"], 2.0, rtol=0.15)


@pytest.mark.slow
def test_a_peak_of_linear_power_comes_first():
    """Figure 1 of the paper, at 20 times its rate."""
    data, steps = drawn(100, 550), np.arange(0, 5001, 25)
    described = dmft.Problem(dmft.QuadraticPerceptron(1.0, 0.02), data, dmft.GradientDescent(40.0, 5000))
    found = dmft.solve(described, save_steps=steps)
    mse, peak = 2 * found["test_loss"].values, int(found["test_loss"].values.argmax())
    trained = int((found["loss"].values < 0.021 / 2).argmax())
    weights = np.random.default_rng(1).standard_normal((500, 100))
    finite = quadratic.march_quadratic(described, steps=np.array([0, 5000]), start=quadratic.moments(weights)).values
    measured = [
        mse[0],
        mse[peak],
        2 * found["linear_power"].values[peak],
        mse[trained],
        mse[-1],
        2 * finite["test_loss"][-1],
    ]
    print(measured, 2 * found["loss"].values[-1])
    np.testing.assert_allclose(measured, [0.75, 0.90, 0.15, 0.305, 0.062, 0.0618], rtol=0.1)
    np.testing.assert_allclose(2 * found["loss"][-1], 1.3e-3, rtol=0.05)


def test_grokking_of_networks_and_what_it_lacks():
    nets = finite_nets.train_ensemble(problem(), widths=[20, 40], seeds=3, device="cpu")
    assert comparisons.grokking(nets, 0.2)["train_time"].dims == ("width", "seed")
    with pytest.raises(ValueError, match="lack test_loss; give a task with test samples"):
        comparisons.grokking(nets.drop_vars("test_loss"), 0.2)
    with pytest.raises(ValueError, match="threshold=0 must be positive"):
        comparisons.grokking(nets, 0)


def test_description_and_files(tmp_path):
    described = problem()
    assert dmft.Problem.from_json(described.to_json()) == described
    others = [problem(dmft.QuadraticTeacher(8, 30, seed=1)), problem(dmft.QuadraticTeacher(8)), problem(gamma0=1.0)]
    assert len({one.problem_id for one in (described, *others)}) == 4
    few, many = dmft.QuadraticTeacher(8, 10), dmft.QuadraticTeacher(8, 30)
    np.testing.assert_array_equal(few.x, many.x[:10])
    assert few != many
    result = dmft.solve(described, save_steps=ONCE)
    dmft.save(result, tmp_path / "result.nc")
    assert dmft.load(tmp_path / "result.nc").identical(result)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dmft.QuadraticTeacher(0), ValueError, "dimension=0 is too small"),
        (lambda: dmft.QuadraticTeacher(5, samples=0), ValueError, "samples=0 is too small"),
        (lambda: dmft.QuadraticPerceptron(gamma0=0), ValueError, "gamma0=0 must be positive"),
        (lambda: dmft.QuadraticPerceptron(centered=1), TypeError, "centered=1 must be True or False"),
        (lambda: problem(dmft.RandomData(dmft.random_data.isotropic(8))), TypeError, "expected e.g. dmft.QuadraticTeacher"),
        (lambda: dmft.Problem(dmft.MLP(1), dmft.QuadraticTeacher(8, 9), HEAVY), TypeError, "does not go with random data"),
        (lambda: problem(training=dmft.GradientFlow(1.0, (1.0,))), ValueError, "take dmft.GradientDescent with a small"),
        (lambda: problem(training=dmft.GradientDescent(1.0, 1, batches=((0,),))), ValueError, "leave out batches"),
        (lambda: problem(training=dmft.Adam(0.1, 5)), ValueError, "quadratic perceptrons"),
        (lambda: problem(dmft.Task(np.eye(2), np.eye(2))), ValueError, "targets have 2 outputs"),
        (lambda: dmft.solve(problem(), two_time=True), ValueError, "leave them out"),
        (lambda: dmft.fluctuations(problem()), ValueError, "widths=[100, 1000]"),
        (lambda: dmft.solve(problem(training=dmft.GradientDescent(1e3, 90))), DivergenceError, "Lower learning_rate=1000"),
        (lambda: finite_nets.train_ensemble(problem(), widths=[99], seeds=2, memory_limit=10**4), MemoryEstimateError, "width 99"),
        (lambda: quadratic.march_quadratic(problem(), start=quadratic.of_infinitely_many(3)), ValueError, "start has a mean of shape (3,)"),
    ],
)  # fmt: skip
def test_refusals(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
