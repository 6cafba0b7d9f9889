"""What results say of the modules that they are of: the description that stands in the place of a `dmft.Problem`.

It has no limit that the theory would compute, and is not read back; analyses ask it for loss and labels, and it tells
results of different modules, data and trainings apart.  The module is known by its parameters, with their roles and
shapes in units of the width, by the source of the function and the classes that make it, with what they use of their
surroundings, and by its layers and its outputs at fixed weights (`finite_nets.modules.identity`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from dmft.specs.descriptions import FORMAT
from dmft.specs.problem import identity
from finite_nets.modules.data import Observed
from finite_nets.modules.identity import probed, source_of
from finite_nets.modules.rates import MakeModule, Rate, Scaling
from finite_nets.modules.training import ModuleTraining


@dataclass(frozen=True)
class _Richness:
    gamma0: float
    sized = "width"
    wilder = ("gamma0",)

    def counts(self, width: int) -> dict[str, int]:
        """Of other numbers that grow with the width: none that are known."""
        del width
        return {}


@dataclass(frozen=True)
class ModuleProblem:
    """Attributes of the same names as those of a `dmft.Problem`, as far as results ask for them."""

    described: Mapping[str, Any]  # of the network
    task: Observed
    training: ModuleTraining
    loss: str
    gamma0: float
    layers: int

    @property
    def dimensions(self) -> dict[str, int]:
        return {"layer": self.layers, "attention_layer": 0, "query": 0, "key": 0}

    @property
    def sample_loss(self) -> str:
        return self.loss

    @property
    def network(self) -> _Richness:
        return _Richness(self.gamma0)

    @property
    def observed(self) -> slice:
        return slice(0, self.task.n_samples)

    @cached_property
    def _physics(self) -> dict[str, Any]:
        observed = [self.task.n_train, self.task.n_test]
        given = self.task.provenance
        windows = {name: given[name] for name in ("context", "stride") if name in given}
        training = self.training.described() | {"observed": observed} | windows
        physics = {"format": FORMAT, "network": dict(self.described), "training": training, "loss": self.loss}
        found: dict[str, Any] = json.loads(json.dumps(physics))
        return found

    @property
    def problem_id(self) -> str:
        return identity(self._physics, self.task.sha256)

    def to_json(self, *, arrays: bool = False) -> str:
        del arrays  # results name data by their digest alone
        task = {"sha256": self.task.sha256, "shapes": self.task.shapes, "provenance": self.task.provenance}
        return json.dumps({**self._physics, "task": task}, sort_keys=True)


def described(
    make_module: MakeModule, module: nn.Module, rates: Sequence[Rate], scaling: Scaling, seen: Tensor, outputs: int
) -> dict[str, Any]:
    """Of a network, for JSON; `module` and `rates` at any width, of such inputs `seen` and so many outputs."""
    classes = sorted({type(part) for part in module.modules()}, key=lambda kind: kind.__qualname__)
    own = [kind for kind in classes if not kind.__module__.startswith("torch.")]
    digest = hashlib.sha256()
    for each in (make_module, *own):
        digest.update(source_of(each).encode())
    structure = [(one.name, one.role, one.axes) for one in rates]
    digest.update(json.dumps([structure, probed(make_module, seen, outputs)]).encode())
    return {
        "kind": "module",
        "name": getattr(make_module, "__qualname__", type(make_module).__qualname__),
        "module": type(module).__qualname__,
        "parameters": len(rates),
        "sha256": digest.hexdigest(),
        **{name: value for name, value in asdict(scaling).items() if name != "optimiser"},
    }
