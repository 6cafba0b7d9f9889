"""Optimisers of one's own: in the limit, its fluctuations, closed forms and networks, against PyTorch and each other."""

import dataclasses
import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import dmft
import finite_nets
from dmft.limits.by_paths import limit_by_paths
from dmft.specs import parameterization
from figures.report.provenance import in_words
from finite_nets.device.precision import PRECISIONS
from finite_nets.ensembles.budget import Budget
from finite_nets.ensembles.recording import Plan
from finite_nets.training import linear, perceptrons
from finite_nets.training.programs import trainer_of
from oracles import parameter_rate

CPU, DOUBLE = torch.device("cpu"), PRECISIONS["float64"]
STEPS, WIDTH = 6, 12
RNG = np.random.default_rng(5)
X, Y = RNG.standard_normal((5, 3)), np.sign(RNG.standard_normal(5))
TASK = dmft.Task(X[:4], Y[:4], X[4:], Y[4:])


@dataclass(frozen=True)
class Nesterov(dmft.Training):
    """v' = beta v + d, theta' = theta + eta (d + beta v'), d = D - lambda theta."""

    learning_rate: float | tuple[float, ...]
    steps: int = STEPS
    momentum: float = 0.8
    decay: float = 0.0
    batches: tuple[tuple[int, ...], ...] | None = None

    def recurrence(self, t):
        eta, beta, decay = self.rates[t], self.momentum, self.decay
        return [[1 - eta * (1 + beta) * decay, eta * beta**2], [-decay, beta]], [eta * (1 + beta), 1]


@dataclass(frozen=True)
class Wrong(Nesterov):
    """Forgets that theta follows v'."""

    def recurrence(self, t):
        A, b = super().recurrence(t)
        return [[A[0][0], self.rates[t] * self.momentum], A[1]], b


@dataclass(frozen=True)
class QuasiHyperbolic(dmft.Training):
    """m' = beta m + (1 - beta) D, theta' = theta + eta ((1 - nu) D + nu m')."""

    learning_rate: float
    steps: int = STEPS
    beta: float = 0.9
    nu: float = 0.7

    def recurrence(self, t):
        eta, beta, nu = self.rates[t], self.beta, self.nu
        return [[1, eta * nu * beta], [0, beta]], [eta * (1 - nu * beta), 1 - beta]


@dataclass(frozen=True)
class Exchanging(dmft.Training):
    """Two slots, each of which becomes the other: no order of rows overwrites nothing that is needed."""

    learning_rate: float
    steps: int = STEPS

    def recurrence(self, t):
        eta = self.rates[t]
        return [[1 - 0.01 * eta, 0.1 * eta, 0.2 * eta], [0.02, 0.1, 0.5], [0, 0.6, 0]], [0.5 * eta, 1, 0]


@dataclass(frozen=True)
class HeavyBall(dmft.Training):
    """What `dmft.GradientDescent` does with momentum and weight decay."""

    learning_rate: float
    steps: int = STEPS
    momentum: float = 0.6
    decay: float = 0.1

    def recurrence(self, t):
        eta, beta, decay = self.rates[t], self.momentum, self.decay
        return [[1 - eta * decay, eta * beta], [-decay, beta]], [eta, 1]


HEAVY = dmft.GradientDescent(0.3, STEPS, momentum=0.6, weight_decay=0.1)
BATCHES = dmft.random_batches(4, 2, STEPS)
OWN = {
    "nesterov": Nesterov(0.2),
    "nesterov, schedule, decay, batches": Nesterov((0.0, 0.1, 0.2, 0.2, 0.1, 0.1), decay=0.3, batches=BATCHES),
    "quasi-hyperbolic": QuasiHyperbolic(0.4),
    "two slots": Exchanging(0.3),
}


def problem(training, network=None, task=TASK):
    return dmft.Problem(network or dmft.MLP(2, dmft.tanh(0.8), 1.3), task, training)


