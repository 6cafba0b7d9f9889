"""Overtraining: the odour task, what is observed of it, and the reversal of labels, in the limit and in networks."""

import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import minimize

import comparisons
import dmft
import finite_nets
from comparisons.overtraining import LEVEL, _margin

pytestmark = pytest.mark.filterwarnings("ignore:standard errors of")  # of few particles

RICH, LAZY = 1.0, 0.02
STEPS = [0, 10, 30, 100]
WANTED = {"save_steps": STEPS, "observables": ["prediction", "feature_kernel"]}
FEW = {"particles": 256, "scrambles": 2, "progress": False}


def task(**options):
    given = {"n_train": 40, "n_test": 10, "odorants": 30, "active": 6, "overlaps": (0, 1, 2), "probes": (3, 4, 5)}
    return dmft.odour_task(**{**given, **options})


def problem(gamma0=RICH, loss="logistic", **network):
    training = dmft.GradientDescent(2.0, STEPS[-1])
    return dmft.Problem(dmft.MLP(1, dmft.relu(), gamma0=gamma0, **network), task(), training, loss=loss)


@pytest.fixture(scope="module")
def limits():
    """The limit and what follows from it, by richness and loss."""
    cases = ((RICH, "logistic"), (LAZY, "logistic"), (RICH, "hinge"))
    found = {case: dmft.solve(problem(*case), **WANTED, **FEW) for case in cases}
    return {case: (theory, comparisons.overtraining(theory, learning_rate=0.02)) for case, theory in found.items()}


# ---- the task --------------------------------------------------------------------------------------------------------


