"""The one description that drives both the theory and the networks."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft import faces
from dmft.specs import networks, random_data, training
from dmft.specs._kinds import kinds_in
from dmft.specs.activation import Activation
from dmft.specs.loss import LOSSES, check_targets, of_positions
from dmft.specs.networks import Architecture, own
from dmft.specs.networks.sketch import Sketch
from dmft.specs.parameterization import MEAN_FIELD
from dmft.specs.random_data import RandomModel, RandomSource
from dmft.specs.tasks.given import Task, sizes
from dmft.specs.training import Epochs, Training
from dmft.specs.training import own as own_training

FORMAT = 1
NETWORKS = kinds_in(networks, Architecture)
TRAININGS = kinds_in(training, Training)
MODELS = kinds_in(random_data, RandomModel)  # of random data
SOURCES = kinds_in(random_data, RandomSource)
BUILT_IN = NETWORKS | MODELS
COUNTS = ("depth", "blocks", "branch_layers")  # fields that the number of the readout follows from
LONGEST = 60  # characters of a value that is shown
# fields added after the first version: left out of descriptions, and so of identities, while they say nothing new
SILENT = {
    "momentum": 0.0,
    "weight_decay": 0.0,
    "batches": None,
    "observe": "all",
    "bias": 0.0,
    "frozen": (),
    "parameterization": "mean_field",
    "weight_variance": 1.0,
    "bias_variance": 1.0,
}


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
        if type(self.network) in BUILT_IN.values():
            return self.network.sketch(() if isinstance(self.network, RandomModel) else self.task.shape)
        return self._own[0]

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
        def described(spec: Any) -> dict[str, Any]:
            if isinstance(spec, Architecture) and type(spec) not in BUILT_IN.values():
                return own.described(spec, self._own[1])
            if isinstance(spec, Training) and type(spec) not in TRAININGS.values():
                return own_training.described(spec)
            found = {field.name: getattr(spec, field.name) for field in fields(spec)}
            found = {k: v for k, v in found.items() if k not in SILENT or v != SILENT[k]}
            if isinstance(found.get("batches"), Epochs):
                found["batches"] = asdict(found["batches"])
            if "activation" in found:
                found["activation"] = found["activation"].described()
            return {"kind": type(spec).__name__, **found}

        return {
            "format": FORMAT,
            "network": described(self.network),
            "training": described(self.training),
            "loss": self.loss,
        }

    @property
    def problem_id(self) -> str:
        """Sixteen hexadecimal digits of the sha256 over the description and the bytes of the data."""
        return _identity(self._physics(), self.task.sha256)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        described = self._physics()
        rows = {
            part: f"{described[part].pop('kind')}: {faces.shown(described[part])}" for part in ("network", "training")
        }
        return faces.table({**rows, "loss": self.loss, "data": self.task, "problem_id": self.problem_id}, "Problem")

    def to_json(self, *, arrays: bool = True) -> str:
        """The problem as JSON text.  Without `arrays` the data are only named by their shapes and digest."""
        task = self.task
        described: dict[str, Any] = {
            "sha256": task.sha256,
            "shapes": {name: list(array.shape) for name, array in task.arrays.items()},
            "provenance": dict(task.provenance),
            **task.settings,
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
            ValueError: not such text, or cut short; another format, fields that this version does not know; data
                missing, damaged or with another digest.
        """
        content = _parsed(text)
        described = content["task"]
        if task is None:
            if "float64" not in described:
                raise ValueError(
                    f"this problem JSON holds no data, only their digest {described['sha256'][:12]}...; "
                    "pass task=, or write it with to_json(arrays=True)."
                )
            task = _stored_task(described)
        if task.sha256 != described["sha256"]:
            raise ValueError(
                f"the data have sha256 {task.sha256[:12]}..., the problem was written with "
                f"{described['sha256'][:12]}...; load the same data with the same options."
            )
        return cls(
            network=_network(content["network"], task),
            task=task,
            training=_training(content["training"]),
            loss=content["loss"],
        )


@lru_cache(maxsize=64)
def identity_of(text: str) -> str:
    """The `problem_id` of a problem from the text that `to_json` wrote, with or without the data (which only
    `Problem.from_json` checks against their digest).

    Raises:
        ValueError: not such text.
    """
    content = _parsed(text)
    task = content.pop("task")
    return _identity(content, task["sha256"])


def _identity(physics: Mapping[str, Any], sha256: str) -> str:
    """`problem_id`, from the description of all but the data, and the digest of these."""
    return hashlib.sha256((json.dumps(physics, sort_keys=True) + sha256).encode()).hexdigest()[:16]


def vary(problem: Problem, **values: Iterable[Any]) -> list[Problem]:
    """Problems that differ from one in some of its fields, in all combinations.

        dmft.vary(problem, gamma0=[0.5, 1, 2], depth=[2, 3])

    Args:
        problem: the one to vary.
        values: by field of its network, of its training, or "loss", "task", "network", "training", the values.  (Of a
            residual network `branch_scale` stays as it is when `depth` varies.)

    Raises:
        ValueError, TypeError: no such field; values that are no list; what the specs say of values; depths or numbers
            of blocks, where the readout is frozen by its number, which would be another layer then.

    Example:
        >>> [one.network.gamma0 for one in dmft.vary(problem, gamma0=[0.5, 1, 2])]
        [0.5, 1.0, 2.0]
    """
    for name, each in values.items():
        if isinstance(each, str) or not isinstance(each, Iterable):
            raise TypeError(f"{name}={each!r} is not a list of values; give e.g. {name}=[{each!r}].")
    counts = [name for name in COUNTS if name in values]
    frozen = problem.network.frozen
    if counts and frozen and "frozen" not in values and problem.sketch.readout_layer in frozen:
        raise ValueError(
            f"{counts[0]} varies and frozen={problem.network.frozen} holds the readout by its number; vary frozen, too."
        )
    combinations = itertools.product(*map(list, values.values()))
    return [_with(problem, dict(zip(values, combination, strict=True))) for combination in combinations]