# ---- recurrences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", OWN.values(), ids=OWN)
def test_memory_kernels_are_those_of_the_recurrence(training):
    D, start = RNG.standard_normal((STEPS, 7)), RNG.standard_normal(7)
    A, b = training.recurrences
    x = np.concatenate([start[None], np.zeros((training.recurrences.slots, 7))])
    path = [start]
    for t in range(STEPS):
        x = A[t] @ x + np.outer(b[t], D[t])
        path.append(x[0])
    d, c = training.memory
    np.testing.assert_allclose(np.outer(d, start) + c @ D, path, atol=1e-14)
    np.testing.assert_array_equal(training.recurrences.initial(), d)
    assert not np.triu(c).any()  # causal
    assert abs(np.outer(d, start) + np.roll(c, 1, axis=1) @ D - path).max() > 1e-3


def test_memory_kernels_of_the_heavy_ball_are_known():
    eta, beta, decay = 0.3, 0.6, 0.1
    d, c = dmft.GradientDescent(eta, STEPS, momentum=beta).memory
    t, s = np.indices(c.shape)
    np.testing.assert_allclose(c, np.where(s < t, eta * (1 - beta ** (t - s).clip(0)) / (1 - beta), 0), atol=1e-15)
    np.testing.assert_array_equal(d, 1)
    d, c = dmft.GradientDescent(eta, STEPS, weight_decay=decay).memory
    np.testing.assert_allclose(d, (1 - eta * decay) ** np.arange(STEPS + 1), atol=1e-15)
    np.testing.assert_allclose(c, np.where(s < t, eta * (1 - eta * decay) ** (t - s - 1.0), 0), atol=1e-15)
    assert (
        abs(Nesterov(eta, momentum=beta).memory.c - dmft.GradientDescent(eta, STEPS, momentum=beta).memory.c).max()
        > 0.1
    )


def test_slots_are_those_that_are_needed():
    given = [
        dmft.GradientDescent(0.1, 2, weight_decay=0.1),
        dmft.GradientDescent(0.1, 2, momentum=0.1),
        OWN["two slots"],
    ]
    assert [each.recurrences.slots for each in given] == [0, 1, 2]
    assert [linear.copies(each.recurrences) for each in given] == [1, 2, 5]
    assert linear.copies(OWN["nesterov"].recurrences) == 2  # nothing is copied
    plan = linear.plans(dmft.GradientDescent(0.3, 2, momentum=0.7, weight_decay=0.1).recurrences)[0]
    # v <- beta v - lambda theta, + D; theta <- theta + eta v: theta is read once and written once
    assert plan.before == (linear.Row(1, 0.7, ((0, -0.1),)),)
    assert (plan.pushed, plan.after) == ((1, 1.0), (linear.Row(0, 1.0, ((1, 0.3),)),))


# ---- networks --------------------------------------------------------------------------------------------------------


def trained(problem, *, program=False):
    """Predictions (step, member, sample, output) in float64, and the state at the end."""
    trainer = trainer_of(problem, CPU, DOUBLE, program=program)
    state = trainer.start(WIDTH, torch.arange(2), 0)
    with torch.inference_mode():
        seen = [fields.output.clone() for fields in trainer.run(state, frozenset(range(STEPS + 1)))]
    return torch.stack(seen).numpy(), state


def by_torch(problem, *, nesterov=True):
    """The same by `torch.optim.SGD`, of member 0 of a perceptron with two layers, not centered."""
    training, gamma0, phi = problem.training, problem.network.gamma0, problem.network.activation
    drawn = perceptrons.Trainer(problem, CPU, DOUBLE).draw(WIDTH, torch.arange(1), 0)
    W0, W1, w = weights = [p[0].clone().requires_grad_() for p in (drawn.first, drawn.hidden[0], drawn.readout)]
    unit = parameter_rate(1.0, gamma0, WIDTH)
    optimiser = torch.optim.SGD(
        weights, lr=1.0, momentum=training.momentum, nesterov=nesterov, weight_decay=training.decay / unit
    )
    x, y, path = torch.tensor(problem.task.x), torch.tensor(problem.task.y), []
    for t in range(STEPS + 1):
        h = x @ W0.T * parameterization.input_scale(x.shape[1])
        h = torch.tanh(phi.gain * h) / phi.gain @ W1.T * parameterization.hidden_scale(WIDTH)
        f = (torch.tanh(phi.gain * h) / phi.gain @ w.T)[:, 0] * parameterization.output_scale(gamma0, WIDTH)
        path.append(f.detach().numpy())
        if t == STEPS:
            break
        batch = problem.batches[t].tolist()
        optimiser.param_groups[0]["lr"] = training.rates[t] * unit
        optimiser.zero_grad()
        ((f[batch] - y[batch]) ** 2 / 2).mean().backward()
        optimiser.step()
    return np.stack(path)