def test_inner_products_count_common_odorants():
    quiet = task(noise=0.0)
    overlap = np.array(quiet.provenance["overlap"])
    common = quiet.x @ quiet.x[overlap == 6][0] / 30
    np.testing.assert_allclose(common, overlap / 6, atol=1e-12)
    np.testing.assert_array_equal(quiet.y, np.where(overlap == 6, 1, -1))
    assert [int((overlap[40:] == m).sum()) for m in (3, 4, 5, 6)] == [10] * 4
    assert (quiet.y_train > 0).sum() == 20
    noisy = task()
    assert abs((noisy.x - quiet.x).std() / (0.15 * 5**0.5) - 1) < 0.05
    assert task() == noisy != task(seed=1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: task(n_train=1), ValueError, "n_train=1 is too small"),
        (lambda: task(probes=(6,)), ValueError, "probes=(6,) must hold overlaps from 0 to 5"),
        (lambda: task(odorants=8), ValueError, "overlaps=(0, 1, 2) must hold overlaps from 4 to 5"),
        (lambda: task(overlaps="12"), TypeError, "overlaps='12' is not a list"),
        (lambda: task(noise=-1), ValueError, "noise=-1 must be at least 0"),
        (lambda: comparisons.reversal(xr.Dataset(attrs={"problem": problem().to_json()})), ValueError, "dmft.reversal_problem"),
        (lambda: dmft.reversal_problem(replace(problem(), training=dmft.GradientFlow(1.0, (1.0,))), after=1, steps=1), ValueError, "take dmft.GradientDescent with one"),
        (lambda: dmft.reversal_problem(dmft.Problem(dmft.MLP(1), dmft.Task(np.eye(2), [0.5, 1.0]), dmft.GradientDescent(1.0, 1)), after=1, steps=1), ValueError, "targets are -1 and +1"),
        (lambda: dmft.reversal_problem(dmft.Problem(dmft.QuadraticPerceptron(1.0, 0.5), dmft.QuadraticTeacher(5, 9), dmft.GradientDescent(1.0, 1)), after=1, steps=1), TypeError, "labels are flipped of a dmft.Task, and the problem has QuadraticTeacher"),
        (lambda: comparisons.overtraining(xr.Dataset()), ValueError, "predictions of one output"),
    ],
)  # fmt: skip
def test_refusals(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


# ---- what is observed ------------------------------------------------------------------------------------------------


def test_margins_of_features():
    """By their definition, a maximum over classifiers, with a general optimiser; without the labels it is another."""
    r = np.random.default_rng(0)
    y = np.array([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    features = r.standard_normal((6, 4)) + 2 * y[:, None]

    def smallest(w):
        return (y * (features @ w)).min() / np.linalg.norm(w)

    constraints = {"type": "ineq", "fun": lambda w: y * (features @ w) - 1}
    found = minimize(lambda w: w @ w, np.ones(4), jac=lambda w: 2 * w, constraints=constraints, options={"ftol": 1e-14})
    size = np.sqrt((features**2).sum(1).mean())
    margin = _margin(features @ features.T, y)
    np.testing.assert_allclose(margin, smallest(found.x) / size, rtol=1e-5)
    assert abs(_margin(features @ features.T, np.roll(y, 1)) / margin - 1) > 0.2


def test_quantities_by_their_definitions(limits):
    theory, found = limits[RICH, "logistic"]
    f, y = theory["prediction"].values[2], problem().task.y
    overlap = np.array(problem().task.provenance["overlap"])
    assert found["margin"][2] == (y * f)[:40].min()
    T, P = f[40:][y[40:] > 0], f[40:][y[40:] < 0]
    np.testing.assert_allclose(found["fisher"][2], (T.mean() - P.mean()) ** 2 / (T.var() + P.var()))
    assert found["probe_accuracy"].dims == ("overlap", "step")
    assert found["probe_accuracy"].sel(overlap=4)[2] == (f[40:][overlap[40:] == 4] < 0).mean()
    phi = theory["feature_kernel"].values[0, 2][:40, :40]
    centre = np.eye(40) - 1 / 40
    similar = (centre @ phi @ centre)[np.ix_(y[:40] > 0, y[:40] < 0)].mean() / (np.trace(centre @ phi @ centre) / 40)
    np.testing.assert_allclose(found["cosine"][2], similar)
    assert found["cosine"].attrs["long_name"]


def test_predictions_that_are_no_numbers_are_no_successes(limits):
    theory, found = limits[RICH, "logistic"]
    gone = theory[["prediction"]].copy()
    gone["prediction"] = gone["prediction"].where(gone["sample"] != 3)
    told = comparisons.overtraining(gone, learning_rate=0.02)
    np.testing.assert_allclose(told["train_error"][-1], 1 / 40)
    assert found["train_error"][-1] == 0


def test_relearning_is_training_of_a_new_readout():
    """Steps of networks with frozen features whose readouts start at zero; labels and flipped labels are alike then."""
    random = replace(problem(frozen=(0,), weight_variance=(1.0, 0.0)), training=dmft.GradientDescent(0.2, 100))
    wanted = {"widths": [64], "seeds": 2, "dtype": "float64", "device": "cpu", "progress": False}
    nets = finite_nets.train_ensemble(random, observables=["prediction", "feature_kernel"], **wanted)
    learned = (nets["prediction"].values[0][..., :40] * random.task.y_train > 0).mean(-1) >= 0.85
    found = comparisons.overtraining(nets, level=0.85, margins=False)["relearning_steps"].values[0]
    assert learned.any(-1).all()
    np.testing.assert_array_equal(found[:, 0], learned.argmax(-1))
    slow = comparisons.overtraining(nets, learning_rate=0.1, level=0.85, margins=False)["relearning_steps"].values[0]
    assert slow[:, 0].max() > 1.5 * found[:, 0].max()


def test_overtraining_goes_on_where_networks_are_rich_and_losses_have_tails(limits):
    rich, lazy, hinge = (found for _, found in limits.values())
    late = rich["train_error"][1:] == 0
    assert late[-3:].all()
    assert (np.diff(rich["margin"][1:]) > 0).all()
    for name, sign in (("feature_margin", 1), ("cosine", -1), ("feature_alignment", 1)):
        change = {
            k: sign * float(v[name][-1] - v[name][2]) for k, v in (("rich", rich), ("lazy", lazy), ("hinge", hinge))
        }
        start = abs(float(rich[name][0]))
        assert change["rich"] > 0.03 * start, name
        assert abs(change["lazy"]) < 0.02 * start, name
        assert abs(change["hinge"]) < 1e-9, name  # the gradient is exactly zero
    rich_steps, lazy_steps, hinge_steps = (found["relearning_steps"].values for found in (rich, lazy, hinge))
    assert rich_steps[-1] < 0.2 * rich_steps[0]
    assert abs(lazy_steps[-1] / lazy_steps[0] - 1) < 0.1
    assert hinge_steps[-1] == hinge_steps[-2]
    assert rich["probe_accuracy"].mean("overlap")[-1] > rich["probe_accuracy"].mean("overlap")[1]
    assert (np.diff(rich["probe_accuracy"].isel(step=-1)) <= 0).all()  # the closer, the later


def test_networks_do_the_same(limits):
    theory, found = limits[RICH, "logistic"]
    nets = finite_nets.train_ensemble(problem(), widths=[256], seeds=6, device="cpu", progress=False, **WANTED)
    of_nets = comparisons.overtraining(nets)
    assert of_nets["probe_accuracy"].dims == ("width", "seed", "overlap", "step")
    lazy = limits[LAZY, "logistic"][1]
    for name in ("margin", "cosine", "feature_alignment", "feature_margin"):
        x = of_nets[name].values[0]
        bound = 5 * x.std(0) / len(x) ** 0.5 + 0.02 * abs(found[name].values)  # corrections of 1/N
        assert (abs(x.mean(0) - found[name].values) < bound + 1e-6).all(), name
        assert abs(x.mean(0) - lazy[name].values)[-1] > 2 * bound[-1], name
    off = nets["prediction"].mean(("width", "seed")) - theory["prediction"]
    assert abs(off).mean("sample").max() < 0.03 * abs(theory["prediction"]).max()


# ---- reversal --------------------------------------------------------------------------------------------------------


def test_reversal_is_training_that_goes_on(limits):
    theory, _ = limits[RICH, "logistic"]
    flipped = dmft.reversal_problem(problem(), after=30, steps=60)
    result = dmft.solve(flipped, observables=["prediction"], **FEW)
    before = result["prediction"].sel(step=30).values
    np.testing.assert_allclose(before[:40], theory["prediction"].sel(step=30)[:40], atol=0.02)
    np.testing.assert_allclose(before[:40], before[40:80])  # the same inputs
    with pytest.raises(ValueError, match=r"give comparisons\.reversal this one"):
        comparisons.overtraining(result)
    found = comparisons.reversal(result)
    assert found["accuracy"].values[0] == 0
    steps = found["reversal_steps"].item()
    assert 0 < steps < 60
    assert found["accuracy"].sel(step=30 + steps) >= LEVEL > found["accuracy"].sel(step=29 + steps)
    nets = finite_nets.train_ensemble(flipped, widths=[256], seeds=4, observables=["prediction"], progress=False)
    measured = comparisons.reversal(nets)["reversal_steps"].values[0]
    assert abs(measured.mean() - steps) < 1 + 5 * measured.std() / 4**0.5
    # labels that are never flipped stay learned
    assert (theory["prediction"].sel(step=100)[:40] * problem().task.y_train > 0).all()
    overlap = problem().task.provenance["overlap"]
    assert flipped.task.provenance["overlap"] == [*overlap[:40], *overlap]


@pytest.mark.slow
def test_a_kept_readout_has_more_to_unlearn():
    """Full size of the independent program: 400 samples, width 200, its richness .3 / sqrt(200) and 5 / sqrt(200)."""
    data = dmft.odour_task()
    for alpha, rich in ((0.3, True), (5.0, False)):
        network = dmft.MLP(1, dmft.relu(), gamma0=1 / (alpha * 200**0.5))
        described = dmft.Problem(network, data, dmft.GradientDescent(2.0, 3000), loss="logistic")
        wanted = {"widths": [200], "seeds": 2, "progress": False}
        nets = finite_nets.train_ensemble(
            described, save_steps=[0, 100, 300, 1000, 3000], observables=["prediction", "feature_kernel"], **wanted
        )
        reset = comparisons.overtraining(nets, learning_rate=0.2)
        kept = []
        for after in (100, 300, 1000):
            flipped = finite_nets.train_ensemble(
                dmft.reversal_problem(described, after=after, steps=200), observables=["prediction"], **wanted
            )
            kept.append(comparisons.reversal(flipped)["reversal_steps"].mean().item())
        relearning = reset["relearning_steps"].mean(("width", "seed")).values
        print(alpha, "reset", relearning, "kept", kept)
        for name in ("cosine", "feature_alignment", "feature_margin", "fisher"):
            print(name, reset[name].mean(("width", "seed")).values.round(4))
        print(reset["probe_accuracy"].mean(("width", "seed")).values.round(2))
        assert kept[-1] > kept[0]
        if rich:
            assert relearning[-1] < 0.5 * relearning[1]
        else:
            assert abs(relearning[-1] / relearning[1] - 1) < 0.1
