"""Observables as objects: what may be one, how each reaches results, and that its formula is the one that is recorded."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import comparisons
import dmft
import finite_nets
from dmft import schema
from dmft.errors import StoreError
from dmft.running.checkpoint import Checkpoint
from dmft.schema import labels, registry
from dmft.schema.observable import DIMS

OWN = ("prediction", "feature_kernel", "preactivation_kernel", "participation_ratio")


def some_problem(activation=None, outputs=None, gamma0=1.0, network=None, **training):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((5, 4)), rng.standard_normal((5, outputs or 1))
    y = y if outputs else y[:, 0]
    network = network or dmft.MLP(2, activation=activation or dmft.tanh(), gamma0=gamma0)
    task = dmft.Task(x[:3], y[:3], x[3:], y[3:])
    return dmft.Problem(network, task, dmft.GradientDescent(0.3, 3, **training))


def participation(kernel):
    """(tr K)^2 / tr K^2 over the last two axes."""
    return np.trace(kernel, axis1=-2, axis2=-1) ** 2 / (kernel**2).sum((-1, -2))


@pytest.fixture
def own():
    """Registers observables of one's own for one test."""
    before = dict(registry._registered)
    yield dmft.observable
    registry._registered.clear()
    registry._registered.update(before)
    registry.registered.cache_clear()


def aligned(seen):
    """Alignment of the last feature kernel with the targets it is trained on."""
    K = seen["feature_kernel"][..., -1, seen.train, seen.train]
    y = seen.targets[seen.train]
    target = y @ y.T
    return (K * target).sum((-2, -1)) / ((K * K).sum((-2, -1)) * (target * target).sum()) ** 0.5


def expected_alignment(kernel, y):
    kernel, target = kernel[:, :3, :3], np.outer(y, y)
    return (kernel * target).sum((-2, -1)) / np.sqrt((kernel**2).sum((-2, -1)) * (target**2).sum())


@pytest.fixture(scope="module")
def linear_limit():
    return dmft.solve(some_problem(dmft.linear()), observables=OWN)


# ---- the registry ----------------------------------------------------------------------------------------------------


def test_results_hold_observables_in_one_order_and_by_default_what_they_held_before_there_was_a_registry():
    new = ("participation_ratio", "preactiv", "attention", "preconditioned")
    kept = [name for name in schema.quantities() if not any(word in name for word in new)]
    assert kept == [
        *("prediction", "loss", "test_loss", "accuracy", "test_accuracy", "sharpness"),
        *("feature_kernel", "gradient_kernel", "ntk", "feature_kernel_two_time", "gradient_kernel_two_time"),
    ]
    assert schema.OBSERVABLES == ("prediction", "loss", "feature_kernel", "gradient_kernel", "ntk")
    assert schema.observables(None, some_problem(outputs=2), "dmft.solve") == ("prediction", "loss", "feature_kernel")
    files = {path.stem for path in (Path(schema.__file__).parent / "observed").glob("*.py")}
    assert files - {"__init__"} == {one.name for one in schema.registered()}


@pytest.mark.parametrize(
    ("described", "error"),
    [
        ({"name": "loss_mean", "dims": ("step",)}, "'loss_mean' of an observable is taken"),
        ({"name": "ntk", "dims": ("step",)}, "'ntk' of an observable is taken"),
        ({"name": "test_loss", "dims": ("step",)}, "'test_loss' of an observable is taken"),
        ({"name": "width", "dims": ("step",)}, "'width' of an observable is taken"),
        ({"name": "target", "dims": ("step",)}, "'target' of an observable is taken"),
        ({"name": "my_se", "dims": ("step",)}, "must be a word"),
        ({"name": "two words", "dims": ("step",)}, "must be a word"),
        ({"name": "mine", "dims": ("layer",)}, "step among them"),
        ({"name": "mine", "dims": ("step", "layer")}, "in this order"),
        ({"name": "mine", "dims": ("step",), "needs": "a miracle"}, "needs='a miracle' of mine is unknown"),
        ({"name": "mine", "dims": ("layer", "step"), "needs": "predictions"}, "what needs 'predictions' is"),
        ({"name": "mine", "dims": ("layer", "step"), "needs": "hessian"}, "what needs 'hessian' is"),
    ],
)
def test_what_is_no_observable_is_refused_with_a_reason(described, error, own):
    with pytest.raises(ValueError, match=error):
        own(**described)(lambda seen: seen)
    assert "mine" not in schema.quantities()
    own(name="mine", dims=("step",))(lambda seen: seen)
    assert labels.long_name("mine_variance_se").endswith("standard error")