@pytest.mark.parametrize("name", ["nesterov", "nesterov, schedule, decay, batches"])
@pytest.mark.parametrize("program", [False, True])
def test_networks_are_those_of_sgd(name, program):
    given = problem(OWN[name], dmft.MLP(2, dmft.tanh(0.8), 1.3, centered=False))
    found = trained(given, program=program)[0][:, 0, :, 0]
    np.testing.assert_allclose(found, by_torch(given), atol=1e-13)  # rounding of six steps
    assert abs(found - by_torch(given, nesterov=False)).max() > 1e-3
    wrong = dataclasses.replace(given, training=Wrong(**dataclasses.asdict(given.training)))
    assert abs(trained(wrong, program=program)[0][:, 0, :, 0] - found).max() > 1e-3


@pytest.mark.parametrize("training", OWN.values(), ids=OWN)
@pytest.mark.parametrize("room", [0, 6, 1000])
def test_perceptrons_and_programs_agree(training, room, monkeypatch):
    given = problem(training, dmft.ResidualMLP(3, dmft.tanh(), bias=0.3, frozen=(1,)))
    monkeypatch.setattr(perceptrons, "room", lambda *_: room)
    found = trained(given)[0]
    np.testing.assert_allclose(found, trained(given, program=True)[0], atol=1e-12)
    plain = dataclasses.replace(given, training=dmft.GradientDescent(0.2, STEPS))
    assert abs(found - trained(plain)[0]).max() > 1e-3


@pytest.mark.parametrize("training", OWN.values(), ids=OWN)
def test_delayed_updates_are_combined_by_the_memory_kernels(training, monkeypatch):
    monkeypatch.setattr(perceptrons, "room", lambda *_: 1000)
    given = problem(training)
    (matrix,) = trained(given)[1].weights.hidden
    d, c = training.memory
    assert matrix.factor == pytest.approx(d[-1], abs=1e-14)
    share = parameterization.batch_scale(given.network.gamma0, given.batches.shape[1])
    share *= parameterization.hidden_scale(WIDTH)
    steps = training.recurrences.b.any(axis=1)  # that push anything
    found = [weight for _, weight in matrix.weights]
    np.testing.assert_allclose(found, share * c[-1][steps], atol=1e-14)
    assert abs(np.array(found) / share - training.rates[steps]).max() > 1e-2


@dataclass(frozen=True)
class Averaged(dmft.Training):
    """Gradient descent, and the average m' = (1 - beta) m + beta theta', which remembers."""

    learning_rate: float
    steps: int = STEPS
    beta: float = 1e-3

    def recurrence(self, t):
        eta, beta = self.rates[t], self.beta
        return [[1, 0], [beta, 1 - beta]], [eta, beta * eta]


def test_theta_is_not_made_of_its_average(monkeypatch):
    """In single precision: against gradient descent, whose steps these are."""

    def found(training):
        asked = {"observables": ["prediction"], "save_steps": [400]}
        nets = finite_nets.train_ensemble(problem(training), widths=[WIDTH], seeds=2, **asked)
        return nets.prediction.values

    expected = found(dmft.GradientDescent(0.05, 400))
    # to rounding: backward passes start from the loss in one, from the output in the other
    np.testing.assert_allclose(found(Averaged(0.05, 400)), expected, atol=1e-5)
    linear.plan.cache_clear()
    monkeypatch.setattr(linear, "_first", lambda *_: 1)
    assert abs(found(Averaged(0.05, 400)) - expected).max() > 1e-4
    linear.plan.cache_clear()


@pytest.mark.parametrize("eta", [1e-3, 0.3, 20.0])
def test_what_takes_the_direction_is_the_slot_of_momentum(eta):
    kinds = [dmft.GradientDescent(eta, 2, momentum=0.9, weight_decay=0.1 / eta), Nesterov(eta, 2), QuasiHyperbolic(eta)]
    for training in kinds:
        assert {plan.pushed[0] for plan in linear.plans(training.recurrences)} == {1}


