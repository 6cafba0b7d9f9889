"""Coordinate check of modules of one's own: planted faults are named, correct modules pass."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import comparisons
import finite_nets
from comparisons import UnresolvedError
from comparisons.coordinates import _trend, judged

WIDTHS, SEEDS = [64, 128, 256, 512], 4
RATE = 0.3


class Network(nn.Module):
    """A perceptron in mean-field scaling, with one planted fault."""

    def __init__(self, N, fault=""):
        super().__init__()
        narrow = 32 if fault == "tied" else N
        self.read = nn.Linear(8, N)
        self.hidden = nn.Linear(N, narrow)
        self.top = nn.Linear(narrow, N)
        self.out = nn.Linear(N, 1)
        with torch.no_grad():
            for part in (self.read, self.hidden, self.top, self.out):
                nn.init.normal_(part.weight, std=part.in_features**-0.5)
                nn.init.zeros_(part.bias)
            self.out.weight.mul_(N**-0.5)
            if fault == "start":
                self.top.weight.mul_(N**0.5)
        if fault == "frozen":
            self.hidden.weight.requires_grad_(False)  # and not its bias

    def forward(self, x):
        for part in (self.read, self.hidden, self.top):
            x = torch.tanh(part(x))
        return self.out(x)


def descent(factor=None):
    """SGD at mean-field rates; `factor` (name, width) -> of the rate."""

    def optimizer(module, N):
        groups = []
        for name, part in module.named_children():
            own = 1.0 if factor is None else factor(name, N)
            fan_in = part.in_features
            rate = N / fan_in if name != "out" else 1 / N
            groups.append({"params": [part.weight], "lr": RATE * rate * own})
            groups.append({"params": [part.bias], "lr": RATE * (N if name != "out" else 1) * own})
        return torch.optim.SGD(groups, lr=RATE)

    return optimizer


def adam(factor=None):
    """Adam at muP rates: over the fan-in of weights; `factor` (name, width) -> of the rate."""

    def optimizer(module, N):
        groups = []
        for name, part in module.named_children():
            own = 0.05 if factor is None else 0.05 * factor(name, N)
            groups += [{"params": [part.weight], "lr": own / part.in_features}, {"params": [part.bias], "lr": own}]
        return torch.optim.Adam(groups, eps=1e-12)

    return optimizer


def batch():
    rng = np.random.default_rng(0)
    return rng.standard_normal((16, 8)), rng.choice([-1.0, 1.0], (16, 1))


def check(fault="", optimizer=None, **options):
    arguments = {"widths": WIDTHS, "seeds": SEEDS, "steps": 2} | options
    return comparisons.coordinate_check(
        lambda N: Network(N, fault), batch(), optimizer=optimizer or descent(), **arguments
    )


@pytest.mark.parametrize("optimizer", [descent(), adam()], ids=["sgd", "adam"])
def test_a_correct_module_passes(optimizer):
    found = check(optimizer=optimizer)
    assert found.passed, str(found)
    assert [each.module for each in found.verdicts] == ["read", "hidden", "top", "out", "(output)"]
    assert all(each.text == "flat within 1/N" for each in found.verdicts)
    assert found.verdicts[3].start.slope == pytest.approx(-0.5, abs=0.25)  # of the readout, as it should


PLANTED = {
    "readout's rate": ("", descent(lambda name, N: N**0.5 if name == "out" else 1.0), "out", "update", 0.5),
    "readout's rate under Adam": (
        "",
        adam(lambda name, N: (N / 64) ** 0.5 if name == "out" else 1.0),
        "out",
        "update",
        0.5,
    ),
    "lazy hidden matrix": ("", descent(lambda name, N: N**-0.5 if name == "top" else 1.0), "top", "update", -0.5),
    "no 1/sqrt(N)": ("start", descent(), "top", "start", 0.5),
    "tied width": ("tied", descent(), "hidden", "tied", 0.0),
    "frozen": ("frozen", descent(), "hidden", "frozen", 0.0),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_named(name):
    fault, optimizer, module, kind, exponent = PLANTED[name]
    found = check(fault, optimizer)
    assert list(found.faults) == [module], str(found)
    one = found.faults[module]
    assert one.fault == kind
    assert one.exponent == pytest.approx(exponent)
    text = {
        "update": f"misses a factor N^{-exponent:.2g}",
        "start": "at the start: its start or its multiplier misses a factor N^-0.5",
        "tied": "has 32 entries at every N",
        "frozen": "frozen: parameters of it do not move",
    }[kind]
    assert text in one.text
    assert one.text in str(found)
    told = json.loads(found.to_json())
    assert not told["passed"]
    assert [row["module"] for row in told["modules"] if row["fault"] == kind] == [module]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["correct", "correct, Adam", *PLANTED])
def test_at_widths_64_to_1024_with_5_seeds(name):
    size = {"widths": [64, 128, 256, 512, 1024], "seeds": 5, "steps": 4}
    if name.startswith("correct"):
        assert check(optimizer=adam() if "Adam" in name else None, **size).passed
        return
    fault, optimizer, module, kind, exponent = PLANTED[name]
    found = check(fault, optimizer, **size)
    assert [(each.module, each.fault) for each in found.faults.values()] == [(module, kind)], str(found)
    assert found.faults[module].exponent == pytest.approx(exponent)


def test_sizes_are_those_of_plain_pytorch():
    x, y = (torch.tensor(part, dtype=torch.float32) for part in batch())
    made = []

    def make(N):
        made.append(Network(N))
        return made[-1]

    found = finite_nets.coordinates(make, (x, y), [16, 8], 2, optimizer=descent(), steps=1)
    assert found["width"].values.tolist() == [8, 16]
    module = made[1]  # width 16, seed 1: after one step
    with torch.no_grad():
        h = torch.tanh(module.read(x))
        size = module.hidden(h).square().mean().sqrt().item()
    one = found.sel(width=16, seed=1, module="hidden")
    assert one["size"].sel(step=1).item() == pytest.approx(size, rel=1e-5)
    assert one["own"].sel(step=1).item() < one["change"].sel(step=1).item()  # what comes before has changed, too
    assert one["own"].sel(step=0).item() == one["change"].sel(step=0).item() == 0
    assert found["entries"].sel(module="read").values.tolist() == [8, 16]
    again = finite_nets.coordinates(Network, (x, y), [8, 16], 2, optimizer=descent(), steps=1)
    xr.testing.assert_identical(found.drop_attrs(), again.drop_attrs())


def rows(f, scatter=0.02, widths=(64, 128, 256, 512, 1024)):
    rng = np.random.default_rng(1)
    n = np.array(widths, float)
    y = f(n)[:, None] * (1 + scatter * rng.standard_normal((len(n), 5)))
    return xr.DataArray(y, dims=("width", "seed"), coords={"width": n})


@pytest.mark.parametrize(
    ("f", "kind", "exponent"),
    [
        (lambda n: 2 + 0 * n, "flat", 0.0),
        (lambda n: 2 - 30 / n, "flat", 0.0),
        (lambda n: 1 + 60 / n, "flat", 0.0),
        (lambda n: 0.3 * n**0.5, "power", 0.5),
        (lambda n: 0.3 * n**0.25, "power", 0.25),
        (lambda n: 9 / n, "power", -1.0),
        (lambda n: 0 * n, "zero", 0.0),
        (lambda n: np.where(n > 500, np.nan, 1.0), "not finite", 0.0),
    ],
)
def test_trends(f, kind, exponent):
    found = _trend(rows(f))
    assert found.kind == kind
    assert found.exponent == pytest.approx(exponent, abs=0.03)


def test_what_is_refused():
    with pytest.raises(UnresolvedError, match="2 widths do not tell"):
        check(widths=[8, 16])
    with pytest.raises(UnresolvedError, match="1 seeds do not tell"):
        check(widths=[8, 16, 32], seeds=1)
    options = {"widths": [8, 16, 32], "seeds": 2}
    for error, message, change in (
        (TypeError, "optimizer=0.1 is no function", {"optimizer": 0.1}),
        (TypeError, r"optimizer\(module, 8\) returned float", {"optimizer": lambda module, N: 0.1}),
        (TypeError, "no pair", {"data": 3}),
        (ValueError, "16 inputs and 3 targets", {"data": (batch()[0], np.ones((3, 1)))}),
        (ValueError, r"returns the shape \(16, 1\); the targets have \(16,\)", {"data": (batch()[0], np.ones(16))}),
        (ValueError, "loss='hinge' is unknown", {"loss": "hinge"}),
        (TypeError, "make_module must be a function", {"make_module": Network(4)}),
        (ValueError, "steps=0", {"steps": 0}),
    ):
        arguments = {"make_module": Network, "data": batch(), "optimizer": descent(), **options} | change
        with pytest.raises(error, match=message):
            comparisons.coordinate_check(**arguments)


def test_tokens_and_classes_are_read():
    def make(N):
        return nn.Sequential(nn.Embedding(5, N), nn.Flatten(), nn.Linear(3 * N, 4))

    x, y = torch.randint(5, (6, 3)), torch.arange(6) % 4
    found = finite_nets.coordinates(
        make, (x, y), [8, 16, 32], 2, optimizer=lambda m, N: torch.optim.SGD(m.parameters(), 0.1)
    )
    assert found["gain"].sel(module="0").isnull().all()
    assert [each.module for each in judged(found).verdicts] == ["0", "1", "2", "(output)"]
