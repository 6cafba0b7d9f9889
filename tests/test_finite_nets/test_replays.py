"""Steps that repeat: what a GPU replays is what would have been taken."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch

import dmft
import finite_nets
from dmft.errors import DivergenceError
from finite_nets.device import replays
from finite_nets.device.precision import PRECISIONS
from finite_nets.training import entrywise, perceptrons, programs

STEPS = 24
RNG = np.random.default_rng(0)
WORDS = dmft.Task(RNG.standard_normal((4, 3, 2)), [1, -1, 1, -1])
IMAGES = dmft.Task(RNG.standard_normal((4, 6)), [1, -1, 1, -1])
CASES = {
    "descent": dmft.GradientDescent(0.3, STEPS),
    "momentum and decay": dmft.GradientDescent(0.1, STEPS, momentum=0.8, weight_decay=0.01),
    "batches": dmft.GradientDescent(0.2, STEPS, batches=dmft.random_batches(4, 2, STEPS)),
    "two rates": dmft.GradientDescent(np.repeat([0.3, 0.1], STEPS // 2), STEPS),
}
BY_ENTRY = {
    "adam": dmft.Adam(np.linspace(0.05, 0.01, STEPS), STEPS, weight_decay=0.1),
    "lion of batches": dmft.Lion(0.01, STEPS, clip=0.5, batches=dmft.random_batches(4, 2, STEPS)),
    "muon": dmft.Muon(0.02, STEPS),
    "normalised": dmft.NormalizedDescent(0.05, STEPS, norm="all", momentum=0.5),
}


def phases_of(monkeypatch, training, *, room):
    """Phases and places before every step but the first two, on a CPU with delayed updates."""
    monkeypatch.setattr(perceptrons, "room", lambda *_: room)
    problem = dmft.Problem(dmft.MLP(3), IMAGES, training)
    trainer = perceptrons.Trainer(problem, torch.device("cpu"), PRECISIONS["float64"])
    state, found = trainer.start(8, torch.arange(2), 0), []
    with torch.inference_mode():
        for t in range(STEPS):
            seen, trained = trainer.evaluate(state, trainer.meet(t, everything=t == 0), gradients=False)
            moved = [state.weights, *state.slots]
            found.append(tuple((each.phase, *(x.data_ptr() for x in each.tensors_moved())) for each in moved))
            trainer.advance(state, t, seen, trained)
    return found, state


@pytest.mark.parametrize("name", CASES)
def test_phases_of_folded_matrices_come_again(monkeypatch, name):
    rows = 2 if name == "batches" else 4
    found, _ = phases_of(monkeypatch, CASES[name], room=3 * rows)
    between_folds = 3 * (2 if name == "two rates" else 1)
    assert len(set(found[6:])) == between_folds
    assert found[15:18] == found[18:21]
    # and where nothing is folded, none does
    found, _ = phases_of(monkeypatch, CASES[name], room=rows * STEPS)
    assert len(set(found)) == STEPS


def test_a_phase_can_be_entered_again(monkeypatch):
    found, state = phases_of(monkeypatch, CASES["momentum and decay"], room=12)
    last = state.weights.phase
    state.weights.enter(found[1][0][0])
    assert state.weights.phase == found[1][0][0] != last


@pytest.mark.parametrize("name", BY_ENTRY)
def test_steps_of_rules_read_the_time_from_tensors(name):
    """In place, as a graph has to."""
    problem, states = dmft.Problem(dmft.MLP(3), IMAGES, BY_ENTRY[name]), []
    trainer = programs.ProgramTrainer(problem, torch.device("cpu"), PRECISIONS["float64"])
    for of_tensors in (False, True):
        state = trainer.start(8, torch.arange(2), 0)
        places = [x.data_ptr() for each in (state.weights, *state.slots) for x in each.tensors_moved()]
        with torch.inference_mode():
            for t in range(6):
                _, trained = trainer.evaluate(state, trainer.meet(t, everything=t == 0), gradients=False)
                numbers = entrywise.numbers(problem.training, t)
                if of_tensors:
                    numbers = torch.tensor(numbers, dtype=torch.float64)
                entrywise.step(trainer, state, trained, *numbers, replace=not of_tensors)
        after = [x.data_ptr() for each in (state.weights, *state.slots) for x in each.tensors_moved()]
        assert (after == places) == (of_tensors or not problem.training.slots)
        states.append(state.weights.tensors)
    for numbers, tensors in zip(*states, strict=True):
        np.testing.assert_allclose(numbers, tensors, rtol=1e-12, atol=1e-14)  # rounding
    assert abs(states[0][0] - trainer.start(8, torch.arange(2), 0).weights.tensors[0]).max() > 1e-2


class Moves:
    """Whose phase is set from outside."""

    phase = 0.0

    def enter(self, phase):
        self.phase = phase

    def tensors_moved(self):
        return []


def test_states_are_told_apart_by_what_they_are(monkeypatch):
    """-1.0 and -2.0 have one hash."""
    moves, graph, taken = Moves(), mock.Mock(), mock.Mock()
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    steps = replays.Replays(torch.device("cpu"), [moves])
    monkeypatch.setattr(steps, "_room", lambda: True)
    monkeypatch.setattr(steps, "_record", lambda key, _: steps._recorded.update({key: replays.Recorded(graph, (0.0,))}))
    for phase in (-1.0, -1.0, -2.0):
        moves.phase = phase
        steps.step("a step", taken)
    assert hash(-1.0) == hash(-2.0)
    assert (taken.call_count, graph.replay.call_count) == (2, 1)
    # of states that never come again few are remembered
    monkeypatch.setattr(replays, "MOST", 3)
    for phase in range(10):
        moves.phase = phase
        steps.step("a step", taken)
    assert len(steps._met) <= 3


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Host(dmft.Architecture):
    """Two layers whose activation looks at a number on the host, which no graph can record."""

    gamma0: float = 1.0

    def program(self, net, x):
        def looked_at(xp, h):
            return h * (1.0 if xp is not torch or h.detach().abs().max().item() > 0 else 0.0)

        h = net.read("W0", x, to=0)
        return net.layer(h, net.local(looked_at, h))


NETWORKS = {
    "perceptron": (dmft.MLP(3), IMAGES),
    "residual": (dmft.ResidualMLP(3), IMAGES),
    "transformer": (dmft.Transformer(blocks=2, head_dim=4, causal=True), WORDS),
}


def ends(problem, device, **options):
    """Recorded at three steps alone, so that there are others to replay."""
    return finite_nets.train_ensemble(
        problem, widths=[32, 128], seeds=5, device=device, save_steps=[0, 13, STEPS], dtype="float64", **options
    )


def counted(monkeypatch):
    """How often steps are recorded and taken."""
    record, found = replays.Replays._record, []

    def watched(self, key, taken):
        record(self, key, taken)
        found.append(key in self._recorded)

    monkeypatch.setattr(replays.Replays, "_record", watched)
    return found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", [*CASES, *BY_ENTRY])
def test_replayed_steps_are_those_of_a_cpu(monkeypatch, network, name):
    problem = dmft.Problem(*NETWORKS[network], (CASES | BY_ENTRY)[name])
    found = counted(monkeypatch)
    replayed, taken = ends(problem, "cuda"), ends(problem, "cpu")
    assert found
    assert all(found)
    for variable in ("prediction", "loss"):
        np.testing.assert_allclose(replayed[variable], taken[variable], rtol=1e-8, atol=1e-9)
    # another step would be seen
    other = dataclasses.replace(problem, training=dmft.GradientDescent(0.31, STEPS))
    assert abs(ends(other, "cuda").prediction - taken.prediction).max() > 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
def test_explosions_are_noted_at_their_step(monkeypatch):
    problem = dmft.Problem(dmft.CNN(2, 3, dmft.linear()), WORDS, dmft.GradientDescent(4.0, STEPS))
    found = counted(monkeypatch)
    for device in ("cpu", "cuda"):
        with pytest.raises(DivergenceError, match=r"width 32 diverge, the first at step 5; .* the first at step 6"):
            ends(problem, device)
    assert found  # from step 2 on
    assert all(found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
def test_what_cannot_be_recorded_is_taken(monkeypatch):
    problem = dmft.Problem(Host(), IMAGES, CASES["descent"])
    found = counted(monkeypatch)
    replayed, taken = ends(problem, "cuda"), ends(problem, "cpu")
    assert found
    assert not any(found)
    np.testing.assert_allclose(replayed.prediction, taken.prediction, rtol=1e-9)
