"""Descriptions of problems, as JSON has them: of which kinds specs are, what is left out, and how they are read."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from dmft.specs import networks, random_data, training
from dmft.specs._kinds import kinds_in
from dmft.specs.activation import Activation
from dmft.specs.networks import Architecture, own
from dmft.specs.random_data import RandomModel, RandomSource
from dmft.specs.tasks.given import Task
from dmft.specs.training import Epochs, Training
from dmft.specs.training import own as own_training

FORMAT = 1
NETWORKS = kinds_in(networks, Architecture)
TRAININGS = kinds_in(training, Training)
MODELS = kinds_in(random_data, RandomModel)  # of random data
SOURCES = kinds_in(random_data, RandomSource)
BUILT_IN = NETWORKS | MODELS
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


def described(spec: Any) -> dict[str, Any]:
    """What JSON has of a built-in network, or of any training."""
    if isinstance(spec, Training) and type(spec) not in TRAININGS.values():
        return own_training.described(spec)
    found = {field.name: getattr(spec, field.name) for field in fields(spec)}
    found = {k: v for k, v in found.items() if k not in SILENT or v != SILENT[k]}
    if isinstance(found.get("batches"), Epochs):
        found["batches"] = asdict(found["batches"])
    if "activation" in found:
        found["activation"] = found["activation"].described()
    return {"kind": type(spec).__name__, **found}


def parsed(text: str) -> dict[str, Any]:
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


def read_task(data: Mapping[str, Any]) -> Any:
    """The data that problem JSON holds; ValueError if they are damaged."""
    try:
        arrays = {
            name: np.frombuffer(base64.b64decode(text), dtype="<f8").reshape(data["shapes"][name])
            for name, text in data["float64"].items()
        }
        kind: type[RandomSource] | type[Task] = SOURCES[data["kind"]] if "kind" in data else Task
        return kind.stored(arrays, data)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"the data in this problem JSON are damaged: {error}.") from error


def _known_kind(name: str, given: Mapping[str, Any], kinds: Mapping[str, Any]) -> Any:
    """The spec that JSON describes with its `kind`."""
    if given.get("kind") not in kinds:
        raise ValueError(f"kind {given.get('kind')!r} is unknown to this version; it reads {', '.join(kinds)}.")
    return _made(name, {key: value for key, value in given.items() if key != "kind"}, kinds[given["kind"]])


def read_network(given: Mapping[str, Any], task: Task) -> Any:
    """The network that JSON describes, for inputs of the shape that the task has."""
    if _is_own(given):
        return own.from_described(given, task.shape)
    if given.get("kind") in MODELS:
        return _known_kind("network", given, MODELS)
    return _known_kind("network", {**given, "activation": _activation(given.get("activation"))}, NETWORKS)


def read_training(given: Mapping[str, Any]) -> Any:
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
