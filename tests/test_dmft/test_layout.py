"""Runs side by side, over devices; pivots in panels; products of what is new, and with what was met, alone."""

import dataclasses
import inspect
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dmft
from dmft.drivers import layout, repetitions, solve
from dmft.drivers.solve import prepared
from dmft.engine import basis, loop, population, rows, scrambles, together, trial
from dmft.engine.rows import Rows
from oracles import on_virtual_devices

FEW = {"particles": 64, "scrambles": 3, "tolerance": 1e-2, "progress": False, "observables": ["prediction", "ntk"]}


def problem(momentum=0.5):
    rng = np.random.default_rng(0)
    task = dmft.Task(rng.standard_normal((3, 4)), rng.standard_normal(3))
    return dmft.Problem(dmft.MLP(2, dmft.tanh()), task, dmft.GradientDescent(0.3, 4, momentum=momentum))


def on_images():
    rng = np.random.default_rng(1)
    task = dmft.Task(rng.standard_normal((3, 5, 2)), rng.standard_normal(3))
    network = dmft.CNN(2, 3, dmft.tanh())
    return dmft.Problem(network, task, dmft.GradientDescent(0.3, 4))


def furthest(a, b):
    return max(float(abs(a[name] - b[name]).max()) for name in ("prediction", "ntk", "prediction_se"))


def watched(monkeypatch):
    """Layouts that are chosen from now on."""
    laid, choose = [], layout.choose
    monkeypatch.setattr(layout, "choose", lambda *given: laid.append(choose(*given)) or laid[-1])
    return laid


def test_runs_side_by_side_give_the_numbers_of_each_alone(monkeypatch):
    alone, laid = dmft.solve(problem(), **FEW), watched(monkeypatch)
    monkeypatch.setattr(layout, "SIDE_BY_SIDE", ("cpu",))
    beside = dmft.solve(problem(), **FEW)
    assert laid[0].together == 3
    assert not laid[0].partly
    assert beside.attrs["memory_estimate"] > 2 * alone.attrs["memory_estimate"]
    assert beside.attrs["directions"] == alone.attrs["directions"]
    assert furthest(beside, alone) < 1e-12  # sums in another order: rounding through four steps
    # scrambles in another order, or another of them, are not within rounding
    assert furthest(dmft.solve(problem(), **FEW, seed=1), alone) > 1e-4


def test_scrambles_that_a_device_draws_change_no_digit(monkeypatch):
    monkeypatch.setattr(layout, "SIDE_BY_SIDE", ("cpu",))
    host, drawn, places = dmft.solve(problem(), **FEW), layout.scrambled_of_each, []

    def on_device(*given, on_gpu, **named):
        places.append(on_gpu)
        return drawn(*given, on_gpu=True, **named)

    monkeypatch.setattr(layout, "scrambled_of_each", on_device)
    assert furthest(dmft.solve(problem(), **FEW), host) == 0
    assert places == [False]


def test_numbers_of_steps_that_share_room_share_what_draws_and_begins(monkeypatch):
    drawn, rooms = layout.scrambled_of_each, set()
    monkeypatch.setattr(
        layout, "scrambled_of_each", lambda *given, on_gpu, **named: drawn(*given, on_gpu=True, **named)
    )
    functions = scrambles._on_device, layout._populations, layout._begun

    def compiled(steps):
        """How often each was, and raw normals of a population."""
        x = np.random.default_rng(0).standard_normal((2, 4))
        of = dmft.Problem(dmft.MLP(2, dmft.tanh()), dmft.Task(x, [1.0, -1.0]), dmft.GradientDescent(0.3, steps))
        run = prepared(**{**_defaults(), "problem": of, "particles": 64})["run"]
        before, capacity = [each.compiled for each in functions], run.first_capacity
        streams = np.random.SeedSequence(0).spawn(2)
        network, _ = layout.Layout(2).begun(run, run.rule, capacity, streams)
        alone = run.network(capacity, streams[1])
        for found, expected in zip(
            jax.tree.leaves(network.populations), jax.tree.leaves(alone.populations), strict=True
        ):
            np.testing.assert_array_equal(found[1], expected)
        rooms.add(tuple(run.rows(capacity)))
        return [each.compiled - n for each, n in zip(functions, before, strict=True)]

    for each in functions:
        each.clear_cache()
    assert compiled(8) == [1, 1, 1]
    assert compiled(11) == [0, 0, 0]
    assert len(rooms) == 2
    assert compiled(30) == [1, 1, 1]


