"""Timings of the hot loops: `make bench` (off by default)."""

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