def _with(problem: Problem, values: dict[str, Any]) -> Problem:
    """The problem with other values of fields, its own or those of its network or training."""
    parts: dict[str, dict[str, Any]] = {"problem": {}, "network": {}, "training": {}}
    specs: dict[str, Any] = {"problem": problem, "network": problem.network, "training": problem.training}
    known = {field.name: part for part, spec in reversed(specs.items()) for field in fields(spec)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{name!r} is no field of this problem; choose among {', '.join(sorted(known))}.")
        parts[known[name]][name] = value
    network, training = (replace(specs[part], **parts[part]) for part in ("network", "training"))
    return replace(problem, **{"network": network, "training": training, **parts["problem"]})


def differences(problems: Sequence[Problem]) -> dict[str, str]:
    """What tells problems from each other, by problem_id: the fields of their descriptions that differ, as text; empty
    for a single problem."""
    flat = {problem.problem_id: _flat(json.loads(problem.to_json(arrays=False))) for problem in problems}
    names = sorted({name for found in flat.values() for name in found if "sha256" not in name})

    def value(found: dict[str, Any], name: str) -> str:
        """As text; of a field that descriptions leave out, its default."""
        text = json.dumps(found.get(name, SILENT.get(name.rsplit(".", 1)[-1])))
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."

    differing = [name for name in names if len({value(found, name) for found in flat.values()}) > 1]
    return {
        problem_id: ", ".join(f"{name}={value(found, name)}" for name in differing)
        or ("" if len(flat) < 2 else f"data {found['task.sha256'][:12]}")
        for problem_id, found in flat.items()
    }


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _parsed(text: str) -> dict[str, Any]:
    """The JSON object that `to_json` wrote, with all of its parts; ValueError for anything else."""
    try:
        content = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"this is not JSON, or cut short ({error}); expected what Problem.to_json() wrote.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"problem JSON has format {found!r}; this version reads format {FORMAT}.")
    parts = {"network": dict, "training": dict, "loss": str, "task": dict}
    lost = [name for name, kind in parts.items() if not isinstance(content.get(name), kind)]
    if not lost and not isinstance(content["task"].get("sha256"), str):
        lost = ["task.sha256"]
    if lost:
        raise ValueError(f"problem JSON lacks {', '.join(lost)}; expected what Problem.to_json() wrote.")
    return content


def _stored_task(described: Mapping[str, Any]) -> Any:
    """The data that problem JSON holds; ValueError if they are damaged."""
    try:
        arrays = {
            name: np.frombuffer(base64.b64decode(data), dtype="<f8").reshape(described["shapes"][name])
            for name, data in described["float64"].items()
        }
        kind: type[RandomSource] | type[Task] = SOURCES[described["kind"]] if "kind" in described else Task
        return kind.stored(arrays, described)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"the data in this problem JSON are damaged: {error}.") from error


def _known_kind(name: str, given: Mapping[str, Any], kinds: Mapping[str, Any]) -> Any:
    """The spec that JSON describes with its `kind`."""
    if given.get("kind") not in kinds:
        raise ValueError(f"kind {given.get('kind')!r} is unknown to this version; it reads {', '.join(kinds)}.")
    return _made(name, {key: value for key, value in given.items() if key != "kind"}, kinds[given["kind"]])


def _network(given: Mapping[str, Any], task: Task) -> Any:
    """The network that JSON describes, for inputs of the shape that the task has."""
    if _is_own(given):
        return own.from_described(given, task.shape)
    if given.get("kind") in MODELS:
        return _known_kind("network", given, MODELS)
    return _known_kind("network", {**given, "activation": _activation(given.get("activation"))}, NETWORKS)


def _training(given: Mapping[str, Any]) -> Any:
    """The optimiser that JSON describes."""
    return own_training.from_described(given) if _is_own(given) else _known_kind("training", given, TRAININGS)


def _is_own(given: Mapping[str, Any]) -> bool:
    """Whether JSON describes a class of one's own."""
    kind = given.get("kind")
    return isinstance(kind, str) and ":" in kind


def _activation(given: Any) -> Activation:
    """A built-in one, or one of one's own, from its description."""
    if not (isinstance(given, Mapping) and "derivative" in given):
        return _made("activation", given, Activation)  # type: ignore[no-any-return]
    missing = sorted({"name", "derivative", "kinks", "gain", "sha256"} - set(given))
    if missing:
        raise ValueError(f"activation lacks {', '.join(missing)}, which one of one's own is described by.")
    return Activation.from_described(given)


def _made(name: str, given: Any, kind: Any) -> Any:
    """A spec from its fields in JSON; ValueError for fields that it does not have, or if some are missing."""
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(given) - set(known)) if isinstance(given, Mapping) else [repr(given)]
    if unknown:
        raise ValueError(
            f"{name} has {', '.join(unknown)}, which this version does not know; it reads {', '.join(known)}."
        )
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"{name} is described incompletely, or by values of another type: {error}") from error
