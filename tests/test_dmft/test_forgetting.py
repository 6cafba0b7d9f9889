"""Matrices that keep some directions and forget the others: what turning leaves as it is, and what forgetting costs."""

import dataclasses
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_streams import stream
from test_training import some_problem

import dmft
from dmft import load_task
from dmft.drivers import repetitions, second_runs
from dmft.drivers import run as run_module
from dmft.drivers import solve as solve_module
from dmft.drivers.room import numbers_bytes
from dmft.engine import forgetting, form, loop, matrix, population
from dmft.engine.network import Vitals
from dmft.errors import NotConvergedError

BATCH, STEPS = 8, 6
FEW = {"particles": 512, "scrambles": 4, "observables": ["prediction"]}


def smooth_stream(batch=BATCH, steps=STEPS, **network):
    """Samples of few input directions, so that features and gradients have a spectrum that falls."""
    rng = np.random.default_rng(5)
    n = batch * steps
    x = rng.standard_normal((n + 9, 3))
    y = np.sign(x[:, 0])
    training = dmft.GradientDescent(0.8, steps, batches=dmft.one_pass(n, batch), observe="test")
    net = dmft.MLP(2, dmft.tanh(0.8), 1.3, centered=False)
    return dmft.Problem(dataclasses.replace(net, **network), dmft.Task(x[:n], y[:n], x[n:], y[n:]), training)


# ---- one step, exactly -----------------------------------------------------------------------------------------------


def shown(S=64):
    """A matrix that has met two blocks on either side, in the second of which few directions are large, and the
    coordinates of the second blocks."""
    rng = np.random.default_rng(0)
    source, target = (population.particles(rng.standard_normal((60, S))) for _ in range(2))
    W, met = with_moments(matrix.revealed(S, S, (20, 20), 1e-7), np.zeros((20, 20)), np.zeros((20, 20))), None
    sizes = np.array([[1.0], [0.5], [0.3], [0.1]])
    for block in range(2):
        W, target, _, x = applied(W, sizes * rng.standard_normal((4, S)), source, target)
        W, source, _, y = applied(W, sizes * rng.standard_normal((4, S)), target, source, transposed=True)
        x, y = np.asarray(x), np.asarray(y)
        W = dataclasses.replace(W, trained=W.trained._replace(change=np.asarray(W.trained.change) + y.T @ x))
        met = [[x], [y]]
        if not block:
            W = with_moments(W, x.T @ x, y.T @ y)
    return W, met, source, target


def with_moments(W, forward, backward):
    sides = (dataclasses.replace(s, moment=m) for s, m in ((W.forward, forward), (W.backward, backward)))
    return dataclasses.replace(W, **dict(zip(("forward", "backward"), sides, strict=True)))


def inner(a, b):
    """<a b> of particles."""
    return np.asarray(a) @ np.asarray(b).T / a.shape[1]


@partial(jax.jit, static_argnames="transposed")
def applied(W, v, source, target, transposed=False):
    return (W.apply_t if transposed else W.apply)(v, source, target)


@jax.jit
def forgot(kept, W, met):
    return forgetting._of_one(kept, W, [], met)


@jax.jit
def image(W, v, source, target):
    return W.peeked.apply(v, source, target)[2]


