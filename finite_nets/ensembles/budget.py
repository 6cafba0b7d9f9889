"""Memory of a batch of networks, and how many to train at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dmft import schema
from dmft.running import memory
from dmft.specs.curvature import ITERATIONS
from dmft.specs.training import Stepping
from finite_nets.device.free_memory import free_memory
from finite_nets.device.fused import BY
from finite_nets.device.matrices import room
from finite_nets.device.precision import Precision
from finite_nets.device.random import COUNTER_BYTES, counters_at_once, have_kernels
from finite_nets.ensembles import on_chip
from finite_nets.ensembles.recording import Plan
from finite_nets.training import curvature, entrywise, linear
from finite_nets.training.needs import Needs, needs
from finite_nets.training.programs import by_program, in_own_coordinates
from finite_nets.training.trainer import AT_ONCE, passes_apart

CPU_BATCH = 64 * 2**20  # bytes trained at once: beyond the caches a larger batch gains nothing
GPU_BATCH = 8 * 2**30  # fills the card many times over
GPU_SHARE = 0.5  # of the free memory, the most for a batch
DOUBLE = 8  # bytes
PASSES = 6  # of fields and weights that differentiating twice keeps


@dataclass(frozen=True)
class Budget:
    """Of one plan at one precision on one device.

    block: how many members a block of moments has; None where the recorded variables of every member are kept.
    memory_limit: bytes for a batch, or None for what is available.
    """

    plan: Plan
    precision: Precision
    device: torch.device
    block: int | None
    memory_limit: int | None = None

    @property
    def _itemsize(self) -> int:
        size: int = self.precision.fields.itemsize
        return size

    def _steps(self) -> int:
        return int(self.plan.steps[-1])

    def pairs(self, width: int) -> int:
        """How many pairs of fields a hidden matrix keeps."""
        batch = self.plan.problem.drawn.shape[1]
        return room(width, batch, self._stepping.pushes * self._steps(), self.precision.start, self.device)

    @property
    def _stepping(self) -> Stepping:
        return self.plan.problem.training.stepping

    @property
    def _needs(self) -> Needs | None:
        """Of networks that are trained by their program."""
        problem = self.plan.problem
        if not by_program(problem, self.precision):
            return None
        return needs(problem.network, problem.task.x_train.shape[1:], self.precision.quantisation)

    def weight_bytes(self, width: int) -> int:
        """Weights, with what training adds, of one network."""
        task, network = self.plan.problem.task, self.plan.problem.network
        training = self.plan.problem.training
        copies = entrywise.copies(training) if training.stepping.by_entry else linear.copies(training.recurrences)
        if self._needs is not None:
            own = in_own_coordinates(self.plan.problem, self.precision)
            points = self._needs.inputs if own else task.n_samples
            copies += self.precision.quantisation is not None  # rounded weights are one more
            working = entrywise.WORKING if training.stepping.by_entry else 0
            return self._itemsize * self._needs.weights(width, points, task.targets.shape[1], copies, working)
        inputs: int = min(task.dimension, task.n_samples) + int(network.bias > 0)
        inputs += -inputs % BY  # as rows that are read by four
        ends: int = width * (inputs + task.targets.shape[1]) * self._itemsize
        hidden, pairs = self.plan.problem.sketch.depth - 1, self.pairs(width)
        matrices: int = hidden * width * (width * self.precision.start.itemsize + 2 * pairs * self._itemsize)
        folds = pairs < self.plan.problem.drawn.shape[1] * self._steps()
        return copies * ends + matrices + (copies - 1) * int(folds) * hidden * width**2 * self._itemsize

    def working_bytes(self, width: int) -> int:
        """Of one network while it trains: weights; fields of each sample and event (for two-time kernels those of all
        saved steps, as a list, stacked and flattened); what a flow solves; what the curvature of the loss takes; what
        is recorded of a step, or all of it."""
        problem = self.plan.problem
        outputs, batch = problem.task.targets.shape[1], problem.drawn.shape[1]
        samples = self.plan.observed + (batch if problem.observed.start else 0)
        whole = self.plan.fields or self._stepping.follows_output or not self.precision.in_parts
        if passes_apart(self.plan.observed, whole):
            samples = max(AT_ONCE, batch)
        events = batch * (outputs if self._stepping.by_output else 1)  # of the batch; from the loss, unless a flow's
        if self.plan.gradients or self._stepping.follows_output:
            events = samples * outputs + (0 if events == batch * outputs else events)
        kernels, depth = 0, self.plan.size("layer")
        if self._stepping.passes > 1:  # a second pass, and the system with its factors
            samples, events = samples + batch, events + batch * outputs
            kernels = (depth + 6) * (batch * outputs) ** 2
        elif self._stepping.follows_output:
            kernels = (depth + 3) * events * batch * outputs
        each_step = sum(outputs if one.per_output else 1 for one in self.plan.between_steps)
        history = len(self.plan.steps) * self.plan.observed * each_step
        if any(one.on_request for one in self.plan.of_passes):
            samples += self.plan.observed  # of which a formula may make fields
        recorded = self.plan.numbers(self.plan.recorded)
        if self.block is None:
            results = 2 * recorded * self._itemsize
        else:  # of one step, with float64 copies; predictions of all
            two_time = self.plan.numbers([one.between_steps().name for one in self.plan.between_steps])
            each = (recorded - two_time) // len(self.plan.steps) + two_time
            results = each * (self._itemsize + 2 * DOUBLE) + 4 * DOUBLE * self.plan.numbers(["prediction"])
        if schema.need(self.plan.observables, schema.HESSIAN):
            results += self._curvature_numbers(width) * self._itemsize
        if self._needs is not None and any(one.preconditioned for one in self.plan.of_passes):
            # P of all weights; gradients of one event, and their products
            results += 4 * self._needs.weights(width, self._needs.inputs, outputs, 1) * self._itemsize
        fields = self._field_numbers(width, samples, events, history) * self._itemsize
        if on_chip.served(self.plan, self.precision, self.device, width) is not None:
            return results + on_chip.numbers(self.plan) * self._itemsize
        total: int = self.weight_bytes(width) + fields + kernels * DOUBLE + results
        return total

    def _field_numbers(self, width: int, samples: int, events: int, history: int) -> int:
        """Of passes forward through samples and backward from events, and of the history that two-time kernels take."""
        needed = self._needs
        if needed is None:
            return 3 * self.plan.size("layer") * width * (samples + events + history)
        fields = width * (needed.forward * samples + needed.backward * events + 3 * needed.layers * history)
        outputs = self.plan.size("output")
        # of one sample with all: products of gradients, and of what was given, in two orders
        tangent = self.plan.gradients or self._stepping.by_output
        products = 3 * samples * (outputs * needed.positions) ** 2 if tangent else 0
        return math.ceil(fields) + products

    def _curvature_numbers(self, width: int) -> int:
        problem, needed = self.plan.problem, self._needs
        if needed is None:
            return curvature.numbers_needed(problem, width)
        points = needed.inputs if any(schema.metrics(self.plan.observables)) else problem.task.n_samples
        weights = needed.weights(width, points, self.plan.size("output"), 1)
        return (ITERATIONS + PASSES) * weights + math.ceil(PASSES * width * needed.forward * problem.task.n_train)

    def block_bytes(self) -> int:
        """Of the moments of a block: means and squares of all steps, by steps and together, and products."""
        if self.block is None:
            return 0
        moments = 4 * self.plan.numbers(self.plan.quantities)
        return DOUBLE * (moments + 2 * self.plan.pair_numbers())

    def batch_bytes(self, width: int, count: int) -> int:
        """Of so many networks that train together."""
        blocks = 0 if self.block is None else math.ceil(count / self.block)
        return count * self.working_bytes(width) + blocks * self.block_bytes()

    def batch(self, width: int) -> int:
        """How many networks of this width to train at once.

        Raises:
            MemoryEstimateError: if there is no room for one.
        """
        needed = self.working_bytes(width)
        generator = 0 if have_kernels(self.device) else COUNTER_BYTES * counters_at_once(self.device)
        available = free_memory(self.device)
        target = CPU_BATCH if self.device.type == "cpu" else min(int(GPU_SHARE * available), GPU_BATCH)
        memory.require(
            self.batch_bytes(width, 1) + (generator if self.memory_limit is None else 0),
            limit=self.memory_limit,
            available=available,
            what=f"one network of width {width}",
            ways_out="lower the width, record fewer steps, use dtype='float32', or fewer samples",
        )
        if self.memory_limit is not None:
            target = min(target, self.memory_limit)
        fits = max(1, target // needed)
        if self.block is None:
            return fits
        whole = target // self.batch_bytes(width, self.block)
        return whole * self.block if whole else min(fits, self.block)
