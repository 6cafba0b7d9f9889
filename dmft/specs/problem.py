"""The one description that drives both the theory and the networks."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dmft.specs.activation import Activation
from dmft.specs.network import MLP
from dmft.specs.task import Task
from dmft.specs.training import GradientDescent

FORMAT = 1
LOSSES = ("squared",)


@dataclass(frozen=True)
class Problem:
    """Network (without its width), data, training and loss: everything that defines the infinite-width limit.

    Args:
        network: e.g. `dmft.MLP(depth=2, activation=dmft.tanh())`.
        task: `dmft.Task(...)` or `dmft.load_task(...)`.
        training: `dmft.GradientDescent(learning_rate=..., steps=...)`.
        loss: "squared", ell(f, y) = (f - y)^2 / 2.

    Raises:
        TypeError, ValueError: naming the argument that is of another kind.
    """

    network: MLP
    task: Task
    training: GradientDescent
    loss: str = "squared"

    def __post_init__(self) -> None:
        for name, kind in (("network", MLP), ("task", Task), ("training", GradientDescent)):
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise TypeError(
                    f"{name}={value!r} is not a dmft.{kind.__name__}; the order is network, task, training."
                )
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is unknown; choose one of {', '.join(LOSSES)}.")

    def _physics(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "network": {"kind": "MLP", **asdict(self.network)},
            "training": {"kind": "GradientDescent", **asdict(self.training)},
            "loss": self.loss,
        }

    @property
    def problem_id(self) -> str:
        """Sixteen hexadecimal digits of the sha256 over the description and the bytes of the data."""
        text = json.dumps(self._physics(), sort_keys=True) + self.task.sha256
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self, *, arrays: bool = True) -> str:
        """The problem as JSON text.  Without `arrays` the data are only named by their shapes and digest."""
        task = self.task
        described: dict[str, Any] = {
            "sha256": task.sha256,
            "shapes": {name: list(array.shape) for name, array in task.arrays.items()},
            "provenance": dict(task.provenance),
        }
        if arrays:
            described["float64"] = {
                name: base64.b64encode(array.astype("<f8").tobytes()).decode() for name, array in task.arrays.items()
            }
        return json.dumps({**self._physics(), "task": described}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, task: Task | None = None) -> Problem:
        """The problem written by `to_json`.

        Args:
            text: the JSON text.
            task: the data, where the text holds only their digest; checked against it.

        Raises:
            ValueError: another format, data missing or with another digest.
        """
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"problem JSON has format {found!r}; this version reads format {FORMAT}.")
        described = content["task"]
        if task is None:
            if "float64" not in described:
                raise ValueError(
                    f"this problem JSON holds no data, only their digest {described['sha256'][:12]}...; "
                    "pass task=, or write it with to_json(arrays=True)."
                )
            arrays = {
                name: np.frombuffer(base64.b64decode(data), dtype="<f8").reshape(described["shapes"][name])
                for name, data in described["float64"].items()
            }
            task = Task(**arrays, provenance=described["provenance"])
        if task.sha256 != described["sha256"]:
            raise ValueError(
                f"the data have sha256 {task.sha256[:12]}..., the problem was written with "
                f"{described['sha256'][:12]}...; load the same data with the same options."
            )
        return cls(
            network=_network(content["network"]),
            task=task,
            training=_training(content["training"]),
            loss=content["loss"],
        )


def _network(fields: dict[str, Any]) -> MLP:
    fields = _without_kind(fields, "MLP")
    return MLP(**{**fields, "activation": Activation(**fields["activation"])})


def _training(fields: dict[str, Any]) -> GradientDescent:
    return GradientDescent(**_without_kind(fields, "GradientDescent"))


def _without_kind(fields: dict[str, Any], kind: str) -> dict[str, Any]:
    if fields.get("kind") != kind:
        raise ValueError(f"kind {fields.get('kind')!r} is unknown to this version; it reads {kind!r}.")
    return {name: value for name, value in fields.items() if name != "kind"}
