"""Equal blocks of programs: one loop of compiled code, which makes the numbers that blocks one by one make."""

from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

import dmft
from dmft.drivers import run as runs
from dmft.engine import flow, loop
from dmft.specs.networks.program import traced

SHARED = 1e-9  # relative, of numbers that rounding alone tells apart


def shown(xp, h, square, gain, b):
    return xp.tanh(gain * h / xp.sqrt(square + 0.3)) + 0.2 * b


@dataclass(frozen=True)
class Branches(dmft.Architecture):
    """Blocks with all that a block may have: wide branches, a matrix used twice, a vector, a number, an average."""

    count: int = 3
    frozen: tuple = (3,)
    scale: float = traced(default=0.6)

    def program(self, net, x):
        h = net.blocks(self.count, self.block, net.read("W0", x, to="stream"))
        h = net.blocks(2, self.block, h)
        return net.layer(h, net.activate(dmft.tanh(), h))

    def block(self, net, h):
        wide = dmft.Population("branch", width=2)
        square, gain, b = net.average(h, h), net.number("gain", start=1.2), net.vector("b", of="stream")
        features = net.layer(h, net.local(shown, h, square, gain, b))
        u = net.apply("U", features, to=wide)
        u = net.layer(u, net.activate(dmft.tanh(), net.apply("V", net.activate(dmft.tanh(), u), to=wide)))
        return h + self.scale * (
            net.apply("D", u, to="stream") + 0.3 * net.apply("D", net.activate(dmft.tanh(), u), to="stream")
        )


def data(outputs=1):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 5))
    return dmft.Task(x, x[:, :outputs] if outputs > 1 else x[:, 0])


def problem(network, outputs=1, steps=2):
    return dmft.Problem(network, data(outputs), dmft.GradientDescent(0.2, steps=steps, momentum=0.5, weight_decay=0.01))


@pytest.mark.filterwarnings("ignore:the weight matrices met", "ignore:standard errors of")
@pytest.mark.parametrize(
    "network",
    [
        dmft.ResidualMLP(4, dmft.relu(), bias=0.3, frozen=(3,)),
        pytest.param(dmft.ResidualMLP(4, dmft.linear(), bias=0.3), marks=pytest.mark.slow),
        pytest.param(Branches(), marks=pytest.mark.slow),
    ],
    ids=["relu", "linear", "own"],
)
def test_blocks_in_a_loop_are_blocks_one_by_one(network, monkeypatch):
    found = []
    for least in (2, 10):
        monkeypatch.setattr(runs, "STACKED_FROM", least)
        everything = ["prediction", "loss", "feature_kernel", "gradient_kernel", "ntk"]
        numerics = {"particles": 64, "scrambles": 2, "two_time": True, "observables": everything}
        found.append(dmft.solve(problem(network), **numerics))
    looped, alone = found
    for name, value in alone.data_vars.items():
        if value.dtype.kind == "f":
            scale = abs(value).max().item()
            np.testing.assert_allclose(looped[name], value, rtol=0, atol=SHARED * scale, err_msg=name)
    # layers in another order, as of blocks that are held the wrong way round, would not have passed
    swapped = alone["feature_kernel"].isel(layer=slice(None, None, -1))
    assert abs(swapped.values - looped["feature_kernel"].values).max() > 1e-3


def operations(count, least, monkeypatch):
    """Of a step of training, loops counted once."""
    monkeypatch.setattr(runs, "STACKED_FROM", least)
    run = runs.Run(problem(dmft.ResidualMLP(count + 1)), np.arange(3), 16, 1e-3, centered=True)
    network = jax.eval_shape(lambda: run.initial(run.blank_populations(32), 32))

    def step(network):
        return flow.observed_step(
            network, run.rule, 1, run.form, lambda after, seen: loop.values(after, run.rule, seen, 1, run.form)
        )[2]

    return jax.jit(step).trace(network).jaxpr.jaxpr.pretty_print(use_color=False).count("\n")


def test_the_code_of_many_blocks_is_that_of_few(monkeypatch):
    looped = [operations(count, 2, monkeypatch) for count in (3, 10)]
    alone = [operations(count, 100, monkeypatch) for count in (3, 10)]
    assert looped[1] == looped[0]
    assert alone[1] > 2 * alone[0]


@dataclass(frozen=True)
class Wrong(dmft.Architecture):
    what: str = "outside"

    def program(self, net, x):
        h = net.read("W0", x, to=0)
        first, met = net.activate(dmft.tanh(), h), []

        def block(inner, h):
            met.append(h)
            v = inner.activate(dmft.tanh(), h)
            if self.what == "outside":
                return h + inner.apply("W", first, to=0)
            if self.what == "shared":
                return h + net.apply("W", v, to=0)
            if self.what == "unequal" and len(met) == 2:
                v = inner.activate(dmft.erf(), h)
            if self.what == "read":
                v = inner.read("W", x, to=0)
            if self.what == "nested":
                return inner.blocks(2, block, h)
            u = inner.apply("W", v, to="other" if self.what == "ends" else 0)
            return u if self.what == "ends" else h + u

        h = net.blocks(-1 if self.what == "negative" else 2, block, h)
        return net.layer(h, net.activate(dmft.tanh(), h))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("outside", "uses a field from outside"),
        ("shared", "of another interpreter"),
        ("unequal", "differ from each other"),
        ("read", "read it before"),
        ("nested", "made of blocks"),
        ("ends", "returns a field of the population"),
        ("negative", "count=-1"),
    ],
)
def test_what_is_no_block_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        problem(Wrong(kind))


def test_names_of_blocks_are_their_own():
    sketch = problem(replace(Branches(), frozen=())).sketch
    assert [part.name for part in sketch.matrices][:4] == ["U.1", "V.1", "D.1", "U.2"]
    together = sketch.stacked(3)
    assert [(part.name, part.layers) for part in together.matrices[:2]] == [("U.1", (1, 4, 7)), ("V.1", (2, 5, 8))]
    assert together.readout_layer == sketch.readout_layer
    assert together.groups[:2] == ((0, 2, 4), (1, 3, 5))
