"""Sharpness of the limit: against trained networks, closed forms, and the same code with explicit matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import comparisons
import dmft
import finite_nets
from conftest import first_of, reference_problem
from dmft.drivers.run import Run
from dmft.engine import bank, curvature, loop, matrix, network, normals, population, tangent
from dmft.running.checkpoint import Checkpoint
from dmft.specs.networks import convolution
from dmft.specs.parameterization import input_scale
from finite_nets.device.precision import PRECISIONS
from finite_nets.training.perceptrons import initialise
from test_dmft import test_programs
from test_dmft.test_convolution import image, line

STEPS = [4, 6, 8, 10]  # before them single neurons have the largest curvature (`dmft.specs.curvature`)


def some_problem(network, training=None, kind="squared"):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 4)), rng.standard_normal(5)
    y = np.eye(3)[[0, 1, 2, 0, 1]] if kind == "cross_entropy" else y
    training = training or dmft.GradientDescent(0.4, 3)
    return dmft.Problem(network, dmft.Task(x[:3], y[:3], x[3:], y[3:]), training, kind)


LIMIT = {"particles": 512, "scrambles": 8, "save_steps": STEPS, "observables": ["ntk", "sharpness"]}


@pytest.fixture(scope="module")
def limit():
    return dmft.solve(reference_problem(), **LIMIT)


@pytest.fixture(scope="module")
def nets():
    """Of two widths, the rest of whose difference from the limit is of order 1/N^2."""
    return finite_nets.train_ensemble(
        reference_problem(), widths=[64, 128], seeds=160, save_steps=STEPS, observables=["sharpness"]
    )


def extrapolated_z(nets, values, errors):
    narrow, wide = (nets.sharpness.sel(width=n).astype(float) for n in nets.width)
    found = 2 * wide.mean("seed") - narrow.mean("seed")
    variance = (4 * wide.var("seed", ddof=1) + narrow.var("seed", ddof=1)) / nets.sizes["seed"]
    return (values - found.values) / np.sqrt(variance.values + errors**2)


def test_the_limit_is_that_of_trained_networks(limit, nets):
    z = extrapolated_z(nets, limit.sharpness.values, limit.sharpness_se.values)
    assert abs(z).max() < 4  # of four correlated numbers
    assert (limit.sharpness_se / limit.sharpness).max() < 6e-3  # measured 4.7e-3
    compared = comparisons.compare(limit, nets)
    assert compared.sharpness_z.dims == ("width", "step")
    assert "sharpness" in comparisons.summary(compared)

    # twins: without the curvature of f, and another richness
    gauss_newton = np.linalg.eigvalsh(limit.ntk.values)[:, -1] / 3
    assert abs(extrapolated_z(nets, gauss_newton, 0.0)[0]) > 10
    other = dmft.solve(reference_problem(gamma0=1.3), **LIMIT | {"scrambles": 3})
    assert abs(extrapolated_z(nets, other.sharpness.values, other.sharpness_se.values)).max() > 10


def explicit_sharpness(problem, width):
    """Before every step, of the network with seed index 4, by the engine with explicit matrices."""
    spec, depth, outputs = problem.network, problem.network.depth, problem.task.targets.shape[1]
    features = problem.task.dimension + (spec.bias > 0)
    weights = initialise(
        depth,
        features,
        width,
        torch.tensor([4]),
        root_seed=0,
        precision=PRECISIONS["float64"],
        outputs=outputs,
        biases=spec.bias > 0,
    )
    first, *hidden, readout = (w[0].numpy() for w in weights.all[: depth + 1])
    rule, form = loop.rule_of(problem), loop.form_of(problem)
    x = np.column_stack([problem.task.x * input_scale(4)] + [np.full(5, spec.bias)] * (spec.bias > 0))
    # explicit matrices ask for no raw normals
    crowd = [
        population.particles(normals.Stored(jnp.asarray(np.zeros((0, width))), jax.random.key(i)))
        for i in range(1 if spec.residual else depth)
    ]
    start = network.Network(
        reads=(jnp.asarray(np.linalg.lstsq(rule.inputs, x @ first.T, rcond=None)[0]),),
        matrices=tuple(matrix.Explicit(jnp.asarray(w)) for w in hidden),
        readout=jnp.asarray(readout).reshape(outputs, width),
        populations=tuple(crowd),
        offset=jnp.asarray(np.zeros((5, outputs))),
        vectors=tuple(jnp.asarray(b[0].numpy()) for b in weights.biases),
        sketch=form.sketch,
    )
    found = []
    room = jax.jit(lambda *given: loop.empty_history(*given, form, [problem.training.steps]))(start, rule)
    for t in range(problem.training.steps + 1):
        found.append(float(curvature.eigenvalues(start, rule, t, form=form)[-1]))
        start, room = loop.advance(start, room, rule, t, t + 1, form=form)
    return found


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (dmft.MLP(3, dmft.gelu(), 1.5, frozen=(0,)), "cross_entropy"),
        (dmft.ResidualMLP(3, dmft.softplus(), 1.5, branch_scale=0.6, bias=0.5), "squared"),
        (dmft.MLP(2, dmft.relu(), 1.5, bias=0.5), "squared"),
    ],
    ids=["classes, frozen", "residual, biases", "ReLU"],
)
def test_with_explicit_matrices_it_is_that_of_an_ordinary_network(spec, kind):
    problem, width = some_problem(spec, kind=kind), 20
    nets = finite_nets.train_ensemble(problem, widths=[width], seeds=[4], dtype="float64", observables=["sharpness"])
    with jax.enable_x64(True):
        found = explicit_sharpness(problem, width)
    # the same iteration in another order: rounding
    np.testing.assert_allclose(found, nets.sharpness[0, 0], rtol=1e-9)


# ---- programs --------------------------------------------------------------------------------------------------------


def convolved(theta, problem, x):
    """Outputs of a convolutional network, from patches x; without the tape."""
    spec, (first, *hidden, readout) = problem.network, theta
    grids = spec.grids(problem.task.x_train.shape[1:])
    h = x @ first
    for n, w in enumerate(hidden, start=1):
        seen = jnp.asarray(convolution.mixing(grids[n], spec.kernel_size, spec.stride, spec.padding))
        h = jnp.einsum("kyx,axi,koi->ayo", seen, jnp.tanh(h), w) / w.shape[-1] ** 0.5
    if spec.pooling == "flatten":
        scale = spec.gamma0 * readout.shape[2] * readout.shape[1] ** 0.5
        return jnp.einsum("ayi,cyi->ac", jnp.tanh(h), readout) / scale
    return jnp.tanh(h).mean(1) @ readout.T / (spec.gamma0 * readout.shape[1])


def normalised(theta, problem, x):
    return test_programs.forward(theta, x, problem.network.gamma0)


def explicit_start(problem, width, rule, form):
    """A network with ordinary matrices, and its weights in the order (reads, matrices, vectors, readout)."""
    rng, sketch = np.random.default_rng(0), problem.sketch
    outputs = rule.targets.shape[1]

    def drawn(*shape):
        return jnp.asarray(rng.standard_normal(shape))

    matrices = [drawn(part.bank, width, width) if part.bank else drawn(width, width) for part in sketch.matrices]
    vectors = [drawn(1 if part.target is None else width) for part in sketch.vectors]
    start = network.Network(
        reads=(drawn(rule.inputs.shape[-1], width),),
        matrices=tuple(bank.ExplicitBank(w) if w.ndim == 3 else matrix.Explicit(w) for w in matrices),
        vectors=tuple(vectors),
        readout=drawn(outputs, *sketch.flattened, width),
        populations=tuple(
            population.particles(normals.Stored(jnp.asarray(np.zeros((0, width))), jax.random.key(i)))
            for i in range(len(sketch.populations))
        ),
        offset=jnp.asarray(np.zeros((problem.task.n_samples, outputs))),
        sketch=form.sketch,
    )
    return start, (*start.reads, *matrices, *vectors, start.readout)


def largest_of_dense(problem, theta, forward, rule, width):
    """The largest eigenvalue of M^(1/2) H M^(1/2) at initialisation, H by JAX."""
    spec, n, y = problem.network, problem.task.n_train, rule.targets
    x = rule.inputs[:n]
    sizes = np.cumsum([w.size for w in theta])

    def loss(flat):
        parts = [part.reshape(w.shape) for part, w in zip(jnp.split(flat, sizes[:-1]), theta, strict=True)]
        f = forward(parts, problem, x)
        offset = jax.lax.stop_gradient(f) * float(spec.centered)  # that of the start, where this is asked for
        return ((f - offset - y[:n]) ** 2).sum() / (2 * n)

    sketch = problem.sketch
    layers = [part.layer for part in (*sketch.reads, *sketch.matrices, *sketch.vectors)] + [sketch.readout_layer]
    moved = np.concatenate([np.full(w.size, i not in spec.frozen) for w, i in zip(theta, layers, strict=True)])
    roots = np.concatenate([np.full(w.size, 1 if w.size == 1 else width**0.5) for w in theta])[moved]
    H = np.asarray(jax.jit(jax.hessian(loss))(np.concatenate([np.ravel(w) for w in theta])))[moved][:, moved]
    return np.linalg.eigvalsh(spec.gamma0**2 * roots[:, None] * H * roots)[-1]


PROGRAMS = {
    "line": (line(2), convolved, 5),
    "flattened": (line(2, rate=0.3, pooling="flatten"), convolved, 4),
    "deep line, frozen": (line(3, 2.0, frozen=(1,)), convolved, 4),
    "image, stride": (image(2, stride=2), convolved, 4),
    "numbers, a matrix used twice": (test_programs.problem(1), normalised, test_programs.WIDTH),
    "outputs, not centered": (test_programs.problem(2, centered=False), normalised, test_programs.WIDTH),
    "frozen": (test_programs.problem(1, frozen=(1,)), normalised, test_programs.WIDTH),
}
FAST = ("line", "numbers, a matrix used twice")


def explicit_program(problem, width):
    rule, form = loop.rule_of(problem), loop.form_of(problem)
    start, theta = explicit_start(problem, width, rule, form)
    return curvature.eigenvalues(start, rule, 0, form=form)[-1], theta, rule


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PROGRAMS],
)
def test_of_programs_it_is_the_largest_eigenvalue_of_the_dense_hessian(name, monkeypatch):
    problem, forward, width = PROGRAMS[name]
    monkeypatch.setattr(dmft.specs.curvature, "ITERATIONS", 60)  # until all directions are spanned
    with jax.enable_x64(True):
        found, theta, rule = explicit_program(problem, width)
        dense = largest_of_dense(problem, theta, forward, rule, width)
    assert found == pytest.approx(dense, rel=1e-8)  # rounding


@pytest.mark.parametrize("name", first_of(FAST))
def test_it_needs_what_moves_the_derivatives_of_formulas(name, monkeypatch):
    """The twin: cotangents go back through nodes whose derivatives stay what they are, without phi'' and its like."""
    problem, forward, width = PROGRAMS[name]
    monkeypatch.setattr(dmft.specs.curvature, "ITERATIONS", 60)  # compiled for the test above
    linearised = tangent._linearised

    def straight(node):
        whole = linearised(node)
        if whole.backward is None:
            return whole
        return whole._replace(backward=lambda g, *moved: whole.backward(g, *(0 * each for each in moved)))

    with jax.enable_x64(True):
        found, theta, rule = explicit_program(problem, width)
        monkeypatch.setattr(tangent, "_linearised", straight)
        curvature._iterations.clear_cache()
        wrong, _, _ = explicit_program(problem, width)
        curvature._iterations.clear_cache()
        dense = largest_of_dense(problem, theta, forward, rule, width)
    assert found == pytest.approx(dense, rel=1e-8)
    assert abs(wrong / dense - 1) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "steps", "tolerance"),
    [(line(2), [5, 7], 0.03), (test_programs.problem(1), [2, 5], 1e-3)],
    ids=["convolution", "numbers"],
)
def test_the_limit_of_programs_is_that_of_their_networks(problem, steps, tolerance):
    asked = {"save_steps": steps, "observables": ["sharpness"]}
    limit = dmft.solve(
        problem, particles=1024, scrambles=4, tolerance=tolerance, **asked | {"observables": ["ntk", "sharpness"]}
    )
    nets = finite_nets.train_ensemble(problem, widths=[32, 64], seeds=200, **asked)
    assert abs(extrapolated_z(nets, limit.sharpness.values, limit.sharpness_se.values)).max() < 4
    gauss_newton = np.linalg.eigvalsh(limit.ntk.values)[:, -1] / problem.task.n_train
    assert abs(extrapolated_z(nets, gauss_newton, 0.0)).max() > 5


def test_one_linear_layer_in_closed_form():
    """One sample with K^x = 1: A acts on (w, h) and (h, w), with the NTK K = <h h> + <w w> and f = <h w> / gamma0, as
    lambda^2 - K lambda = gamma0^2 Delta (Delta - 2 f)."""
    gamma0, x = 1.5, np.array([[1.0, 1.0]])
    problem = dmft.Problem(
        dmft.MLP(1, dmft.linear(), gamma0), dmft.Task(x, [1.0]), dmft.GradientDescent(0.2, 8), "squared"
    )
    found = dmft.solve(problem, observables=["prediction", "ntk", "sharpness"])
    f, K = found.prediction.values[:, 0], found.ntk.values[:, 0, 0]
    delta = 1 - f
    expected = K / 2 + np.sqrt(K**2 / 4 + gamma0**2 * delta * (delta - 2 * f))
    np.testing.assert_allclose(found.sharpness, expected, rtol=1e-9)  # exact
    assert found.sharpness[0].item() == pytest.approx(1 + np.sqrt(1 + gamma0**2))
    assert not found.sharpness_se.any()


def test_more_linear_forms_are_no_constant_of_compiled_code():
    forms, more = population.linear_forms(30), jax.make_jaxpr(lambda forms: forms.with_more(5))
    assert max((np.size(const) for const in more(forms).consts), default=0) <= 1
    np.testing.assert_array_equal(forms.with_more(5).normals.values, np.eye(35))
    assert forms.with_more(5).used == 30


@pytest.mark.parametrize("residual", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_linear_forms_have_the_sharpness_of_wide_networks(residual):
    spec = dmft.ResidualMLP(2, dmft.linear(), 0.5) if residual else dmft.MLP(2, dmft.linear(), 0.5)
    problem = some_problem(spec)
    arguments = {"observables": ["sharpness"], "save_steps": [0, 3]}
    exact = dmft.solve(problem, **arguments)
    nets = finite_nets.train_ensemble(problem, widths=[64, 128], seeds=400, **arguments)
    assert abs(extrapolated_z(nets, exact.sharpness.values, 0.0)).max() < 4
    assert abs(extrapolated_z(nets, 1.15 * exact.sharpness.values, 0.0)).max() > 5


@pytest.mark.slow
def test_other_observables_stay_what_they_are_bit_for_bit():
    problem = some_problem(dmft.MLP(2, dmft.tanh(0.8), 1.5))
    arguments = {"particles": 256, "scrambles": 2}
    plain = dmft.solve(problem, **arguments)
    assert "sharpness" not in plain
    both = dmft.solve(problem, observables=(*dmft.schema.OBSERVABLES, "sharpness"), **arguments)
    assert both.drop_vars(["sharpness", "sharpness_se"]).equals(plain)
    few = dmft.solve(problem, observables=(*dmft.schema.OBSERVABLES, "sharpness"), save_steps=[1, 3], **arguments)
    np.testing.assert_array_equal(few.sharpness, both.sharpness[[1, 3]])
    # more memory is asked for than without
    assert both.attrs["memory_estimate"] > plain.attrs["memory_estimate"]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    problem = some_problem(dmft.MLP(2, dmft.tanh(0.8), 1.5))
    arguments = {"particles": 256, "scrambles": 2, "observables": (*dmft.schema.OBSERVABLES, "sharpness")}
    whole = dmft.solve(problem, **arguments)
    monkeypatch.setattr("dmft.running.checkpoint.EVERY", 0.0)
    monkeypatch.setattr(Checkpoint.__init__, "__defaults__", (0.0,))
    advance, calls = loop.advance, []

    def killed(*given, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return advance(*given, **named)

    monkeypatch.setattr(loop, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        dmft.solve(problem, checkpoint=tmp_path / "state", **arguments)
    assert (tmp_path / "state").exists()
    resumed = dmft.solve(problem, checkpoint=tmp_path / "state", **arguments)
    assert len(calls) < 3 + 2 * 4
    np.testing.assert_array_equal(resumed.sharpness, whole.sharpness)
    np.testing.assert_array_equal(resumed.sharpness_se, whole.sharpness_se)


@pytest.mark.slow
def test_flows_and_batches_have_the_sharpness_of_all_training_samples():
    spec = dmft.MLP(2, dmft.tanh(0.8), 0.5)
    arguments = {"particles": 256, "scrambles": 4, "save_steps": [0, 2], "observables": ["sharpness"]}
    full = dmft.solve(some_problem(spec), **arguments)
    batches = dmft.GradientDescent(0.4, 3, batches=((0, 1), (1, 2), (2, 0)))
    for training in (dmft.GradientFlow(1.0, 0.4, 3, scheme="euler"), batches):
        other = dmft.solve(some_problem(spec, training), **arguments)
        error = np.hypot(full.sharpness_se, other.sharpness_se)
        assert abs(full.sharpness - other.sharpness)[0] < 5 * error[0]
        assert abs(full.sharpness - other.sharpness)[1] < 0.2 * full.sharpness[1]


def test_what_is_not_offered_is_refused():
    problem = some_problem(dmft.MLP(2))
    with pytest.raises(ValueError, match="recorded by dmft.solve and finite_nets.train_ensemble only"):
        dmft.fluctuations(problem, observables=["prediction", "sharpness"])
    stream = some_problem(
        dmft.MLP(2, centered=False), dmft.GradientDescent(0.4, 2, batches=((0, 1), (2, 0)), observe="test")
    )
    with pytest.raises(ValueError, match='observe="test"'):
        dmft.solve(stream, observables=["sharpness"])


def test_memory_is_that_of_the_state_with_room_for_banks():
    problem = line(2)
    run = Run(problem, np.arange(2), 64, 0.03, centered=True, curvature=True)
    capacity = run.block

    def extended():
        return curvature.extended(run.initial(run.blank_populations(capacity), capacity), run.form).matrices

    with jax.enable_x64(True):
        held = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(extended)))
        needed = curvature.bytes_needed(run.rule, run.form, capacity, 64, 8)
    assert held < needed < 3 * held  # with directions and fields
