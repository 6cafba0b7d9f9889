"""Data of modules: kept on the device, batches by their samples' numbers; and the samples that results hold.

Results hold the first `observed[0]` training samples and the first `observed[1]` test samples of a task, and of a text
windows spread evenly over its parts, with the target after the last position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmft.specs import Task, Text, _check
from dmft.specs.loss import LOSSES, check_targets
from finite_nets.modules.training import ModuleTraining, augmented

OBSERVED = (64, 256)  # training and test samples of results, at most, if it is not said
NAMES = {"mse": "squared"}  # of losses, as PyTorch has them


@dataclass(frozen=True)
class Observed:
    """What results ask of the task that they hold samples of.

    y: (sample,) or (sample, output), training samples first.
    """

    y: NDArray[np.float64]
    n_train: int
    sha256: str
    shapes: dict[str, list[int]]
    provenance: dict[str, Any] = field(default_factory=dict)
    unusual_size: str = ""

    @property
    def n_samples(self) -> int:
        return len(self.y)

    @property
    def n_test(self) -> int:
        return len(self.y) - self.n_train

    @property
    def outputs(self) -> tuple[int, ...]:
        return self.y.shape[1:]

    @property
    def targets(self) -> NDArray[np.float64]:
        """(sample, output)."""
        return self.y.reshape(len(self.y), -1)


class Batch(NamedTuple):
    """Inputs as a module takes them, and targets: (sample, output) numbers, or for text (sample, position) tokens."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Data:
    """A task or a text on a device.

    x, y: of all training samples, or the tokens of a text, from which `take` makes a batch of inputs and targets.
    seen: inputs of the observed samples; the targets of their first axis are in `observed`.
    tokens: whether targets are tokens, at every position.
    """

    observed: Observed
    n_train: int
    take: Callable[[Tensor], Batch]
    seen: Tensor
    tokens: bool = False

    def batch(self, index: NDArray[np.int64], training: ModuleTraining, t: int) -> Batch:
        """Of step t."""
        found = self.take(torch.from_numpy(index).to(self.seen.device, non_blocking=True))
        if training.augment:
            rng = np.random.default_rng((training.seed, t))
            found = Batch(augmented(found.x, training.augment, rng), found.y)
        return found

    @cached_property
    def targets(self) -> Tensor:
        """(sample, output), of the observed samples."""
        return torch.from_numpy(self.observed.targets).to(self.seen.device, torch.float32)


def checked_loss(loss: str) -> str:
    """The name of a loss of `dmft.specs.loss`."""
    found = NAMES.get(loss, loss)
    if found not in LOSSES:
        raise ValueError(f"loss={loss!r} is unknown; choose one of {', '.join([*LOSSES, *NAMES])}.")
    return found


def on_device(
    task: Any, loss: str, observed: Sequence[int] | None, training: ModuleTraining, device: torch.device
) -> Data:
    """The data of a `dmft.Task` or a `dmft.Text`.

    Raises:
        TypeError: other tasks.  ValueError: targets that do not suit the loss; observed samples that are not there;
            augmentation of what are no images.
    """
    if not isinstance(task, (Task, Text)):
        raise TypeError(f"task={task!r} is no dmft.Task (dmft.load_task) and no dmft.Text (dmft.load_text).")
    most = OBSERVED if observed is None else _counts(observed)
    n_train, n_test = (
        min(count, there) if observed is None else count
        for count, there in zip(most, (task.n_train, task.n_test), strict=True)
    )
    if n_train > task.n_train or n_test > task.n_test or n_train + n_test == 0:
        raise ValueError(
            f"observed={observed}: the task has {task.n_train} training and {task.n_test} test samples; give numbers "
            "up to these, not both 0."
        )
    if training.augment and (isinstance(task, Text) or len(task.shape) != 3):
        raise ValueError(f"augment={training.augment} is for images (sample, row, column, channel); leave it out.")
    if isinstance(task, Text):
        return _of_text(task, loss, n_train, n_test, device)
    check_targets(loss, task.targets)
    given = (task.x_train, task.targets[: task.n_train])
    x, y = (torch.tensor(array, dtype=torch.float32, device=device) for array in given)
    x = _as_pytorch(x).contiguous()
    seen = [x[:n_train]]
    if n_test and task.x_test is not None:
        seen.append(_as_pytorch(torch.tensor(task.x_test[:n_test], dtype=torch.float32, device=device)))
    rows = np.concatenate([np.arange(n_train), task.n_train + np.arange(n_test)])
    shapes = {name: list(array.shape) for name, array in task.arrays.items()}
    shown = Observed(np.asarray(task.y[rows]), n_train, task.sha256, shapes, dict(task.provenance), task.unusual_size)
    return Data(shown, task.n_train, lambda index: Batch(x[index], y[index]), torch.cat(seen))


def _as_pytorch(x: Tensor) -> Tensor:
    """Images with their channels first."""
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def _of_text(text: Text, loss: str, n_train: int, n_test: int, device: torch.device) -> Data:
    if loss != "cross_entropy":
        raise ValueError(f'loss={loss!r} is not for text, whose targets are characters; use "cross_entropy".')
    tokens = torch.from_numpy(np.array(text.train)).to(device)
    places = torch.arange(text.context, device=device)

    def take(index: Tensor) -> Batch:
        at = index[:, None] * text.stride + places
        return Batch(tokens[at], tokens[at + 1])

    inputs, targets = [], []
    for split, count, there in (("train", n_train, text.n_train), ("test", n_test, text.n_test)):
        x, y = text.windows(np.linspace(0, there - 1, count).astype(np.int64), split)
        inputs.append(x)
        targets.append(text.one_hot(y[:, -1]))
    shapes = {"train": [len(text.train)], "test": [len(text.test)]}
    window = {"context": text.context, "stride": text.stride, "alphabet": text.alphabet}
    shown = Observed(np.concatenate(targets), n_train, text.sha256, shapes, {**text.provenance, **window})
    return Data(shown, text.n_train, take, torch.from_numpy(np.concatenate(inputs)).to(device), tokens=True)


def _counts(observed: Any) -> tuple[int, int]:
    if isinstance(observed, str) or not isinstance(observed, Sequence) or len(observed) != 2:
        raise ValueError(f"observed={observed!r} is no pair of numbers; give e.g. observed=(64, 256).")
    first, second = (_check.integer(f"observed[{i}]", n, minimum=0) for i, n in enumerate(observed))
    return first, second
