"""Small perceptrons of an ensemble that are drawn, trained and looked at on chip (`finite_nets.device.chip`).

Whatever else is asked for, `finite_nets.training` does.  A member has the same numbers either way, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmft.schema.seen import Seen
from dmft.specs import MLP, Problem
from dmft.specs.networks.perceptron import perceptron
from dmft.specs.parameterization import hidden_scale, input_scale, scales
from dmft.specs.training.recurrence import RECURRENCE
from finite_nets.device import chip, mappings, nvrtc
from finite_nets.device.mappings import Shape
from finite_nets.device.precision import Precision
from finite_nets.device.random import have_kernels
from finite_nets.ensembles.recording import Plan
from finite_nets.training.observables import ntk
from finite_nets.training.perceptrons import Trainer
from finite_nets.training.trainer import Training

PRECISIONS = ("float32", "tf32")  # products on chip are those of float32, for the second better than asked for
RECORDED = ("feature_kernel", "gradient_kernel", "ntk", "participation_ratio")  # of passes, by their kernels


def reason_against(plan: Plan, precision: Precision) -> str:
    """What of a plan networks on chip do not have; "" if they have all."""
    problem, network, training = plan.problem, plan.problem.network, plan.problem.training
    others = [one.name for one in plan.of_passes if one.name not in RECORDED]
    found = {
        f"dtype={precision.name!r}": precision.name not in PRECISIONS,
        "quantisation": precision.quantisation is not None,
        f"{type(network).__name__}": type(network) is not MLP,
        "several outputs": problem.task.targets.shape[1] != 1,
        f"loss={problem.sample_loss!r}": problem.sample_loss not in chip.LOSSES,
        f"{type(training).__name__}": training.stepping != RECURRENCE or training.recurrences.slots > 0,
        "batches": training.batches is not None or problem.observed.start > 0,
        f"{', '.join(others)}": bool(others),
        "kernels between steps": bool(plan.between_steps),
        "the Hessian": bool(plan.of_hessian),
    }
    if type(network) is MLP:
        found["biases"] = network.bias > 0
        found["an activation of one's own"] = not network.activation.plain
    return ", ".join(what for what, missing in found.items() if missing)


def job(plan: Plan, trainer: Training[Any], width: int) -> chip.Job:
    """What a chip is to do."""
    problem: Problem = plan.problem
    assert isinstance(trainer, Trainer)  # as of all perceptrons
    task, network, training = problem.task, trainer.perceptron, problem.training
    of_width, recurrence = scales(network, width, task.dimension, trainer.batch), training.recurrences
    update = np.array(of_width.update)
    return chip.Job(
        width=width,
        activation=network.activation,
        loss=problem.sample_loss,
        inputs=trainer.x[:, : trainer.features].double().cpu().numpy(),
        trained=task.n_train,
        targets=task.targets[:, 0],
        keep=np.where(update != 0, recurrence.A[:, 0], 1.0),
        push=recurrence.b * update,
        recorded=plan.steps.tolist(),
        deviations=trainer.deviations.weights,
        input_scale=input_scale(task.dimension),
        hidden_scale=hidden_scale(width),
        output_scale=of_width.output,
        centered=network.centered,
    )


def served(plan: Plan, precision: Precision, device: torch.device, width: int) -> Shape | None:
    """How networks of a width lie on the chip of a device; None if they are not trained there."""
    if type(plan) is not Plan or not have_kernels(device) or not nvrtc.available():
        return None
    if reason_against(plan, precision):
        return None
    task = plan.problem.task
    properties: Any = torch.cuda.get_device_properties(device)  # whose stubs lack it
    shared = getattr(properties, "shared_memory_per_block_optin", nvrtc.USUAL_SHARED)
    kernels, network = bool(plan.of_passes), perceptron(plan.problem.network, "a chip", "train by products")
    units = getattr(properties, "major", 0) >= mappings.UNITS_SINCE
    resident = getattr(properties, "shared_memory_per_multiprocessor", mappings.SHARED)
    sizes = width, network.depth, task.n_samples, task.n_train
    shape = mappings.shape_of(*sizes, shared, kernels=kernels, units=units, resident=resident)
    if shape is None:
        return None
    defined = chip.defined(shape, network.activation, plan.problem.sample_loss)
    return shape if chip.compiles(defined, device) else None


def numbers(plan: Plan) -> int:
    """How many a network leaves: outputs, and kernels of both kinds."""
    samples = plan.problem.task.n_samples
    kernels = 2 * plan.size("layer") * samples**2 if plan.of_passes else 0
    return len(plan.steps) * (samples + kernels)


class OnChip:
    """A batch of networks that are trained on chip."""

    exploded_at: Tensor

    def __init__(self, plan: Plan, trainer: Training[Any], made: chip.Chip, members: Tensor, root_seed: int) -> None:
        assert isinstance(trainer, Trainer)
        self._plan, self._trainer, self._width = plan, trainer, made.job.width
        self._train = partial(made.train, members, root_seed)

    @cached_property
    def _found(self) -> chip.Trained:
        return self._train()

    def recorded(self) -> Iterator[tuple[str, Tensor]]:
        """What the plan records, one saved step after the other."""
        plan, found = self._plan, self._found
        self.exploded_at = found.exploded_at
        outputs, task = bool(plan.problem.task.outputs), plan.problem.task
        tangent = scales(self._trainer.perceptron, self._width, task.dimension, self._trainer.batch).tangent
        sizes = plan.problem.sketch.dimensions | {dim: plan.size(dim) for dim in ("sample", "output")}
        for step, output in enumerate(found.outputs):
            yield "prediction", output[..., None] if outputs else output
            if found.phi is None or found.g is None:
                continue
            shown = Kernels(self._trainer, tangent, found.phi[step], found.g[step])
            for one in plan.of_passes:
                yield one.name, one.arranged(shown.value(one), sizes, outputs=outputs, leading=1)


class Kernels(Seen):
    """What observables see of the kernels (member, layer, sample, sample_2) of a step."""

    xp = torch

    def __init__(self, trainer: Trainer, tangent: Sequence[float], phi: Tensor, g: Tensor) -> None:
        super().__init__(slice(0, trainer.n_train))
        self._trainer, self._tangent = trainer, tangent
        self._found = {"feature_kernel": phi, "gradient_kernel": g}

    @property
    def preactivations(self) -> Any:
        raise NotImplementedError

    features = gradients = preactivations

    def inner(self, a: Any, b: Any, *, mean: bool = True) -> Any:
        raise NotImplementedError

    def averages(self, name: str, function: Any = None) -> Any:
        raise NotImplementedError

    def tangent_kernel(self) -> Tensor:
        phi, g = self._found["feature_kernel"], self._found["gradient_kernel"]
        return ntk(self._trainer.input_kernel, phi, g, self._tangent, self._trainer.bias)