def test_memory_is_said_with_all_slots_and_copies():
    for training, copies in ((OWN["nesterov"], 2), (OWN["two slots"], 5)):
        given = problem(training, dmft.CNN(2, 3), dmft.Task(RNG.standard_normal((3, 5, 2)), Y[:3]))
        plain = dataclasses.replace(given, training=dmft.GradientDescent(0.1, STEPS))
        said = [Budget(Plan(p, np.arange(STEPS + 1), frozenset(["loss"])), DOUBLE, CPU, None) for p in (given, plain)]
        state = trainer_of(plain, CPU, DOUBLE).start(WIDTH, torch.arange(1), 0)
        weights = sum(w[0].nbytes for w in state.weights.tensors)
        assert said[0].weight_bytes(WIDTH) - said[1].weight_bytes(WIDTH) == (copies - 1) * weights


# ---- theory ----------------------------------------------------------------------------------------------------------


def test_the_limit_is_the_closed_form_and_the_wrong_recurrence_is_not():
    linear_network = dmft.MLP(1, dmft.linear(), 1.5)
    for training in OWN.values():
        given = problem(training, linear_network)
        found, exact = dmft.solve(given), dmft.two_layer_linear(given)
        for name in ("prediction", "feature_kernel", "gradient_kernel", "ntk"):
            np.testing.assert_allclose(found[name], exact[name], atol=1e-10)
    wrong = dmft.solve(problem(Wrong(0.2), linear_network))
    right = dmft.two_layer_linear(problem(Nesterov(0.2), linear_network))
    assert abs(wrong.prediction - right.prediction).max() > 1e-2


@dataclass(frozen=True)
class ThereAndBack(dmft.Training):
    """Initial weights fade, and come back."""

    learning_rate: float = 0.1
    steps: int = 2

    def recurrence(self, t):
        return [[(0.5, 2.0)[t]]], [self.rates[t]]


def test_the_lazy_limit_is_that_of_small_richness():
    for training in (OWN["nesterov"], OWN["quasi-hyperbolic"]):
        lazy = dmft.lazy_limit(problem(training, dmft.MLP(3, dmft.linear())))
        given = problem(training, dmft.MLP(3, dmft.linear(), gamma0=1e-4))
        small = dmft.solve(given, observables=["prediction"])
        np.testing.assert_allclose(small.prediction, lazy.prediction, atol=1e-6)  # gamma0^2
    wrong = dmft.lazy_limit(problem(Wrong(0.2), dmft.MLP(3, dmft.linear())))
    right = dmft.lazy_limit(problem(Nesterov(0.2), dmft.MLP(3, dmft.linear())))
    assert abs(wrong.prediction - right.prediction).max() > 1e-2
    with pytest.raises(ValueError, match="Nesterov lets initial weights decay, to 0.97"):
        dmft.lazy_limit(problem(Nesterov(0.1, 1, decay=0.2, momentum=0.5)))
    with pytest.raises(ValueError, match="ThereAndBack lets initial weights decay, to 0.5 of"):
        dmft.lazy_limit(problem(ThereAndBack()))


def test_responses_along_paths_carry_the_memory_kernels():
    given = problem(Nesterov((0.3, 0.6, 0.6, 0.3), 4, momentum=0.8, decay=0.3), task=dmft.Task(X[:2], [1.0, -1.0]))
    limit, paths = (
        solver(given, particles=1024, scrambles=4, observables=["prediction", "feature_kernel", "ntk"])
        for solver in (dmft.solve, limit_by_paths)
    )

    def distance(a, b, name):
        """Root mean squares, of the difference over that of its error."""
        error = np.sqrt(np.mean(a[f"{name}_se"].values ** 2 + b[f"{name}_se"].values ** 2))
        return np.sqrt(np.mean((a[name].values - b[name].values) ** 2)) / error

    for name in ("prediction", "feature_kernel", "ntk"):
        assert distance(limit, paths, name) < 4  # four scrambles: Student's t of 3 degrees of freedom
    wrong = dataclasses.replace(given, training=Wrong(**dataclasses.asdict(given.training)))
    other = limit_by_paths(wrong, particles=1024, scrambles=4, observables=["feature_kernel"])
    assert distance(limit, other, "feature_kernel") > 10