@jax.enable_x64(True)
def test_turning_changes_no_image_and_forgetting_only_those_of_what_is_forgotten():
    W, met, source, target = shown()
    assert W.ranks.tolist() == [8, 8]
    v = np.random.default_rng(1).standard_normal((3, 8)) @ np.asarray(W.forward.met)[:8]
    whole, _, lost = forgot(16, W, met)
    np.testing.assert_allclose(lost, 0)
    assert whole.ranks.tolist() == [8, 8]
    np.testing.assert_allclose(image(whole, v, source, target), image(W, v, source, target), atol=1e-12)

    few, _, lost = forgot(5, W, met)
    assert few.ranks.tolist() == [5, 5]
    Q = np.asarray(few.forward.met)[:5]
    np.testing.assert_allclose(np.asarray(few.forward.met)[5:], 0)
    learned = np.asarray(few.trained.change)
    np.testing.assert_allclose(learned[:, 5:], 0)
    np.testing.assert_allclose(inner(Q, Q), np.eye(5), atol=1e-12)
    # kept directions have kept their Gaussian images; of what was learned, the part in directions that are kept
    A, B = inner(Q, W.forward.met), inner(np.asarray(few.backward.met)[:5], W.backward.met)
    assert abs(A - np.eye(5, 20)).max() > 0.1
    np.testing.assert_allclose(np.asarray(few.forward.image)[:5], A @ np.asarray(W.forward.image), atol=1e-12)
    np.testing.assert_allclose(learned[:5, :5], B @ np.asarray(W.trained.change) @ A.T, atol=1e-12)
    # and so has an image of what lies in them, but for what was learned towards directions that are forgotten
    v = np.random.default_rng(1).standard_normal((3, 5)) @ Q
    there = few.backward.met
    seen = [inner(image(each, v, source, target), there) for each in (few, W)]
    np.testing.assert_allclose(*seen, atol=1e-12)
    # twin: what was learned stays where it was
    unturned = dataclasses.replace(few, trained=W.trained)
    assert abs(inner(image(unturned, v, source, target), there) - seen[1]).max() > 1e-2
    # they are the five largest of all that was met
    x, left = met[0][0], np.asarray(few.forward.moment)
    moment = np.asarray(W.forward.moment) + x.T @ x
    np.testing.assert_allclose(left[:5, :5], A @ moment @ A.T, atol=1e-10)
    values = np.linalg.eigvalsh(moment)[::-1]
    assert left.trace() > values[:5].sum() - 0.05 * values[4]
    # and what is lost is the kernel of the step's vectors in the others
    between = [(a @ a.T)[~np.eye(4, dtype=bool)] for a in (x - x @ A.T @ A, x)]
    np.testing.assert_allclose(lost[0], np.linalg.norm(between[0]) / np.linalg.norm(between[1]), rtol=1e-10)


rotation = jax.jit(forgetting.rotation, static_argnames="rows")


@jax.jit
def whole_of(turn):
    """As a matrix."""
    return turn.whole(jnp.eye(len(turn.Y), dtype=turn.Y.dtype), 0)


