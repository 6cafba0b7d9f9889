"""What follows from predictions, averages of a formula over training samples, and over test samples; and from
eigenvalues of the curvature of the loss."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from dmft.schema.observable import HESSIAN, PREDICTIONS, Observable
from dmft.schema.observed.loss import loss
from dmft.schema.registry import registered
from dmft.specs import Problem


def following(problem: Problem, names: Collection[str], *, smooth: bool = False) -> tuple[Observable, ...]:
    """The observables that follow from predictions: those asked for, and those that come with them; of these the
    `smooth` ones, or all."""
    of_predictions = (one for one in registered() if one.needs == PREDICTIONS and (one.smooth or not smooth))
    return tuple(one for one in of_predictions if one.name in names or one.brought(problem, names))


def of_predictions(
    problem: Problem, prediction: Any, names: Collection[str] = (loss.name,), *, xp: Any = None, targets: Any = None
) -> dict[str, Any]:
    """What follows from predictions (..., sample[, output]), of what is asked for: losses, accuracies.

    xp, targets: the module of the predictions, and targets (sample, output) in arrays of it, where NumPy's do not do.
    """
    return _averages(problem, prediction, following(problem, names), xp, targets)


def losses(problem: Problem, prediction: Any) -> dict[str, Any]:
    """loss and, where there are test samples, test_loss, from prediction (..., sample) or (..., sample, output)."""
    return _averages(problem, prediction, (loss,))


def observed_loss(problem: Problem, prediction: Any) -> Any:
    """(..., step): the training loss, or the test loss where training samples are not observed."""
    return next(iter(losses(problem, prediction).values()))


def _averages(
    problem: Problem, prediction: Any, wanted: Collection[Observable], xp: Any = None, targets: Any = None
) -> dict[str, Any]:
    xp = prediction.__array_namespace__() if xp is None else xp
    y = problem.task.targets[problem.observed] if targets is None else targets
    return Averages.of(problem, wanted)(xp, prediction, y)


class Averages(NamedTuple):
    """Averages of observables over samples, without the numbers of a problem: what shapes compiled code of them.

    loss: of a sample; outputs: whether predictions have an axis of them; train: of the samples that results hold, how
        many are trained on; test: whether the others are test samples.
    """

    wanted: tuple[Observable, ...]
    loss: str
    outputs: bool
    train: int
    test: bool

    @classmethod
    def of(cls, problem: Problem, wanted: Collection[Observable]) -> Averages:
        train = max(problem.task.n_train - problem.observed.start, 0)
        return cls(tuple(wanted), problem.sample_loss, bool(problem.task.outputs), train, bool(problem.task.n_test))

    def __call__(self, xp: Any, prediction: Any, targets: Any) -> dict[str, Any]:
        """By name, of predictions (..., sample[, output]) and targets (sample, output), arrays of the module `xp`."""
        f = prediction if self.outputs else prediction[..., None]
        found: dict[str, Any] = {}
        for one in self.wanted:
            assert one.formula is not None
            each = one.formula(xp, self.loss, f, targets)
            found |= {f"{prefix}{one.name}": each[..., part].mean(-1) for prefix, part in self.splits.items()}
        return found

    @property
    def splits(self) -> dict[str, slice]:
        """Where training ("") and test ("test_") samples are."""
        parts = {"": slice(0, self.train)} | ({"test_": slice(self.train, None)} if self.test else {})
        return {prefix: part for prefix, part in parts.items() if part != slice(0, 0)}


def metrics(names: Collection[str]) -> tuple[bool, ...]:
    """Those in which the curvature of the loss is asked for: whether they are preconditioned."""
    asked = {one.preconditioned for one in registered() if one.needs == HESSIAN and one.name in names}
    return tuple(sorted(asked))


def of_eigenvalues(eigenvalues: Mapping[bool, Any], names: Collection[str]) -> dict[str, Any]:
    """What follows from eigenvalues of the curvature of the loss (..., iteration), by metric, of what is asked for, by
    name."""
    found: dict[str, Any] = {}
    for one in registered():
        if one.needs == HESSIAN and one.name in names:
            assert one.formula is not None
            found[one.name] = one.formula(eigenvalues[one.preconditioned])
    return found


def held(problem: Problem, names: Collection[str]) -> tuple[str, ...]:
    """Names of the losses and accuracies that results hold where so much is asked for."""
    return tuple(f"{prefix}{one.name}" for one in following(problem, names) for prefix in splits(problem))


def splits(problem: Problem) -> dict[str, slice]:
    """Where training ("") and test ("test_") samples are among those that results hold."""
    return Averages.of(problem, ()).splits