def test_two_names_of_ones_own_may_not_be_read_into_each_other(own):
    own(name="kernel_alignment", dims=("step",))(aligned)
    with pytest.raises(ValueError, match="'kernel' of an observable would be read into 'kernel_alignment'"):
        own(name="kernel", dims=("step",))(aligned)


def test_dimensions_of_every_kind_follow_from_those_of_the_observable(own):
    one = own(name="mine", dims=("layer", "step", "sample"), per_output=True)(lambda seen: seen)
    assert schema.dims("limit", "mine_se", outputs=True) == ("layer", "step", "sample", "output")
    assert schema.dims("moments", "mine_m2") == ("width", "block", "layer", "step", "sample")
    assert schema.dims("comparison", "mine_error") == ("width", "layer", "step")
    assert schema.dims("fluctuations", "mine_variance_by_layer") == ("source_layer", "layer", "step", "sample")
    assert one.dims_with(False) == one.dims == tuple(dim for dim in DIMS if dim in one.dims)
    with pytest.raises(schema.SchemaError, match="known once its module is imported"):
        schema.dims("limit", "yours")
    with pytest.raises(schema.SchemaError, match="import the module that makes them"):
        schema.require_known(["mine", "yours"])


# ---- what formulas are known by -------------------------------------------------------------------------------------


def twice_aligned(seen):
    return 2 * aligned(seen)


def above(factor):
    """A formula of a sample, of predictions."""
    return lambda xp, loss, f, y: xp.where(f > factor * y, 1.0, 0.0).sum(-1)


@pytest.mark.parametrize("outputs", [None, 2])
def test_a_formula_is_known_by_its_numbers_alike_for_both_array_libraries(own, outputs):
    problem = some_problem(outputs=outputs)
    described = {"dims": ("step",), "name": "mine"}

    def digest(formula, xp=np, **more):
        own(**described | more)(formula)
        with jax.enable_x64(True):
            (found,) = schema.digests(["mine", "loss"], problem, xp).values()
        return found

    gradients = {"needs": "backward", "dims": ("step", "sample", "sample_2"), "per_output": True}
    found = [digest(aligned), digest(twice_aligned), digest(above(1.0), needs="predictions", smooth=False)]
    found += [digest(above(1.1), needs="predictions", smooth=False)]
    found += [
        digest(lambda seen, a=a: a * seen["ntk"] + seen["gradient_kernel"][..., 1, :, :], **gradients)
        for a in (1, 1.01)
    ]
    assert len({*found}) == len(found)
    assert digest(lambda seen: aligned(seen)) == digest(aligned, jnp) == digest(aligned, torch) == found[0]
    assert schema.digests(["loss", "feature_kernel"], problem, np) == {}
    with pytest.raises(ValueError, match="formula of mine fails for an example.*IndexError"):
        digest(lambda seen: seen["feature_kernel"][..., 7, 0, 0])


def test_formulas_of_what_a_program_shows_are_known_too(own):
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    problem = dmft.Problem(dmft.Transformer(1, head_dim=1), dmft.Task(x, x[:, 0, 0]), dmft.GradientDescent(0.3, 2))

    def digest(power):
        own(name="mine", dims=("step",))(lambda seen: seen.averages("attention", lambda a: a**power).sum())
        return schema.digests(["mine"], problem, np)["mine"]

    assert digest(2) == digest(2) != digest(3)


def test_an_edited_formula_does_not_go_on_from_a_checkpoint(own, monkeypatch, tmp_path):
    asked = {"particles": 64, "scrambles": 2, "observables": ["mine"], "checkpoint": tmp_path / "state.npz"}
    problem, finished = some_problem(network=dmft.MLP(1)), Checkpoint.finished

    def interrupted(self):
        finished(self)
        raise KeyboardInterrupt

    own(dims=("step",), name="mine")(aligned)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "finished", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dmft.solve(problem, **asked)
    own(dims=("step",), name="mine")(twice_aligned)
    with pytest.raises(ValueError, match="of another computation .formula of mine: .* there, .* here"):
        dmft.solve(problem, **asked)
    own(dims=("step",), name="mine")(lambda seen: aligned(seen))  # the same numbers
    found = dmft.solve(problem, **asked)
    np.testing.assert_array_equal(found.mine, dmft.solve(problem, **asked).mine)


