"""Several problems: those that differ from one in some of its fields, and what tells problems from each other."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from dmft.specs.descriptions import SILENT
from dmft.specs.problem import Problem

COUNTS = ("depth", "blocks", "branch_layers")  # fields that the number of the readout follows from
LONGEST = 60  # characters of a value that is shown


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
