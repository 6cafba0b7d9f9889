"""How modules are trained: optimiser, rates, batches; and how a step changes parameters.

    sgd     v <- momentum v + g + (lambda / rate) theta             theta <- theta - r v
    adam    m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2
            theta <- (1 - eta_t lambda) theta - r (m / (1 - b1^{t+1})) / (sqrt(v / (1 - b2^{t+1})) + e)

with r = eta_t times the rate, and e = eps times the eps, of a parameter (`finite_nets.modules.rates`): as
`torch.optim.SGD` and `torch.optim.AdamW` of lr r and weight_decay lambda / rate.  Every member has its own m, v and g.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmft.specs import _check
from dmft.specs.training import Epochs, GradientDescent
from dmft.specs.training.batches import checked_rates
from finite_nets.modules.rates import OPTIMISERS, Rate
from finite_nets.training.images import moved

AUGMENTATIONS = ("flip", "crop")
PADDING = 4  # pixels around an image of which a crop is taken
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class ModuleTraining:
    """Training of modules, the same samples at every step for every width and seed.

    Args:
        learning_rate: eta of the limit's units (`finite_nets.mean_field_rates`), one number or one for each step
            (some may be 0).
        steps: number of updates.
        batch: samples of a step; all of them by default.
        optimiser: "sgd" or "adam".
        momentum: of SGD.
        betas, eps: of Adam.
        weight_decay: lambda, every parameter shrinks by 1 - eta lambda a step.
        repeat: True: epochs in random order.  False: one pass, every sample at most once.
        augment: of images, any of "flip" (left to right) and "crop" (shifts by up to four pixels), at random.
        seed: of batches and augmentation.

    Raises:
        ValueError, TypeError: naming the argument.

    Example:
        >>> finite_nets.ModuleTraining(0.1, steps=100, batch=32, optimiser="adam").repeat
        True
    """

    learning_rate: float | tuple[float, ...]
    steps: int
    batch: int | None = None
    optimiser: str = "sgd"
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    repeat: bool = True
    augment: str | tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        steps = _check.integer("steps", self.steps, minimum=1)
        checked: dict[str, Any] = {
            "learning_rate": checked_rates("learning_rate", self.learning_rate, steps, zeros=True)
        }
        if self.batch is not None:
            checked["batch"] = _check.integer("batch", self.batch, minimum=1)
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser={self.optimiser!r} is unknown; choose one of {', '.join(OPTIMISERS)}.")
        checked["momentum"] = _check.nonnegative("momentum", self.momentum, below=1.0)
        if self.momentum and self.optimiser != "sgd":
            raise ValueError("momentum is that of SGD; Adam has betas=(0.9, 0.999).")
        if np.shape(self.betas) != (2,):
            raise ValueError(f"betas={self.betas!r} is no pair of numbers; give e.g. betas=(0.9, 0.999).")
        checked["betas"] = tuple(_check.nonnegative(f"betas[{i}]", b, below=1.0) for i, b in enumerate(self.betas))
        checked["eps"] = _check.nonnegative("eps", self.eps)
        checked["weight_decay"] = _check.nonnegative("weight_decay", self.weight_decay)
        checked["augment"] = (self.augment,) if isinstance(self.augment, str) else tuple(self.augment)
        for name in checked["augment"]:
            if name not in AUGMENTATIONS:
                raise ValueError(f"augment={name!r} is unknown; choose among {', '.join(AUGMENTATIONS)}.")
        checked["seed"] = _check.integer("seed", self.seed, minimum=0)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def rates(self) -> NDArray[np.float64]:
        """(step,): eta of every step."""
        return np.broadcast_to(np.asarray(self.learning_rate, np.float64), (self.steps,))

    @property
    def times(self) -> NDArray[np.float64]:
        """(step,), of steps 0..T: sums of the learning rates before them."""
        return np.concatenate([[0.0], np.cumsum(self.rates)])

    @property
    def largest_step(self) -> str:
        """The largest learning rate, as a message names it."""
        return f"learning_rate={self.rates.max():g}"

    def described(self) -> dict[str, Any]:
        """For the JSON of a problem."""
        return {"kind": "ModuleTraining", **asdict(self)}

    def indices(self, n_train: int) -> Iterator[NDArray[np.int64]]:
        """The samples of every step.

        Raises:
            ValueError: too few samples for a batch, or for one pass.
        """
        size = n_train if self.batch is None else self.batch
        if size > n_train:
            raise ValueError(f"batch={size} is more than the {n_train} training samples; take a smaller batch.")
        if not self.repeat and self.steps * size > n_train:
            raise ValueError(
                f"one pass over {n_train} samples has {n_train // size} steps of batches of {size}, not "
                f"steps={self.steps}; take fewer, smaller batches, more data, or repeat=True."
            )
        return self._epochs(n_train, size)

    def _epochs(self, n_train: int, size: int) -> Iterator[NDArray[np.int64]]:
        rng = np.random.default_rng(self.seed)
        while True:
            order = np.arange(n_train) if size == n_train else rng.permutation(n_train)
            for first in range(0, n_train - size + 1, size):
                yield order[first : first + size]


@dataclass(frozen=True)
class _GivenBatches(ModuleTraining):
    """Of a `dmft.GradientDescent`, with the batches that it names."""

    batches: tuple[tuple[int, ...], ...] = ()

    def indices(self, n_train: int) -> Iterator[NDArray[np.int64]]:
        if (largest := max(map(max, self.batches))) >= n_train:
            raise ValueError(f"batches hold the sample {largest}; the task has training samples 0..{n_train - 1}.")
        return iter(np.array(self.batches))


def checked_training(training: Any) -> ModuleTraining:
    """A `ModuleTraining`, perhaps of a `dmft.GradientDescent`; TypeError for others, ValueError for what it has not."""
    if isinstance(training, ModuleTraining):
        return training
    if not isinstance(training, GradientDescent):
        raise TypeError(
            f"training={training!r} is no finite_nets.ModuleTraining, such as ModuleTraining(0.1, steps=100, "
            "batch=32), and no dmft.GradientDescent."
        )
    if training.observe != "all":
        raise ValueError(
            f"observe={training.observe!r} of dmft.GradientDescent does not say what modules record; leave it out, and "
            "give train_modules e.g. observed=(0, 256) for test samples alone."
        )
    fields: dict[str, Any] = {name: getattr(training, name) for name in ("learning_rate", "steps", "momentum")}
    fields["weight_decay"] = training.weight_decay
    if training.batches is None:
        return ModuleTraining(**fields)
    if isinstance(training.batches, Epochs):
        if training.batches.changing:
            raise ValueError(
                f"{training.batches} changes images in its own way; give train_modules finite_nets.ModuleTraining(..., "
                'augment=("flip", "crop")).'
            )
        return ModuleTraining(**fields, batch=training.batches.size, seed=training.batches.seed)
    return _GivenBatches(**fields, batches=training.batches)


class Optimiser:
    """Changes parameters (member, ...) in place; see the top of this module."""

    def __init__(self, training: ModuleTraining, rates: Sequence[Rate], parameters: Mapping[str, Tensor]) -> None:
        self._training = training
        self._names = list(parameters)
        by_name = {one.name: one for one in rates}
        self._rates = [by_name[name].rate for name in self._names]
        self._eps = [training.eps * by_name[name].eps for name in self._names]
        self._values = list(parameters.values())
        slots = 2 if training.optimiser == "adam" else int(training.momentum > 0)
        self._slots = [[torch.zeros_like(value) for value in self._values] for _ in range(slots)]

    @property
    def state(self) -> list[Tensor]:
        """All that it changes."""
        return [*self._values, *(slot for slots in self._slots for slot in slots)]

    def step(self, t: int, gradients: Mapping[str, Tensor]) -> None:
        """Update number t, from gradients of the loss."""
        eta = float(self._training.rates[t])
        g = [gradients[name] for name in self._names]
        decay = self._training.weight_decay
        if self._training.optimiser == "sgd":
            if decay:
                shrinking = torch._foreach_mul(self._values, [decay / rate for rate in self._rates])
                g = list(torch._foreach_add(g, shrinking))
            if self._slots:
                (v,) = self._slots
                torch._foreach_mul_(v, self._training.momentum)
                torch._foreach_add_(v, g)
                g = v
            change = torch._foreach_mul(g, [-eta * rate for rate in self._rates])
        else:
            if decay:
                torch._foreach_mul_(self._values, 1 - eta * decay)
            change = self._adam(t, g, eta)
        torch._foreach_add_(self._values, change)

    def _adam(self, t: int, g: list[Tensor], eta: float) -> Any:
        (m, v), (b1, b2) = self._slots, self._training.betas
        torch._foreach_mul_(m, b1)
        torch._foreach_add_(m, g, alpha=1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, g, g, value=1 - b2)
        scale = torch._foreach_sqrt(v)
        torch._foreach_mul_(scale, (1 - b2 ** (t + 1)) ** -0.5)
        torch._foreach_add_(scale, self._eps)
        change = torch._foreach_div(m, scale)
        torch._foreach_mul_(change, [-eta * rate / (1 - b1 ** (t + 1)) for rate in self._rates])
        return change


def augmented(x: Tensor, names: Sequence[str], rng: np.random.Generator) -> Tensor:
    """Images (sample, channel, row, column), of which each is flipped or shifted at random."""
    changes = np.zeros((len(x), 3), np.int64)
    if "flip" in names:
        changes[:, 0] = rng.random(len(x)) < 0.5
    if "crop" in names:
        changes[:, 1:] = rng.integers(0, 2 * PADDING + 1, (2, len(x))).T - PADDING
    return moved(x.permute(0, 2, 3, 1), torch.from_numpy(changes).to(x.device)).permute(0, 3, 1, 2)