def test_an_edited_formula_does_not_go_on_in_a_store(own, tmp_path):
    asked = {"widths": [4], "seeds": 2, "store": tmp_path / "store", "observables": ["loss", "mine"]}
    problem = some_problem()
    own(dims=("step",), name="mine")(aligned)
    plan = finite_nets.plan_sweep(problem, **asked)
    finite_nets.sweep(problem, **asked)
    own(dims=("step",), name="mine")(lambda seen: aligned(seen))  # the same numbers
    finite_nets.sweep(problem, **asked | {"seeds": 4})
    own(dims=("step",), name="mine")(twice_aligned)
    with pytest.raises(StoreError, match="formulas="):
        finite_nets.sweep(problem, **asked | {"seeds": 6})
    with pytest.raises(ValueError, match="the formulas of observables have changed since the sweep was planned: mine"):
        plan.works[0].settings.require_formulas(problem)


# ---- formulas --------------------------------------------------------------------------------------------------------


def test_on_request_the_limit_and_networks_record_what_the_formula_makes_of_their_kernels(linear_limit):
    problem, theory = some_problem(dmft.linear()), linear_limit
    assert np.all(theory.participation_ratio_se == 0)
    expected = participation(theory.feature_kernel.values)
    np.testing.assert_allclose(theory.participation_ratio, expected, rtol=1e-12)  # rounding
    nets = finite_nets.train_ensemble(problem, widths=[8, 16], seeds=3, observables=OWN, dtype="float64")
    expected = participation(nets.feature_kernel.values)
    np.testing.assert_allclose(nets.participation_ratio, expected, rtol=1e-12)
    # the twin: that of all layers alike, or of another step
    assert abs(nets.participation_ratio.diff("layer")).min() > 1e-6
    assert abs(nets.participation_ratio.diff("step")).min() > 1e-6
    assert "participation_ratio" not in schema.observables(None, problem, "dmft.solve")


@pytest.mark.parametrize("activation", [dmft.linear(), dmft.tanh()])
def test_preactivation_kernels_are_those_of_features_where_both_are_the_same(activation, linear_limit):
    """In linear networks at every step; in the limit at initialisation, those of the features below."""
    problem, names = some_problem(activation), ["feature_kernel", "preactivation_kernel"]
    linear = activation.name == "linear"
    theory = linear_limit if linear else dmft.solve(problem, observables=names, particles=2048, scrambles=4)
    nets = finite_nets.train_ensemble(problem, widths=[8], seeds=2, observables=names, dtype="float64")
    for ds in (theory, nets):
        same = np.allclose(ds.preactivation_kernel, ds.feature_kernel, rtol=1e-10)
        assert same == linear
    h, phi = (theory[name].isel(step=0).values for name in names[::-1])
    errors = sum(theory[f"{name}_se"].isel(step=0).values for name in names)
    # 5 standard errors, of 4 scrambles; rounding in a linear network, where both are exact
    assert (abs(h[1] - phi[0]) <= 5 * errors[1] + 1e-10).all()
    assert abs(h[0] - phi[0]).max() > 0.05 or linear