@partial(jax.jit, static_argnames="rows")
def by_place(moment, count, most, rows):
    """The twin of `rotation`: what is least are the places themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting, "least", lambda factor, rows: jnp.zeros((len(factor) - rows, rows)))
        return forgetting.rotation(moment, count, most, rows)


@jax.enable_x64(True)
@pytest.mark.parametrize("count", [10, 17, 20])
def test_what_is_forgotten_has_the_least_second_moment(count):
    """Of `count` directions in 20 places, which are nearly principal components, the 14 largest, in the first places."""
    a, size = np.random.default_rng(count).standard_normal((count, 40)), 0.7 ** np.arange(count)
    moment = np.zeros((20, 20))
    moment[:count, :count] = size * np.corrcoef(a) * size[:, None]

    def kept(rotation):
        H = np.asarray(whole_of(rotation(moment, count, 14, rows=6))).T
        np.testing.assert_allclose(H @ H.T, np.eye(20), atol=1e-12)
        return (H.T @ moment @ H)[:14, :14].trace()

    most = np.linalg.eigvalsh(moment)[::-1][:14]
    # nothing of what fits is lost; else all but a twentieth of the smallest that is kept
    assert most.sum() - kept(rotation) < (1e-12 if count <= 14 else 0.05 * most[-1])
    if count > 14:
        assert most.sum() - kept(by_place) > 0.2 * most[-1]


FALLING = np.geomspace(1.0, 0.1, 200)


@pytest.mark.parametrize(
    ("size", "parallel"),
    [
        *((np.where(np.arange(200) % 2, FALLING**3, smallest), 1.0) for smallest in (1e-2, 1e-8, 0.0)),
        *((FALLING, part) for part in (3e-3, 3e-4, 0.0)),
    ],
)
def test_rotations_are_that_in_float32_whatever_the_sizes(size, parallel):
    """And where two pairs of large places differ in a small part of them, `parallel`, which is what is least."""
    a = np.random.default_rng(0).standard_normal((200, 250))
    if parallel < 1:
        a[[0, 2]] = a[[1, 3]] + parallel * a[[0, 2]]
    moment = size * np.corrcoef(a) * size[:, None]
    turn = rotation(np.asarray(moment, np.float32), 200, 150, rows=50)
    H = np.asarray(whole_of(turn), np.float64)
    assert abs(H @ H.T - np.eye(200)).max() < 2e-6
    # twin: of reflections that go too far
    H = np.asarray(whole_of(turn._replace(T=np.float32(1.001) * np.asarray(turn.T))), np.float64)
    assert abs(H @ H.T - np.eye(200)).max() > 1e-3


# ---- training --------------------------------------------------------------------------------------------------------


def distance(a, b):
    """Largest z of 63 correlated numbers, errors of four scrambles each: beside them, of half a percent."""
    error = np.hypot(np.hypot(a.prediction_se, b.prediction_se), 5e-3)
    return (abs(a.prediction - b.prediction) / error).max().item()


def test_a_stream_that_forgets_is_the_stream_that_remembers():
    problem = smooth_stream()
    whole = dmft.solve(problem, **FEW)
    few = dmft.solve(problem, directions=2 * BATCH, seed=1, **FEW)
    assert whole.attrs["directions"] > 2.5 * few.attrs["directions"]
    assert few.attrs["directions"] == few.attrs["kept"] == 2 * BATCH
    assert len(few.attrs["kernels_lost"]) == STEPS + 1
    assert 0 < max(few.attrs["kernels_lost"]) < 0.1
    # of the same scrambles: resolved, with less noise than two results have apart
    assert 0 < few.attrs["truncation_error"] < 0.02
    assert few.attrs["truncation_error_noise"] < 1.3 * np.sqrt((few.prediction_se**2).mean())
    assert distance(few, whole) < 5


def test_what_losses_have_by_the_scatter_of_particles():
    """Of a squared error half the variance over scrambles, exactly."""
    wanted = FEW | {"scrambles": 5, "directions": 2 * BATCH}  # compiled for the test above
    few = dmft.solve(smooth_stream(), **wanted | {"observables": ["prediction", "loss"]})
    half = 5 * (few.prediction_se**2).mean("sample") / 2
    np.testing.assert_allclose(few.attrs["noise_test_loss"], half, rtol=1e-9)
    # twin: of the mean over these scrambles a fifth is left
    left = few.test_loss - ((few.prediction - few.target) ** 2).mean("sample") / 2
    assert abs(left / half - 1).max() > 0.1
    assert "noise_test_loss" not in dmft.solve(smooth_stream(), **wanted | {"observables": ["loss"]}).attrs


def test_too_few_directions_are_refused(monkeypatch):
    """Where less may be lost, in the code of the stream above."""
    monkeypatch.setattr(repetitions, "LOST_AT_MOST", 1e-4)
    with pytest.raises(NotConvergedError, match=r"directions=16 are too few: [\d.]+ of kernels .* more than 0.0001"):
        dmft.solve(smooth_stream(), directions=2 * BATCH, **FEW)


def test_samples_come_from_the_host_some_steps_at_a_time(monkeypatch):
    """The same numbers, whatever is on the device together, which does not depend on the number of samples."""
    problem, wanted = smooth_stream(), FEW | {"directions": 2 * BATCH, "scrambles": 2}
    monkeypatch.setattr(run_module, "CALLS", 1)
    at_once = dmft.solve(problem, **wanted)
    monkeypatch.setattr(run_module, "AT_ONCE", 2 * BATCH * 3 * 8)  # samples of three numbers
    some = dmft.solve(problem, **wanted)
    np.testing.assert_allclose(some.prediction, at_once.prediction, atol=1e-12)
    assert some.attrs["memory_estimate"] < at_once.attrs["memory_estimate"]
    run = solve_module.prepared(problem=problem, **inspected(wanted))["run"]
    with jax.enable_x64(True):
        assert run.rule.inputs.shape == (2 * BATCH + 9, 3)
        assert len(run.rule.targets) == 2 * BATCH + 9
    # twin: every call has the samples of the first
    sent = loop.rule_of_steps
    monkeypatch.setattr(
        loop, "rule_of_steps", lambda *given: sent(*given)._replace(inputs=sent(*given[:2], 0, 2, 2).inputs)
    )
    assert abs(dmft.solve(problem, **wanted).prediction - at_once.prediction).max() > 1e-3


def inspected(given):
    """All arguments of `solve`, these among them."""
    names = inspect.signature(dmft.solve).parameters.values()
    return {each.name: each.default for each in names if each.default is not each.empty} | given


def test_memory_holds_samples_and_the_batches_of_all_steps():
    """Sixteen bytes of every sample of one number, and twelve of every place in a batch, and rates of every step."""
    for steps in (10, 1000):
        problem = smooth_stream(batch=4, steps=10)
        batches = dmft.random_batches(40, 4, steps)
        training = dmft.GradientDescent(0.8, steps, batches=batches, observe="test")
        run = solve_module.prepared(
            problem=dataclasses.replace(problem, training=training), **inspected({"save_steps": [steps]})
        )["run"]
        with jax.enable_x64(True):
            found = numbers_bytes(run)
        assert found > 49 * 4 * 8 + (steps + 1) * 4 * 12
        assert found < 49 * 4 * 8 + (steps + 1) * (4 * 12 + 17) + 2000


@pytest.mark.slow
def test_a_stream_that_forgets_what_it_has_learned_is_another(monkeypatch):
    """The twin."""
    problem = smooth_stream()
    whole = dmft.solve(problem, **FEW)
    monkeypatch.setattr(matrix.Learned, "turned", lambda self, *_: self._replace(change=0 * self.change))
    monkeypatch.setattr(loop, "advance", loop.advance.__wrapped__)  # compiled code would not see the change
    monkeypatch.setattr(second_runs, "forgotten", lambda *_: {})
    unlearned = dmft.solve(problem, directions=2 * BATCH, seed=1, **FEW)
    assert distance(unlearned, whole) > 7


@pytest.fixture
def compile_anew():
    """Forgets compiled steps, which would not see what is changed in place."""
    yield loop.advance.clear_cache
    loop.advance.clear_cache()


def test_probes_come_some_at_a_time(monkeypatch, compile_anew):
    """Of linear networks the same numbers, exactly, whatever is left for the last turn."""
    problem, wanted = stream(dmft.linear(), rate=0.1), {"observables": ["prediction", "loss"]}
    together = dmft.solve(problem, **wanted)
    compile_anew()
    monkeypatch.setattr(form, "PROBES_AT_ONCE", 3)
    in_turn = dmft.solve(problem, **wanted)
    np.testing.assert_allclose(in_turn.prediction, together.prediction, atol=1e-12)
    # twin: every turn looks at the first probes
    compile_anew()
    monkeypatch.setattr(jax.lax, "map", lambda of, xs: jax.vmap(lambda _: of(xs[0]))(xs))
    assert abs(dmft.solve(problem, **wanted).prediction - together.prediction).max() > 1e-3


@pytest.mark.slow
def test_directions_that_are_kept_converge():
    """Digits in one pass, ten outputs, ReLU: the measured truncation error, and the distance to many directions."""
    task = load_task("digits", classes=tuple(range(10)), n_train=768, n_test=200, balanced=False)
    training = dmft.GradientDescent(2.0, 24, batches=dmft.one_pass(768, 32), observe="test")
    problem = dmft.Problem(dmft.MLP(2, dmft.relu(), centered=False), task, training)
    numerics = {"particles": 2048, "scrambles": 4, "observables": ["prediction", "loss"], "save_steps": [0, 12, 24]}
    found = {k: dmft.solve(problem, directions=k, **numerics) for k in (64, 128, 256, 512)}
    loss, error = (
        np.array([each[name].values[-1] for each in found.values()]) for name in ("test_loss", "test_loss_se")
    )
    lost = np.array([np.mean(each.attrs["kernels_lost"]) for each in found.values()])
    change = np.array([each.attrs["truncation_test_loss"][-1] for each in found.values()])
    noise = np.array([each.attrs["truncation_test_loss_se"][-1] for each in found.values()])
    print(*map(np.array2string, (loss, error, lost, change, noise)))
    assert (lost[:-1] > 1.4 * lost[1:]).all()
    # what half of the directions change is what was found with these, and the next doubling changes no more
    assert (abs(change[1:] - (loss[:-1] - loss[1:])) < 5 * np.hypot(noise[1:], error[:-1])).all()
    assert (abs(change[2:]) < abs(change[1:-1]) + 4 * np.hypot(noise[2:], noise[1:-1])).all()


# ---- refusals --------------------------------------------------------------------------------------------------------

REFUSED = {
    "full batch": (some_problem(), {}, 'observe="test"'),
    "two times": (smooth_stream(), {"two_time": True}, "two_time compares"),
    "linear": (smooth_stream(activation=dmft.linear()), {}, "linear networks are solved without"),
    "less than two batches": (smooth_stream(), {"directions": 15}, "at least 16"),
    "single samples": (smooth_stream(batch=1, steps=4), {}, "two samples or more"),
    "not a number": (smooth_stream(), {"directions": 0}, "directions=0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_forget_says_so(name):
    problem, arguments, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        dmft.solve(problem, **{"particles": 64, "scrambles": 2, "directions": 16} | arguments)


@pytest.mark.parametrize("median", [0.19, 0.21])
def test_a_fifth_of_kernels_may_be_lost_in_the_median_over_steps(median):
    lost = np.full((9, 2, 2), 0.01)
    lost[:6, 1, 0] = [0.0, 0.0, median, median, 0.9, 0.9]
    lost[6:] = 5.0  # steps to come
    seen = Vitals(None, None, None, None, lost)
    if median < 0.2:
        repetitions._raise_if_lost(16, seen, 6)
    else:
        with pytest.raises(NotConvergedError, match=r"directions=16 .*: 0.21 of kernels .* features .* matrix 2 meets"):
            repetitions._raise_if_lost(16, seen, 6)