def _solved(training):
    return dmft.solve(problem(training), particles=128, scrambles=2, observables=["prediction", "ntk"])


def _fluctuating(training):
    given = problem(training, dmft.MLP(1, dmft.tanh()))
    return dmft.fluctuations(given, particles=128, scrambles=2, draws=8, deflate=False, observables=["prediction"])


def _in_law(training):
    return finite_nets.sample_in_law(problem(training), widths=[16], seeds=3, observables=["prediction"])


@pytest.mark.parametrize("reading", [_solved, _fluctuating, _in_law])
def test_every_reading_of_the_heavy_ball_is_that_of_gradient_descent(reading):
    found, expected, other = (reading(each) for each in (HeavyBall(0.3), HEAVY, Nesterov(0.3, decay=0.1)))
    for name in expected.data_vars:
        if name.startswith("prediction"):
            scale = abs(expected[name].values).max()
            np.testing.assert_allclose(found[name], expected[name], atol=1e-10 * scale)
            assert abs(other[name].values - expected[name].values).max() > 1e-3 * scale


# ---- parts of problems -----------------------------------------------------------------------------------------------


def test_problems_are_read_again_and_varied():
    given = problem(OWN["nesterov, schedule, decay, batches"])
    assert f"{__name__}:Nesterov" in given.to_json()
    again = dmft.Problem.from_json(given.to_json())
    assert (again.training, again.problem_id) == (given.training, given.problem_id)
    varied = dmft.vary(given, momentum=[0.5, 0.8], decay=[0.0, 0.3])
    assert [(p.training.momentum, p.training.decay) for p in varied] == [(0.5, 0), (0.5, 0.3), (0.8, 0), (0.8, 0.3)]
    assert len({p.problem_id for p in varied}) == 4
    assert varied[-1].problem_id == given.problem_id
    wrong = dataclasses.replace(given, training=Wrong(**dataclasses.asdict(given.training)))
    assert wrong.problem_id != given.problem_id


def test_an_edited_recurrence_is_another_problem(monkeypatch):
    text, before = problem(Nesterov(0.2)).to_json(), problem(Nesterov(0.2)).problem_id
    monkeypatch.setattr(Nesterov, "recurrence", HeavyBall.recurrence)
    assert problem(Nesterov(0.2)).problem_id != before
    with pytest.raises(ValueError, match="the recurrence of .*Nesterov has changed since this was written"):
        dmft.Problem.from_json(text)


@dataclass(frozen=True)
class Faint(dmft.Training):
    """Long times, small pushes, less decay."""

    learning_rate: float = 1e4
    steps: int = STEPS

    def recurrence(self, _):
        return [[1 - 1e-9]], [1e-5]


@pytest.mark.parametrize(
    ("edited", "other"),
    [
        (lambda self, _: ([[1 - 1.001e-9]], [1e-5]), True),
        (lambda self, t: ([[1 - 1e-9]], [1e-5 * (1 + 1e-7 * (t == 5))]), True),
        (lambda self, _: ([[(1 - 5e-10) ** 2]], [1e-5 * (1 + 4e-16)]), False),  # rounding
    ],
)
def test_an_edit_of_a_small_number_is_another_problem(edited, other, monkeypatch):
    before = problem(Faint()).problem_id
    monkeypatch.setattr(Faint, "recurrence", edited)
    assert (problem(Faint()).problem_id != before) == other


def test_an_edit_of_times_is_another_problem(monkeypatch):
    before, times = problem(Faint()).problem_id, Faint().times
    monkeypatch.setattr(Faint, "times", property(lambda _: times + 1e-4 * (times == times[-1])))
    assert problem(Faint()).problem_id != before


def test_reports_name_it():
    own, builtin = (in_words(json.loads(problem(each).to_json())) for each in (QuasiHyperbolic(0.4), HEAVY))
    assert f"Training: {__name__}:QuasiHyperbolic, beta = 0.9, learning_rate = 0.4, nu = 0.7, steps = 6, loss" in own
    assert "Training: gradient descent, T = 6 steps, learning rate eta = 0.3, loss" in builtin