def test_positions_are_averaged_alike_in_the_limit_and_in_networks():
    rng = np.random.default_rng(0)
    task = dmft.Task(rng.standard_normal((3, 5, 2)), [0.5, -1.0, 0.3])
    problem = dmft.Problem(dmft.CNN(2, kernel_size=3, activation=dmft.linear()), task, dmft.GradientDescent(0.2, 2))
    names = ["feature_kernel", "preactivation_kernel"]
    theory = dmft.solve(problem, observables=names)
    nets = finite_nets.train_ensemble(problem, widths=[6], seeds=2, observables=names, dtype="float64")
    for ds in (theory, nets):
        np.testing.assert_allclose(ds.preactivation_kernel, ds.feature_kernel, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_width_bends_the_participation_ratio_as_its_expansion_says():
    """A function of kernels that is not linear: networks are off by 1/N, which the bias of the expansion foretells."""
    problem = some_problem(dmft.linear())
    names = ["participation_ratio"]
    theory = dmft.solve(problem, observables=names)
    expansion = dmft.fluctuations(problem, observables=names)  # exact
    nets = finite_nets.sample_in_law(problem, widths=[128], seeds=3000, observables=names)
    found = comparisons.compare(theory, nets, expansion)
    # 8 numbers; corrections of relative order 1/N are below half of the errors
    assert abs(found.participation_ratio_bias_z).max() < 4.5
    # the twins: no bias, and half of it
    assert abs(found.participation_ratio_z).max() > 6
    half = expansion.assign(participation_ratio_bias=expansion.participation_ratio_bias / 2)
    assert abs(comparisons.compare(theory, nets, half).participation_ratio_bias_z).max() > 6


# ---- of one's own ----------------------------------------------------------------------------------------------------


def test_an_observable_of_ones_own_is_recorded_compared_and_kept(own, tmp_path):
    mine = own(name="target_fit", dims=("step",))(aligned)
    problem = some_problem(dmft.linear())
    names = ["prediction", "feature_kernel", mine]
    theory = dmft.solve(problem, observables=names)
    nets = finite_nets.train_ensemble(problem, widths=[16, 32], seeds=40, observables=names, dtype="float64")
    y = problem.task.y[:3]
    np.testing.assert_allclose(theory.target_fit, expected_alignment(theory.feature_kernel.values[-1], y), rtol=1e-12)
    by_net = nets.feature_kernel.values[:, :, -1].reshape(-1, 5, 5)
    np.testing.assert_allclose(nets.target_fit.values.ravel(), expected_alignment(by_net, y), rtol=1e-12)
    assert abs(expected_alignment(theory.feature_kernel.values[0], y) - theory.target_fit).max() > 1e-3  # layer below
    assert (
        theory.target_fit.attrs["long_name"] == "Alignment of the last feature kernel with the targets it is trained on"
    )

    moments = finite_nets.train_ensemble(
        problem, widths=[16, 32], seeds=40, observables=["target_fit"], dtype="float64", keep="moments"
    )
    found = [comparisons.compare(theory, given) for given in (nets, moments)]
    np.testing.assert_allclose(found[0].target_fit_mean, found[1].target_fit_mean, rtol=1e-12)
    assert "Alignment of the last" in comparisons.summary(found[0])
    path = dmft.save(theory, tmp_path / "theory.nc")
    assert dmft.load(path).identical(theory)


def test_a_formula_that_was_changed_is_the_one_that_is_recorded(own):
    problem = some_problem(network=dmft.MLP(1, dmft.linear()))
    first = dmft.solve(problem, observables=[own(name="mine", dims=("layer", "step"))(lambda s: 1.0 * _norm(s))])
    second = dmft.solve(problem, observables=[own(name="mine", dims=("layer", "step"))(lambda s: 2.0 * _norm(s))])
    np.testing.assert_allclose(second.mine, 2 * first.mine)
    assert (first.mine > 0.1).all()


def _norm(seen):
    return (seen.inner(seen.features, seen.features) ** 2).sum((-2, -1))


@pytest.mark.parametrize("maker", [dmft.solve, dmft.fluctuations])
def test_a_formula_of_another_shape_says_so(own, maker):
    mine = own(name="mine", dims=("step",))(_norm)
    with pytest.raises(ValueError, match=r"formula of mine returns the shape \(2,\), not \(\)=\(\)"):
        maker(some_problem(dmft.linear()), observables=[mine])
    with pytest.raises(ValueError, match=r"formula of mine returns the shape \(2, 2\), not \(\)=\(\) behind 1 axes"):
        finite_nets.train_ensemble(some_problem(), widths=[4], seeds=2, observables=[mine])


def test_gradients_are_there_for_what_asks_for_a_backward_pass(own):
    def size(seen):
        return (seen.inner(seen.gradients, seen.gradients, mean=False) ** 2).sum((-2, -1))

    problem = some_problem(network=dmft.MLP(1, dmft.linear()), outputs=2)
    careless = own(name="careless", dims=("layer", "step"))(size)
    careful = own(name="careful", dims=("layer", "step"), needs="backward")(size)
    for maker in (dmft.solve, lambda *a, **k: finite_nets.train_ensemble(*a, **k, widths=[4], seeds=2)):
        with pytest.raises(ValueError, match='observables that say needs="backward"'):
            maker(problem, observables=[careless])
        found = maker(problem, observables=[careful, "gradient_kernel"])
        expected = (found.gradient_kernel**2).sum(("sample", "output", "sample_2", "output_2"))
        np.testing.assert_allclose(found.careful, expected, rtol=1e-5)  # rounding of float32
    with pytest.raises(TypeError, match="must be a function"):
        dmft.Observable("mine", None, ("step",))
    with pytest.raises(ValueError, match="give a list with any of prediction"):
        dmft.solve(problem, observables=[["ntk"]])


def test_what_follows_from_predictions_may_be_ones_own(own):
    """The mean absolute error: of predictions, training and test samples apart; it has a kink, and no expansion."""

    @own(dims=("step",), needs=schema.PREDICTIONS, smooth=False)
    def absolute_error(xp, loss, f, y):
        del loss
        return xp.abs(f - y).sum(-1)

    problem = some_problem(network=dmft.MLP(1), outputs=2)
    theory = dmft.solve(problem, observables=["prediction", "absolute_error"], particles=256, scrambles=2)
    nets = finite_nets.train_ensemble(problem, widths=[8], seeds=10, observables=["prediction", absolute_error])
    off = abs(nets.prediction - nets.target).sum("output")
    for name, part in (("absolute_error", slice(0, 3)), ("test_absolute_error", slice(3, None))):
        np.testing.assert_allclose(nets[name], off.isel(sample=part).mean("sample"), rtol=1e-6)
        assert theory[name].dims == ("step",)
    assert abs(nets.absolute_error - nets.test_absolute_error).max() > 1e-3
    moments = finite_nets.train_ensemble(problem, widths=[8], seeds=10, observables=[absolute_error], keep="moments")
    pooled = (moments["count"] * moments.absolute_error_mean).sum("block") / 10
    np.testing.assert_allclose(pooled, nets.absolute_error.mean("seed"), rtol=1e-6)
    with pytest.raises(
        ValueError, match="absolute_error is recorded by dmft.solve .*train_ensemble and finite_nets.sample_in_law only"
    ):
        dmft.fluctuations(problem, observables=["absolute_error"])


def test_networks_in_law_have_what_jumps(own):
    @own(dims=("step",), smooth=False)
    def large(seen):
        return seen.xp.where(seen["feature_kernel"] > 0.3, 1.0, 0.0).sum((-3, -2, -1))

    x = np.random.default_rng(3).standard_normal((6, 4))
    problem = dmft.Problem(dmft.MLP(1), dmft.Task(x, np.sign(x[:, 0])), dmft.GradientDescent(0.3, 2))
    asked = {"widths": [12], "seeds": 200, "observables": ["prediction", "feature_kernel", "accuracy", large]}
    nets, trained = finite_nets.sample_in_law(problem, **asked), finite_nets.train_ensemble(problem, **asked)
    right = (np.sign(nets.prediction) == nets.target).mean("sample").transpose(*nets.accuracy.dims)
    np.testing.assert_array_equal(nets.accuracy[..., 1:], right[..., 1:])  # step 0: the output is zero
    np.testing.assert_array_equal(nets.large, (nets.feature_kernel > 0.3).sum(("layer", "sample", "sample_2")))
    for name in ("accuracy", "large"):
        a, b = (ds[name].isel(width=0, step=slice(1, None)) for ds in (nets, trained))
        z = (a.mean("seed") - b.mean("seed")) / np.sqrt((a.var("seed") + b.var("seed")) / 200)
        assert abs(z).max() < 4
        assert a.std("seed").min() > 0.01


def test_what_the_curvature_shows_has_a_formula_of_eigenvalues(own):
    @own(dims=("step",), needs="hessian")
    def condition(eigenvalues):
        return eigenvalues[..., -1] - eigenvalues[..., 0]

    problem = some_problem(network=dmft.MLP(1, gamma0=2.0))
    asked = {"observables": ["sharpness", condition], "save_steps": [3]}
    theory = dmft.solve(problem, particles=256, scrambles=4, **asked)
    nets = finite_nets.train_ensemble(problem, widths=[256], seeds=40, **asked)
    for name in ("sharpness", "condition"):
        error = np.hypot(theory[f"{name}_se"], nets[name].std("seed").values.ravel() / 40**0.5)
        assert abs(theory[name] - nets[name].mean(("width", "seed"))) < 4 * error
    assert theory.condition > 1.02 * theory.sharpness  # some directions are curved downwards
    stream = some_problem(network=dmft.MLP(2, centered=False), batches=[[0, 1], [1, 2], [0, 2]], observe="test")
    with pytest.raises(ValueError, match='the curvature is that of the loss .* observe="test"'):
        dmft.solve(stream, observables=[condition])


def test_of_a_stream_an_observable_sees_its_probes_and_none_that_is_trained_on(own):
    @own(dims=("step",))
    def target_size(seen):
        return 0 * _norm(seen)[..., 0] + (seen.targets**2).sum()

    network = dmft.MLP(1, activation=dmft.linear(), centered=False)
    problem = some_problem(network=network, batches=[[0, 1], [1, 2], [0, 2]], observe="test")
    theory = dmft.solve(problem, observables=["target_size"])
    nets = finite_nets.train_ensemble(problem, widths=[4], seeds=2, observables=["target_size"], dtype="float64")
    for ds in (theory, nets):
        np.testing.assert_allclose(ds.target_size, (problem.task.y[3:] ** 2).sum())
    fitted = own(dims=("step",), name="fitted")(aligned)  # would be 0 / 0
    for produce in (dmft.solve, partial(finite_nets.train_ensemble, widths=[4], seeds=2)):
        with pytest.raises(ValueError, match='asks for seen.train, and observe="test" shows none'):
            produce(problem, observables=[fitted])
    assert abs((problem.task.y[:3] ** 2).sum() - theory.target_size).min() > 0.1