def test_of_runs_that_have_ended_nothing_large_is_copied(monkeypatch):
    """Two-time kernels take averages of populations; all of a run would be there twice."""
    solved = partial(dmft.solve, problem(), **FEW | {"two_time": True, "observables": ["feature_kernel"]})
    alone = solved().feature_kernel_two_time
    laid, ended, copied = watched(monkeypatch), [], []
    values_of, recorded = solve.values_of, loop.recorded

    def there():
        return sum(a.nbytes for a in jax.live_arrays())

    def ending(run, trained, *given):
        ended.append((there(), sum(a.nbytes for a in jax.tree.leaves(trained.state))))
        return values_of(run, trained, *given)

    def recording(*given):
        copied.append(there() - ended[-1][0])
        return recorded(*given)

    monkeypatch.setattr(solve, "values_of", ending)
    monkeypatch.setattr(loop, "recorded", recording)
    for beside, platforms, partly_from in ((1, (), 0), (3, ("cpu",), np.inf)):
        monkeypatch.setattr(layout, "SIDE_BY_SIDE", platforms)
        monkeypatch.setattr(layout, "PARTLY_ELSEWHERE", partly_from)
        np.testing.assert_allclose(solved().feature_kernel_two_time, alone, atol=1e-12)
        assert (laid[-1].together, laid[-1].partly) == (beside, beside == 1)
        assert len(copied) == 3
        for more, (_, state) in zip(copied, ended, strict=True):
            assert more < state / beside / 100
        copied.clear()
        ended.clear()
    # twin: averages with the weight of another number of particles
    member = layout.member

    def heavier(*given):
        network = member(*given)
        populations = (dataclasses.replace(p, measure=2 * p.measure) for p in network.populations)
        return dataclasses.replace(network, populations=tuple(populations))

    monkeypatch.setattr(layout, "member", heavier)
    assert abs(solved().feature_kernel_two_time - alone).max() > 0.1


def test_runs_fit_on_the_device_that_has_least_left(monkeypatch):
    """Of two that are not alike."""
    monkeypatch.setattr(layout, "memory_estimate", lambda *_, **__: (10**8, 0))
    monkeypatch.setattr(layout, "numbers_bytes", lambda _: 0)
    monkeypatch.setattr(
        layout, "Mesh", lambda devices, axes: mock.Mock(shape=dict(zip(axes, devices.shape, strict=True)))
    )
    run = prepared(**{**_defaults(), "problem": problem(), "particles": 64})["run"]

    def chosen(*left):
        devices = tuple(mock.Mock(platform="gpu", left=each) for each in left)
        monkeypatch.setattr(layout, "available_bytes", lambda device: device.left)
        return layout.choose(dataclasses.replace(run, devices=devices), run.first_capacity, 64, None)

    assert chosen(10**9, 10**9).together == 2 * chosen(10**9).together == 10
    for left in ((10**9, 4 * 10**8), (4 * 10**8, 10**9)):
        assert chosen(*left).together == 4
        assert chosen(*left).share == 1
    # where one run does not fit on the fuller one, its particles go over both
    assert chosen(10**9, 6 * 10**7).share == 2


def leave_out_empty_room(monkeypatch):
    """Products leave out room that is empty, however small they are."""
    monkeypatch.setattr(layout, "SIDE_BY_SIDE", ("cpu",))
    leave_out_rows(monkeypatch)
    monkeypatch.setattr(basis, "LARGE", 1)


