"""Timings of the hot loops: `make bench` (off by default)."""

import growth
import programs
import pytest
import torch

import dmft
import finite_nets
from conftest import reference_problem


@pytest.mark.parametrize("particles", [1024, 4096])
def test_solve(benchmark, particles):
    problem = reference_problem()
    arguments = {"particles": particles, "scrambles": 2}
    dmft.solve(problem, **arguments)  # compiles
    benchmark(dmft.solve, problem, **arguments)


@pytest.mark.parametrize(("width", "seeds"), [(128, 200), (1024, 4)])
def test_train_ensemble(benchmark, width, seeds):
    arguments = {"widths": [width], "seeds": seeds, "observables": ["prediction"]}
    benchmark(finite_nets.train_ensemble, reference_problem(), **arguments)


def test_steps_that_scripts_measure(monkeypatch):
    monkeypatch.setattr(programs, "SAMPLES", 3)
    cpu = torch.device("cpu")
    for network, shape in ((dmft.MLP(2), (8,)), (programs.TRANSFORMER, (programs.TOKENS, programs.CHANNELS))):
        described = programs.problem(network, shape)
        assert programs.trained(described, 32, 2, cpu, program=True)[0] > 0
        assert programs.mapped(described, 32, 2, cpu)[0][0] > 0


def test_slopes_of_powers():
    n = [1, 2, 4, 8]
    powers = {"square": [i**2 for i in n], "later": [1, 1, 1, 8]}
    assert growth.slopes("N", n, powers) == "slopes in N: square 2.00 (2.00), later 0.90 (3.00)"
    # in the hidden matrices, of which one layer has none
    assert growth.slopes("L", [1, 2, 3, 5], {"time": [0, 1, 2, 4]}) == "slopes in L - 1: time 1.00 (1.00)"
