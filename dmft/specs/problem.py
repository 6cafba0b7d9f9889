"""The one description that drives both the theory and the networks."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft import faces
from dmft.specs.descriptions import (
    BUILT_IN,
    FORMAT,
    NETWORKS,
    TRAININGS,
    described,
    parsed,
    read_network,
    read_task,
    read_training,
)
from dmft.specs.loss import LOSSES, check_targets, of_positions
from dmft.specs.networks import Architecture, own
from dmft.specs.networks.sketch import Sketch
from dmft.specs.parameterization import MEAN_FIELD
from dmft.specs.random_data import RandomModel, RandomSource
from dmft.specs.tasks.given import Task, sizes
from dmft.specs.training import Epochs, Training
from dmft.specs.training import own as own_training


@dataclass(frozen=True)
class Problem:
    """Network (without its width), data, training and loss: everything that defines the infinite-width limit.

    Args:
        network: e.g. `dmft.MLP(depth=2, activation=dmft.tanh())`, a `dmft.ResidualMLP`, a `dmft.CNN`, or one of one's
            own, a frozen dataclass that derives from `dmft.Architecture`.
        task: `dmft.Task(...)` or `dmft.load_task(...)`; for `dmft.RandomFeatures`, `dmft.ProjectedLinear` and
            `dmft.DeepLinear`, whose sizes are part of the problem, a `dmft.RandomData`; for a
            `dmft.QuadraticPerceptron` a `dmft.QuadraticTeacher`, too.
        training: e.g. `dmft.GradientDescent(learning_rate=..., steps=...)`, a `dmft.GradientFlow`, or one of one's own,
            a frozen dataclass that derives from `dmft.Training`.
        loss: "squared", ell(f, y) = |f - y|^2 / 2; "logistic" and "hinge" for targets -1 and +1; "cross_entropy" for
            one-hot targets (`dmft.specs.loss`); of a network with outputs at every position the sum over these.

    Raises:
        TypeError, ValueError: naming the argument that is of another kind, or that does not suit the others; a program
            that fails for inputs of the shape that the task has.

    Example:
        >>> task = dmft.Task([[1.0, 0.0], [0.0, 1.0]], [-1, 1])
        >>> dmft.Problem(dmft.MLP(2), task, dmft.GradientDescent(0.5, steps=3)).problem_id
        '...'
    """

    network: Architecture
    task: Task
    training: Training
    loss: str = "squared"

    def __post_init__(self) -> None:
        data: Any = self.task
        if isinstance(self.network, RandomModel) or isinstance(data, RandomSource):
            self._check_random()
            return
        such = {"network": ", such as dmft.MLP(depth=2)", "training": ", such as dmft.GradientDescent(0.1, steps=10)"}
        for name, expected in {"network": Architecture, "task": Task, "training": Training}.items():
            value = getattr(self, name)
            if not isinstance(value, expected):
                kind = f"dmft.{expected.__name__}{such.get(name, '')}"
                raise TypeError(f"{name}={value!r} is not a {kind}; the order is network, task, training.")
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is unknown; choose one of {', '.join(LOSSES)}.")
        if type(self.training) not in TRAININGS.values():
            own_training.require_sound(self.training)
        if self.training.stepping.by_entry and self.network.parameterization != MEAN_FIELD:
            name = type(self.training).__name__
            raise ValueError(
                f"{name} with parameterization={self.network.parameterization!r}: its rates are those of "
                f'"{MEAN_FIELD}", in which every layer has its own (dmft.torch_groups). Leave parameterization out, or '
                "take dmft.GradientDescent."
            )
        self._check_batches()
        self._check_positions()  # and so that a program that fails does so here
        check_targets(self.sample_loss, self.task.targets)

    def _check_positions(self) -> None:
        read, outputs = self.sketch.read, self.task.targets.shape[1]
        if read and (outputs % read or not self.task.outputs):
            raise ValueError(
                f"each of {read} positions is read, and targets have {outputs} output{'s' * (outputs > 1)}; give y "
                f"(sample, position), or (sample, position, output) as y.reshape(len(y), -1): {read} outputs, or a "
                "multiple."
            )

    @property
    def sample_loss(self) -> str:
        """The name of the loss of a sample (`dmft.specs.loss`): where positions have outputs of their own, the sum of
        theirs."""
        return of_positions(self.loss, 0 if isinstance(self.network, RandomModel) else self.sketch.read)

    @property
    def linear(self) -> bool:
        """Whether its limit is solved exactly: the output is linear in every matrix, and steps in all gradients."""
        return self.sketch.linear and not self.training.stepping.by_entry

    def _check_random(self) -> None:
        """The same for a model of random data, its data and training."""
        model: Any = self.network if isinstance(self.network, RandomModel) else RandomModel
        pairs = {"network": (RandomModel,), "task": model.takes, "training": (Training,)}
        such = {"network": "dmft.RandomFeatures(100)", "task": model.such}
        for name, expected in pairs.items():
            value = getattr(self, name)
            if not isinstance(value, expected):
                raise TypeError(
                    f"{name}={value!r} does not go with random data: expected e.g. "
                    f"{such.get(name, 'dmft.GradientDescent(0.1, steps=10)')}. Models of random data have no samples "
                    "of their own, and other networks take a dmft.Task."
                )
        if self.loss != "squared":
            raise ValueError(
                f"loss={self.loss!r} is not solved for random data, whose models are linear; use 'squared'."
            )
        if type(self.training) not in TRAININGS.values():
            own_training.require_sound(self.training)
        model.check(self.task, self.training)

    @property
    def dimensions(self) -> dict[str, int]:
        """Sizes of those that results have of the network."""
        return self.network.dimensions if isinstance(self.network, RandomModel) else self.sketch.dimensions

    def _check_batches(self) -> None:
        task, training = self.task, self.training
        if isinstance(training.batches, Epochs):
            self._check_epochs(training.batches)
        elif training.batches is not None and (largest := max(map(max, training.batches))) >= task.n_train:
            raise ValueError(f"batches hold the sample {largest}; the task has training samples 0..{task.n_train - 1}.")
        if training.observe == "test":
            if not task.n_test:
                raise ValueError('observe="test" leaves nothing to observe: the task has no test samples.')
            if self.network.centered:
                raise ValueError(
                    'observe="test" with centered=True needs the initial output on samples that are never met then; '
                    "use centered=False for the network."
                )

    def _check_epochs(self, epochs: Epochs) -> None:
        if epochs.size > self.task.n_train:
            raise ValueError(
                f"batches={epochs} are larger than the {self.task.n_train} training samples; take a smaller size."
            )
        if not epochs.changing:
            return
        if len(self.task.shape) != 3:
            raise ValueError(
                f"batches={epochs} change images, and inputs have {sizes(self.task.shape)}; load them with "
                'layout="image".'
            )
        if epochs.crop >= (side := min(self.task.shape[:2])):
            raise ValueError(
                f"crop={epochs.crop} in batches={epochs} can shift all of an image away, of {sizes(self.task.shape)}; "
                f"take a crop below {side}."
            )
        name = type(self.network).__name__
        if type(self.network).inputs is not Architecture.inputs:
            raise ValueError(
                f"batches={epochs} change pixels, and {name} reads something else of them; leave flip and crop out."
            )
        if self.network.centered:
            raise ValueError(
                f"batches={epochs} make images of which {name} with centered=True has no initial output; use "
                "centered=False."
            )

    @cached_property
    def sketch(self) -> Sketch:
        """What the program of the network is made of, for inputs of the shape that the task has."""
        if self._built_in:
            return self.network.sketch(() if isinstance(self.network, RandomModel) else self.task.shape)
        return self._own[0]

    @property
    def _built_in(self) -> bool:
        return type(self.network) in BUILT_IN.values()

    @cached_property
    def _own(self) -> tuple[Sketch, str]:
        """Sketch and digest of an architecture of one's own, as they are when the problem is made."""
        return own.sketched(self.network, self.task.shape)

    @property
    def program_digest(self) -> str:
        """By which the code of an architecture of one's own is known, nothing for built-in ones.

        Raises:
            ValueError: functions that its program calls have been edited since the problem was made.
        """
        if type(self.network) in NETWORKS.values():
            return ""
        if own.digest(self.network, self.task.shape) != self._own[1]:
            name = type(self.network).__name__
            raise ValueError(
                f"the program of {name} makes other numbers than when this problem was made; make the problem anew, "
                f"with {name} as it is now."
            )
        return self._own[1]

    @property
    def batches(self) -> NDArray[np.int64]:
        """(step, position): the training samples of each step 0..T-1.

        Raises:
            ValueError: steps that see other images than the task has.
        """
        if self.changing:
            raise ValueError(
                f"batches={self.training.batches} flip or shift images, so that every step has samples of its own: "
                "train networks on them (finite_nets.train_ensemble), or leave flip and crop out."
            )
        return self.drawn

    @property
    def changing(self) -> bool:
        """Whether images are flipped or shifted before a step is trained on them (`dmft.Epochs`)."""
        return isinstance(self.training.batches, Epochs) and self.training.batches.changing

    @property
    def drawn(self) -> NDArray[np.int64]:
        """(step, position): the training samples of each step 0..T-1, whatever happens to them."""
        given, n_train, steps = self.training.batches, self.task.n_train, self.training.steps
        if isinstance(given, Epochs):
            return given.indices(n_train, steps)
        return np.broadcast_to(np.arange(n_train), (steps, n_train)) if given is None else np.array(given)

    @property
    def observed(self) -> slice:
        """The samples that results hold."""
        return slice(self.task.n_train if self.training.observe == "test" else 0, self.task.n_samples)

    def _physics(self) -> dict[str, Any]:
        network: Any = self.network
        is_own = isinstance(network, Architecture) and not self._built_in
        return {
            "format": FORMAT,
            "network": own.described(network, self._own[1]) if is_own else described(network),
            "training": described(self.training),
            "loss": self.loss,
        }

    @property
    def problem_id(self) -> str:
        """Sixteen hexadecimal digits of the sha256 over the description and the bytes of the data."""
        return identity(self._physics(), self.task.sha256)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        physics = self._physics()
        rows = {part: f"{physics[part].pop('kind')}: {faces.shown(physics[part])}" for part in ("network", "training")}
        return faces.table({**rows, "loss": self.loss, "data": self.task, "problem_id": self.problem_id}, "Problem")

    def to_json(self, *, arrays: bool = True) -> str:
        """The problem as JSON text.  Without `arrays` the data are only named by their shapes and digest."""
        task = self.task
        data: dict[str, Any] = {
            "sha256": task.sha256,
            "shapes": {name: list(array.shape) for name, array in task.arrays.items()},
            "provenance": dict(task.provenance),
            **task.settings,
        }
        if arrays:
            data["float64"] = {
                name: base64.b64encode(array.astype("<f8").tobytes()).decode() for name, array in task.arrays.items()
            }
        return json.dumps({**self._physics(), "task": data}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, task: Task | None = None) -> Problem:
        """The problem written by `to_json`.

        Args:
            text: the JSON text.
            task: the data, where the text holds only their digest; checked against it.

        Raises:
            ValueError: not such text, or cut short; another format, fields that this version does not know; data
                missing, damaged or with another digest.
        """
        content = parsed(text)
        data = content["task"]
        if task is None:
            if "float64" not in data:
                raise ValueError(
                    f"this problem JSON holds no data, only their digest {data['sha256'][:12]}...; "
                    "pass task=, or write it with to_json(arrays=True)."
                )
            task = read_task(data)
        if task.sha256 != data["sha256"]:
            raise ValueError(
                f"the data have sha256 {task.sha256[:12]}..., the problem was written with "
                f"{data['sha256'][:12]}...; load the same data with the same options."
            )
        return cls(
            network=read_network(content["network"], task),
            task=task,
            training=read_training(content["training"]),
            loss=content["loss"],
        )


@lru_cache(maxsize=64)
def identity_of(text: str) -> str:
    """The `problem_id` of a problem from the text that `to_json` wrote, with or without the data (which only
    `Problem.from_json` checks against their digest).

    Raises:
        ValueError: not such text.
    """
    content = parsed(text)
    task = content.pop("task")
    return identity(content, task["sha256"])


def identity(physics: Mapping[str, Any], sha256: str) -> str:
    """`problem_id`, from the description of all but the data, and the digest of these."""
    return hashlib.sha256((json.dumps(physics, sort_keys=True) + sha256).encode()).hexdigest()[:16]