def leave_out_rows(monkeypatch):
    """Of matrices' room, in four parts, which compile in a third of the time of thirteen."""
    for threshold in ("PARTLY_FROM", "PARTLY_ELSEWHERE"):
        monkeypatch.setattr(layout, threshold, 0)
    monkeypatch.setattr(rows, "PARTS", (3, 8, 19, 32))


@pytest.mark.parametrize("network", ["layers", "images"])
def test_products_with_directions_that_were_met_leave_out_none_of_them(network, monkeypatch):
    of = partial(dmft.solve, {"layers": problem, "images": on_images}[network](), **FEW)
    whole, laid = of(), watched(monkeypatch)
    leave_out_empty_room(monkeypatch)
    few = of()
    assert (laid[0].together, laid[0].partly) == (1, True)
    assert few.attrs["directions"] == whole.attrs["directions"]
    assert furthest(few, whole) < 1e-12


@pytest.mark.slow
def test_of_products_with_too_few_rows_something_is_missing(monkeypatch):
    whole, first = dmft.solve(problem(), **FEW), rows.Rows._first
    leave_out_empty_room(monkeypatch)
    monkeypatch.setattr(rows.Rows, "_first", lambda self, formula, n: first(self, formula, n - 1))
    together.advance_together.clear_cache()
    assert furthest(dmft.solve(problem(), **FEW), whole) > 1e-4
    together.advance_together.clear_cache()


def test_a_room_that_is_too_small_repeats_all_runs_with_twice_as_much(monkeypatch):
    monkeypatch.setattr(layout, "SIDE_BY_SIDE", ("cpu",))
    usual = layout.Layout.begun
    rooms = []

    def begun(self, run, rule, capacity, streams):
        rooms.append((capacity, len(streams)))
        return usual(self, run, rule, capacity, streams)

    monkeypatch.setattr(layout.Layout, "begun", begun)
    monkeypatch.setattr(layout.Run, "first_capacity", 6)
    found = dmft.solve(problem(), **FEW)
    assert rooms[:2] == [(6, 3), (12, 3)]
    assert 6 < found.attrs["directions"] <= rooms[-1][0]


def largest_first(gram, floor):
    """Pivots, each the largest of what the ones before leave."""
    left, taken = np.array(gram), []
    while left.diagonal().max() > floor:
        p = int(left.diagonal().argmax())
        taken.append(p)
        left = left - np.outer(left[p], left[p]) / left[p, p]
    return taken


@pytest.mark.parametrize("rank", [40, 7])
@jax.enable_x64(True)
def test_pivots_in_panels_are_those_of_one_column_after_the_other(rank):
    factor = np.random.default_rng(rank).standard_normal((40, rank))
    gram, floor = factor @ factor.T, 1e-8
    taken = largest_first(gram, floor)
    assert basis.PANEL < 40  # more than one panel
    pivots, found = jax.jit(basis._pivots)(gram, np.full(40, floor))
    assert pivots[: int(found)].tolist() == taken
    assert sorted(pivots.tolist()) == list(range(40))
    # the order of sizes alone is another
    assert np.argsort(-gram.diagonal())[:rank].tolist() != taken


@pytest.mark.parametrize("rank", [40, 39])
@jax.enable_x64(True)
def test_many_vectors_that_are_all_new_are_taken_in_their_order(rank, monkeypatch):
    """With one that is not, the largest is taken first."""
    factor = np.random.default_rng(rank).standard_normal((40, rank))
    if rank < 40:
        factor[0] = factor[-1]
    gram, floor = jnp.asarray(factor @ factor.T), jnp.full(40, 1e-8)
    sought = largest_first(gram, 1e-8)
    monkeypatch.setattr(basis, "MANY", 40)
    basis._pivots.clear_cache()
    pivots, number = basis._pivots(gram, floor)
    basis._pivots.clear_cache()
    assert number == len(sought) == rank
    assert sorted(pivots.tolist()) == list(range(40))
    assert pivots[:rank].tolist() == (sought if rank < 40 else list(range(40)))
    # which is another order
    assert sought != sorted(sought)
    # what is taken spans all
    assert np.linalg.svd(factor[np.asarray(pivots[:rank])], compute_uv=False)[-1] ** 2 > 1e-8


