"""Training of the quadratic perceptron, closed in two moments of its weights: exact at any width, for any data.

Every neuron obeys the same affine map, so that the mean m and the second moment M of the weights over neurons are all
that losses depend on, and are carried on by that map.  With x = inputs / sqrt D, r = y - f, and averages over samples

    (1) f  = [m . x + (e/2) x^T M x] / gamma0  [- f_0]                  e the curvature, 1/gamma0 = alpha
    (2) b1 = <r x>,   B1 = <r x x^T>,   descent of a weight w:  gamma0 (b1 + e B1 w)
    (3) u(t+1) = Q u + c,   Q = A_t x 1 + b_t e_0^T x (gamma0 e B1),   c = b_t x (gamma0 b1)
        u = (w, slots) of any linear optimiser (`dmft.specs.training.recurrence`); of gradient descent Q = 1 + s e B1
    (4) m <- Q m + c,   M <- Q M Q^T + c (Q m)^T + (Q m) c^T + c c^T
    (5) K  = (x . x') [1 + e m . (x + x') + e^2 x^T M x']               the NTK

of infinitely many neurons m = 0, M = 1 at the start; of N neurons what their weights give (`moments`).  For the teacher
y = (b . x)^2 / 2, x ~ N(0, 1/D), with A = b b^T - (e/gamma0) (M - M_0), a = (m - m_0) / gamma0, averages over all x are

    (6) <r x> = -a / D,   <r x x^T> = (tr A 1 + 2 A) / (2 D^2)
    (7) <r^2>/2 = (tr A)^2 / (8 D^2) + |A|^2 / (4 D^2) + |a|^2 / (2 D)
                  offset_error         misalignment      linear_power

target_alignment of the NTK is y.K y / (|K| |y|^2) on training samples, K and y less their means over samples;
ntk_change |K - K_0| / |K_0|, Frobenius.  M_0, m_0 are left out in networks that are not centered.

Cost of a step: O(P D^2 + k^3 D^3), k - 1 slots; nothing depends on N.

Source: T. Kumar, B. Bordelon, S. Gershman, C. Pehlevan, arXiv:2310.06110 for model and (7); (3), (4) for any width and
optimiser derived here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.random_data.causal import require_finite_loss
from dmft.running import memory
from dmft.specs import Problem, Task
from dmft.specs.parameterization import input_scale
from dmft.specs.random_data import QuadraticPerceptron, QuadraticTeacher

Array = NDArray[np.float64]
PARTS = ("offset_error", "misalignment", "linear_power")  # of the test loss of a teacher
KERNELS = 5  # arrays (sample, sample_2) that are held at once
TINY = 1e-30  # of squares that are divided by, in float32 too


class Moments(NamedTuple):
    """Mean (feature,) and second moment (feature, feature_2) of the weights over neurons."""

    mean: Any
    second: Any


def moments(weights: Any) -> Moments:
    """Those of weights (..., neuron, feature), of NumPy or PyTorch.

    Example:
        >>> moments(np.array([[1.0, 0.0], [0.0, 1.0]])).mean
        array([0.5, 0.5])
    """
    return Moments(weights.mean(-2), weights.swapaxes(-1, -2) @ weights / weights.shape[-2])


def of_infinitely_many(dimension: int) -> Moments:
    """Those of N(0, 1) weights of infinitely many neurons."""
    return Moments(np.zeros(dimension), np.eye(dimension))


# ---- formulas of NumPy and PyTorch, axes of networks first -----------------------------------------------------------


def error_of_teacher(direction: Any, now: Moments, start: Moments, model: QuadraticPerceptron) -> tuple[Any, Any]:
    """a (..., feature) and A (..., feature, feature_2) of (6) and (7)."""
    mean, second = now
    if model.centered:
        mean, second = mean - start.mean, second - start.second
    return mean / model.gamma0, direction[:, None] * direction - second * (model.curvature / model.gamma0)


def losses_of_teacher(a: Any, A: Any) -> dict[str, Any]:
    """(7): test_loss and its `PARTS`, numbers (...)."""
    D = a.shape[-1]
    parts = _trace(A) ** 2 / (8 * D**2), (A * A).sum((-2, -1)) / (4 * D**2), (a * a).sum(-1) / (2 * D)
    return {"test_loss": sum(parts), **dict(zip(PARTS, parts, strict=True))}


def descent_of_population(a: Any, A: Any) -> tuple[Any, Any]:
    """b1 (..., feature) and B1 (..., feature, feature_2) of (2), by (6)."""
    D = a.shape[-1]
    each, B1 = list(range(D)), A / D**2
    B1[..., each, each] += _trace(A)[..., None] / (2 * D**2)
    return -a / D, B1


def _trace(A: Any) -> Any:
    each = list(range(A.shape[-1]))
    return A[..., each, each].sum(-1)


def target_alignment(kernel: Any, y: Any) -> Any:
    """(...) of kernels (..., sample, sample_2) and targets (sample,); 0 where these do not vary."""
    kernel, y = kernel - kernel.mean(-2)[..., None, :], y - y.mean()
    return ((kernel @ y) @ y) / ((kernel * kernel).sum((-2, -1)) ** 0.5 * (y @ y) + TINY)


def relative_change(kernel: Any, before: Any) -> Any:
    """|K - K_0| / |K_0| (...)."""
    change = kernel - before
    return ((change * change).sum((-2, -1)) / (before * before).sum((-2, -1))) ** 0.5


# ---- the closed system -----------------------------------------------------------------------------------------------


class Data:
    """Inputs over sqrt(D) and targets: x (sample, feature) and y (sample,) of training samples; test samples."""

    def __init__(self, problem: Problem) -> None:
        given: Any = problem.task
        self.teacher: QuadraticTeacher | None = given if isinstance(given, QuadraticTeacher) else None
        if self.teacher is None:
            inputs, self.y = given.x.reshape(given.n_samples, -1), given.y
            self.trained = slice(0, given.n_train)
        else:
            inputs, self.y = self.teacher.x, self.teacher.target(self.teacher.x)
            self.trained = slice(0, len(inputs))
        self.x: Array = inputs * input_scale(inputs.shape[1])

    @property
    def dimension(self) -> int:
        return int(self.x.shape[1])

    @property
    def sampled(self) -> bool:
        """Whether there are training samples, or the whole population is trained on."""
        return len(self.x) > 0


@dataclass(frozen=True)
class Course:
    """Values by variable, (step,) and prediction (step, sample), and the moments of the last step."""

    values: dict[str, Array]
    last: Moments


def march_quadratic(
    problem: Problem, *, steps: NDArray[np.int64] | None = None, start: Moments | None = None
) -> Course:
    """Train, by (1) to (7).

    Args:
        problem: a `dmft.QuadraticPerceptron` with its data and training.
        steps: the recorded ones; all by default.
        start: moments of the initial weights (`moments`), for a network of finite width; those of infinitely many
            neurons by default.

    Raises:
        DivergenceError: the loss explodes.
        ValueError: moments of another dimension.

    Example:
        >>> import dmft
        >>> data, training = dmft.QuadraticTeacher(dimension=10, samples=40), dmft.GradientDescent(2.0, steps=100)
        >>> problem = dmft.Problem(dmft.QuadraticPerceptron(2.0, 0.5), data, training)
        >>> weights = np.random.default_rng(0).standard_normal((30, 10))
        >>> march_quadratic(problem, start=moments(weights)).values["loss"][[0, 100]].round(4)
        array([0.3627, 0.0004])
    """
    model, data = cast("QuadraticPerceptron", problem.network), Data(problem)
    steps = np.arange(problem.training.steps + 1) if steps is None else steps
    start = of_infinitely_many(data.dimension) if start is None else Moments(*map(np.asarray, start))
    if start.mean.shape != (data.dimension,) or start.second.shape != (data.dimension, data.dimension):
        raise ValueError(
            f"start has a mean of shape {start.mean.shape} and a second moment of shape {start.second.shape}; the data "
            f"have {data.dimension} features, so that they are ({data.dimension},) and square."
        )
    A, b = problem.training.recurrences
    D, components = data.dimension, b.shape[1]
    memory.require(
        8 * (KERNELS * len(data.x) ** 2 + 4 * (components * D) ** 2),
        limit=None,
        available=memory.available_on_host(),
        what=f"the NTK of {len(data.x)} samples and the moments of {D} features",
        ways_out="take fewer samples, or infinitely many (samples=None)",
    )
    mean, second = np.zeros(components * D), np.zeros((components * D, components * D))
    mean[:D], second[:D, :D] = start
    f_0 = _output(data.x, start, model) if model.centered else 0.0
    kernel_0 = _kernel(data.x[data.trained], start, model)
    rows: list[dict[str, Any]] = []
    recorded = set(steps.tolist())
    initial = None
    for t in range(int(steps[-1]) + 1):
        now = Moments(mean[:D], second[:D, :D])
        f = _output(data.x, now, model) - f_0
        r = (data.y - f)[data.trained]
        error = None if data.teacher is None else error_of_teacher(data.teacher.direction, now, start, model)
        if data.sampled:
            loss = float(r @ r) / (2 * len(r))
        else:
            loss = float(losses_of_teacher(*cast("tuple[Array, Array]", error))["test_loss"])
        initial = loss if initial is None else initial
        require_finite_loss(t, loss, initial, f"Lower {problem.training.largest_step}.")
        if t in recorded:
            rows.append(_row(data, f, loss, error, now, kernel_0, model))
        if t < steps[-1]:
            b1, B1 = _descent(data, r, error)
            Q, c = np.kron(A[t], np.eye(D)), np.kron(b[t], model.gamma0 * b1)
            Q[:, :D] += np.kron(b[t][:, None], model.gamma0 * model.curvature * B1)
            moved = Q @ mean
            cross = np.outer(c, moved)
            mean, second = moved + c, Q @ second @ Q.T + cross + cross.T + np.outer(c, c)
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return Course(values, Moments(mean[:D], second[:D, :D]))


def _output(x: Array, now: Moments, model: QuadraticPerceptron) -> Array:
    found: Array = (x @ now.mean + model.curvature / 2 * ((x @ now.second) * x).sum(-1)) / model.gamma0
    return found


def _kernel(x: Array, now: Moments, model: QuadraticPerceptron) -> Array:
    linear = x @ now.mean
    found: Array = (x @ x.T) * (
        1 + model.curvature * (linear[:, None] + linear) + model.curvature**2 * (x @ now.second @ x.T)
    )
    return found


def _descent(data: Data, r: Array, error: Any) -> tuple[Array, Array]:
    """b1 and B1."""
    if not data.sampled:
        return descent_of_population(*error)
    x = data.x[data.trained]
    weighted = x * (r / len(r))[:, None]
    return weighted.sum(0), weighted.T @ x


def _row(
    data: Data, f: Array, loss: float, error: Any, now: Moments, kernel_0: Array, model: QuadraticPerceptron
) -> dict[str, Any]:
    """What is recorded of a step, by variable."""
    row: dict[str, Any] = {"loss": loss}
    if error is not None:
        row |= losses_of_teacher(*error)
    else:
        row["prediction"] = f
    if data.sampled:
        kernel = _kernel(data.x[data.trained], now, model)
        row["target_alignment"] = target_alignment(kernel, data.y[data.trained])
        row["ntk_change"] = relative_change(kernel, kernel_0)
    return row


def solve(
    problem: Problem, *, steps: NDArray[np.int64], two_time: bool, ensembles: tuple[int, int] | None
) -> xr.Dataset:
    """The limit of infinitely many neurons, at recorded steps: a Dataset of kind "limit" (`dmft.schema`).

    It holds loss, target_alignment and ntk_change(step) where there are samples; of a `dmft.QuadraticTeacher` test_loss
    and its parts offset_error, misalignment and linear_power(step); of a `dmft.Task` prediction(step, sample).
    """
    if two_time or ensembles is not None:
        raise ValueError(
            f"two_time={two_time} and ensembles={ensembles} are not for QuadraticPerceptron; leave them out."
        )
    values = march_quadratic(problem, steps=steps).values
    if isinstance(problem.task, Task):
        values |= schema.of_predictions(problem, values["prediction"])
    attrs = {"producer": "dmft.solve", "method": "closed recursion of two moments, exact"}
    return schema.exact(problem, values, steps=steps, attrs=attrs)