def test_nothing_is_imported_for_a_description():
    text = problem(Nesterov(0.2)).to_json()
    with pytest.raises(ValueError, match="the training is nowhere:Nesterov, of a module that is not imported"):
        dmft.Problem.from_json(text.replace(f"{__name__}:Nesterov", "nowhere:Nesterov"))
    with pytest.raises(ValueError, match="has no optimiser Elsewhere; define it first"):
        dmft.Problem.from_json(text.replace(f"{__name__}:Nesterov", f"{__name__}:Elsewhere"))
    with pytest.raises(ValueError, match="has no optimiser problem"):
        dmft.Problem.from_json(text.replace(f"{__name__}:Nesterov", f"{__name__}:problem"))


@dataclass(frozen=True)
class Broken(dmft.Training):
    learning_rate: float
    steps: int
    kind_of_error: str = ""

    def recurrence(self, t):
        return {
            "ragged": ([[1.0]], [0.1]) if t else ([[1.0, 0.0], [0.0, 1.0]], [0.1, 1.0]),
            "shapes": ([[1.0]], [0.1, 1.0]),
            "flat": ([1.0], [0.1]),
            "infinite": ([[1.0]], [np.inf if t else 0.1]),
            "still": ([[1.0]], [0.0]),
            "failing": None,
        }[self.kind_of_error]


@dataclass(frozen=True)
class Without(dmft.Training):
    learning_rate: float
    steps: int


@dataclass(frozen=True)
class Unchecked(dmft.Training):
    learning_rate: float
    steps: int
    batches: object = None

    def __post_init__(self):
        pass

    recurrence = HeavyBall.recurrence


@dataclass(frozen=True)
class Rateless(dmft.Training):
    steps: int


@dataclass
class Mutable(dmft.Training):
    learning_rate: float
    steps: int


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Broken(0.1, 2, "ragged"), ValueError, "A of Broken is made of other things than numbers, or has not as many"),
        (lambda: Broken(0.1, 2, "shapes"), ValueError, "A of shape (1, 1) and b of shape (2,); with n slots"),
        (lambda: Broken(0.1, 2, "flat"), ValueError, "A of Broken has shape (1,) at each step; expected 2 axes"),
        (lambda: Broken(0.1, 2, "infinite"), ValueError, "b of Broken is not finite at step 1: [inf]"),
        (lambda: Broken(0.1, 2, "still"), ValueError, "the recurrence of Broken has b = 0 at every step"),
        (lambda: Broken(0.1, 2, "failing"), ValueError, "the recurrence of Broken fails: TypeError"),
        (lambda: Without(0.1, 2), NotImplementedError, "Without has no recurrence; see dmft.specs.training.recurrence"),
        (lambda: Unchecked(0.1, 2.0), TypeError, "steps=2.0 is not an integer"),
        (lambda: Unchecked(0.1, 1, [[0]]), TypeError, "batches=[[0]] of Unchecked is to be ((0,),); begin its __post_init__"),
        (lambda: Rateless(2), TypeError, "Rateless has no learning_rate; give it a field of that name"),
        (lambda: Mutable(0.1, 2), TypeError, "Mutable is not a frozen dataclass"),
        (lambda: Nesterov(-0.1), ValueError, "learning_rate=-0.1 must be positive"),
        (lambda: Nesterov(0.1, momentum=np.float32(0.5)), TypeError, "Nesterov.momentum=np.float32(0.5) cannot be part of a description"),
        (lambda: Nesterov(0.1, 1, batches=[[4]]), ValueError, "batches hold the sample 4"),
        (lambda: "descent", TypeError, "training='descent' is not a dmft.Training, such as dmft.GradientDescent(0.1, steps=10)"),
    ],
)  # fmt: skip
def test_what_is_no_optimiser_is_refused(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        problem(make())


def test_a_class_inside_a_function_is_refused():
    @dataclass(frozen=True)
    class Local(HeavyBall):
        pass

    with pytest.raises(TypeError, match="define an optimiser of one's own in a module"):
        problem(Local(0.1))