def many():
    """Directions that are known, and three blocks: of vectors that are all new, one of them hardly, and one not."""
    rng, crowd = np.random.default_rng(3), population.particles(np.zeros((0, 64)))
    Q = 8 * np.linalg.qr(rng.standard_normal((64, 5)))[0].T
    new = rng.standard_normal((24, 64))
    hardly, known = new.copy(), new.copy()
    hardly[-1] = new[:7].sum(0) + 4e-6 * new[-1]  # of a tolerance of 1e-6
    known[3] = new[[5, 9]].sum(0)
    shown = rng.standard_normal((24, 5)) @ Q
    return Q, [shown + each for each in (new, hardly, known)], crowd


@pytest.fixture
def of_many(monkeypatch):
    """Blocks of any size are seen first whether they are new."""
    monkeypatch.setattr(basis, "MANY", 1)
    basis._pivots.clear_cache()
    yield monkeypatch
    basis._pivots.clear_cache()


@jax.enable_x64(True)
def test_many_vectors_are_written_in_new_directions_whatever_goes_beside(of_many):
    Q, blocks, crowd = many()

    def decomposed(v, **axes):
        return basis.decompose(v, Rows(jnp.asarray(Q)), crowd, 1e-6, **axes)[:4]

    def beside(**axes):
        return jax.vmap(partial(decomposed, **axes), axis_name="members")

    def all_are_written(vs, found, ranks):
        for v, known, R, q, rank in zip(vs, *found, strict=True):
            np.testing.assert_allclose(known @ Q + R @ q, v, atol=1e-11)
            everything = np.concatenate([Q, q[:rank]])
            np.testing.assert_allclose(everything @ everything.T / 64, np.eye(len(everything)), atol=1e-11)
        assert found[3].tolist() == ranks

    def on_host(found):
        return [np.asarray(a) for a in found]

    vs, of_one = np.stack(blocks), jax.jit(decomposed)
    alone = [on_host(of_one(v)) for v in blocks]
    each = [np.stack(a) for a in zip(*alone, strict=True)]
    all_are_written(vs, each, [24, 24, 23])
    together = on_host(jax.jit(beside(together="members"))(vs))
    all_are_written(vs, together, [24, 24, 23])
    # what is new is the same, whatever is beside it: in a block that is hardly new to rounding over 4e-6
    for a, b in zip(together, each, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    # where all are new nothing is sought: a branch, of a condition that members have in common
    branches = [str(jax.make_jaxpr(beside(**axes))(vs)).count("cond[") for axes in ({}, {"together": "members"})]
    assert branches[1] == branches[0] + 1
    # the first decides for all
    led = on_host(jax.jit(beside(leader="members"))(np.stack([blocks[2], blocks[2] + 1e-3 * blocks[0]])))
    np.testing.assert_allclose(led[2][0], alone[2][2], atol=1e-11)
    assert led[3].tolist() == [23, 23]
    # twin: the largest first, in other directions
    of_many.setattr(basis, "MANY", 256)
    basis._pivots.clear_cache()
    assert abs(on_host(jax.jit(beside(together="members"))(vs))[2][0] - alone[0][2]).max() > 0.1


@partial(jax.jit, static_argnames="of")
def decomposed(v, Q, of):
    """Compiled once for each `of`, which says what was changed in place."""
    del of
    return basis.decompose(v, Rows(Q), population.particles(np.zeros((0, 64))), 1e-6)


@pytest.mark.parametrize("new", [0, 2, 5, 16])
@jax.enable_x64(True)
def test_products_of_what_is_new_leave_out_no_row_that_is(new, monkeypatch):
    rng = np.random.default_rng(new)
    Q = 8 * np.linalg.qr(rng.standard_normal((64, 9)))[0].T
    v = rng.standard_normal((16, 9)) @ Q + rng.standard_normal((16, new)) @ rng.standard_normal((new, 64))
    whole = decomposed(v, Q, of="all")
    monkeypatch.setattr(basis, "LARGE", 1)
    few = decomposed(v, Q, of="parts")
    assert int(few.rank) == new
    for a, b in zip(few[:4], whole[:4], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    taken = []
    basis.of_new(lambda n: taken.append(n) or jnp.zeros((n, 1)), np.int32(new), v, Q)
    assert taken == [4, 16]
    # of fewer rows than are new something is missing
    monkeypatch.setattr(basis, "SHARES", (16,))
    known, R, q = map(np.asarray, decomposed(v, Q, of="too few")[:3])
    assert new < 2 or abs(known @ Q + R @ q - v).max() > 1e-3


@pytest.mark.parametrize("count", [0, 3, 4, 9, 10])
def test_rows_are_placed_in_blocks_that_hold_all_that_are_new(count):
    array, new = np.zeros((30, 2)), np.random.default_rng(0).standard_normal((10, 2))
    array[:7] = 1.0
    new[count:] = 0.0
    placed = jax.jit(rows.placed)
    found = placed(array, new, 7, count)
    np.testing.assert_array_equal(found, placed(array, new, 7))
    # of a block less some are missing
    fewer = placed(array, new, 7, count - 3)
    assert bool((np.asarray(fewer) == found).all()) == (count == 0)


@jax.enable_x64(True)
def test_long_products_are_sums_over_pieces_on_a_gpu_alone():
    v, a = np.random.default_rng(0).standard_normal((2, 4, 2**14))
    in_pieces = jax.jit(partial(rows._in_pieces, count=4))
    np.testing.assert_allclose(in_pieces(v, a), v @ a.T, rtol=1e-12)
    assert abs(in_pieces(v[:, ::-1].copy(), a) - v @ a.T).max() > 1
    traced = jax.jit(lambda v: Rows(jnp.asarray(a)).across(v)).trace(v)
    lowered = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cuda", "cpu")}
    assert ["4x4x4096xf64" in lowered[name] for name in ("cuda", "cpu")] == [True, False]
    # many products fill a device as they are, and short vectors have no pieces
    for shapes in (((2048, 2**14), (2048, 2**14)), ((4, 2**12), (4, 2**12))):
        v, a = (jax.ShapeDtypeStruct(shape, float) for shape in shapes)
        assert "case" not in jax.jit(rows._products).trace(v, a).lower(lowering_platforms=("cuda",)).as_text()


def test_calls_of_the_loop_take_at_least_some_time(monkeypatch):
    leave_out_rows(monkeypatch)
    calls, numbers = [], []
    advance = together.advance_together
    monkeypatch.setattr(
        together, "advance_together", lambda *given, **named: calls.append(given[4]) or advance(*given, **named)
    )
    for least, slow in ((1e-9, 0.0), (1e9, 0.0), (1e9, 1e10)):
        calls.clear()
        monkeypatch.setattr(repetitions, "LEAST", least)
        monkeypatch.setattr(repetitions, "SLOW", slow)
        numbers.append(dmft.solve(problem(), **FEW))
        # 5 steps: one after the other, or one and all others, and for the next scrambles all; or all, which are few
        first = [1, 2, 3, 4, 5] if least < 1 else [5] if slow else [1, 5]
        assert calls == [*first, *(first if least < 1 else [5]), *(first if least < 1 else [5])]
    assert furthest(*numbers[:2]) == furthest(*numbers[1:]) == 0


def test_calls_of_tiny_problems_begin_with_a_bounded_number_of_steps():
    tiny, slow = (mock.Mock(kept=None, stride=50, operations=lambda _, each=each: each) for each in (1.0, 1e10))
    assert [repetitions._stride(run, 8) for run in (tiny, slow)] == [repetitions.AT_FIRST, 50]


OVER_DEVICES = """
import json
import dmft
from dmft.drivers import layout
from test_layout import FEW, problem
laid, choose = [], layout.choose
layout.choose = lambda *given: laid.append(choose(*given)) or laid[-1]
found = []
for devices, scrambles, needed in ((1, 3, 1), (2, 3, 1), (4, 2, 1), (4, 4, 1), (4, 4, 2)):
    if needed == 2:  # a run that does not fit on a device, of four that share the memory of a host
        layout.available_bytes = lambda device: int(4 * 0.6 * bytes_of_one)
        from dmft.drivers import room
        room.available_bytes = lambda device: 10**12
    solved = dmft.solve(problem(), devices=devices, **(FEW | {"scrambles": scrambles}))
    bytes_of_one = solved.attrs["memory_estimate"] if devices == 1 else bytes_of_one
    mesh = laid[-1].mesh
    found.append([laid[-1].together, None if mesh is None else list(mesh.devices.shape), solved.prediction.values.tolist()])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_runs_go_over_devices_first_and_particles_where_memory_asks_for_it():
    one, two, left_over, all_of, large = on_virtual_devices(4, OVER_DEVICES)
    assert [each[:2] for each in (one, two, left_over, all_of)] == [
        [1, None],
        [2, [2, 1]],
        [2, [2, 2]],
        [4, [4, 1]],
    ]
    assert large[1] == [2, 2]
    np.testing.assert_allclose(two[2], one[2], atol=1e-12)
    np.testing.assert_allclose(large[2], all_of[2], atol=1e-12)
    for count, found in ((2, left_over), (4, all_of)):
        alone = dmft.solve(problem(), **(FEW | {"scrambles": count}))
        np.testing.assert_allclose(found[2], alone.prediction.values, atol=1e-12)
    assert abs(np.array(left_over[2]) - np.array(all_of[2])).max() > 1e-6


def test_where_networks_are_looked_at_runs_go_one_by_one(monkeypatch):
    monkeypatch.setattr(layout, "SIDE_BY_SIDE", ("cpu",))
    run = prepared(
        **{**_defaults(), "problem": problem(), "particles": 64, "scrambles": 4, "observables": ["sharpness"]}
    )["run"]
    assert layout.choose(run, 24, 4, None) == layout.Layout()
    assert layout.choose(dataclasses.replace(run, curvature=()), 24, 4, None).together == 4


def test_kernels_are_for_runs_that_are_large_each_and_fit_on_every_device(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(layout, "available_bytes", lambda _: 10**11)
    monkeypatch.setattr(layout, "memory_estimate", lambda *_, **__: (10**8, 0))
    monkeypatch.setattr(layout, "Mesh", mock.Mock())
    good, bad = (mock.Mock(platform="gpu") for _ in range(2))
    monkeypatch.setattr(trial, "passed", lambda device: device is good)

    def chosen(samples, steps, count, devices=(good,), particles=4096, **changed):
        task = dmft.Task(rng.standard_normal((samples, 4)), rng.standard_normal(samples))
        of = dmft.Problem(dmft.MLP(3), task, dmft.GradientDescent(0.3, steps))
        run = prepared(**{**_defaults(), "problem": of, "particles": 64})["run"]
        run = dataclasses.replace(run, devices=devices, particles=particles, **changed)
        return layout.choose(run, run.first_capacity, count, None)

    small = chosen(10, 100, 64)
    assert (small.together, small.partly, small.by_kernels) == (64, False, False)
    for count in (1, 2, 64):
        large = chosen(100, 30, count, particles=2**16)
        assert (large.together, large.partly, large.by_kernels) == (1, True, True)
    assert not chosen(100, 30, 2, particles=2**16, dtype="float32").by_kernels
    assert not chosen(100, 30, 2, particles=2**16 + 2).by_kernels
    assert chosen(100, 30, 2, (good, good), particles=2**16).by_kernels
    assert not chosen(100, 30, 2, (good, bad), particles=2**16).by_kernels


def _defaults():
    return {name: one.default for name, one in inspect.signature(dmft.solve).parameters.items()}
