"""A batch of networks of any architecture: its program (`finite_nets.training.tape`) drawn, passed through and moved.

    f_c = w_c . features / (gamma0 N)          W += c sum_use sum_a Delta_a sum_y g_ay v_ay^T [/ sqrt(N) of a matrix]
    feature kernel (1/X) sum_x <phi_ax phi_bx>      gradient kernel sum_x <g_ax g_bx>      of layers with X positions

with the cotangents, scales and rates of `dmft.specs.parameterization`.  Where populations have N_p neurons, other
numbers than the width N of the network, those of the readout N_w, g is per neuron of the readout:

    f_c = w_c . features / (gamma0 N_w)        c N / N_w of all weights (their rate is eta gamma0^2 N)
    matrices (N_out, N_in), v / sqrt(N_in)     gradient kernel (N_p / N_w)^2 sum_x <g g>, per neuron of p
    NTK: <g g> <v v> N_out N / N_w^2 of every weight, of the readout <phi phi> N / N_w

A number, of rate eta gamma0^2 alone, is a vector of one component that moves 1 / N times as fast.

What is normal at initialisation has the number of its weight as parameter of `finite_nets.device.random`: matrices in
the order in which the program meets them, then the readout, then vectors; a bank of K is drawn as (K N, N).  Numbered
so, a perceptron has here the weights that `finite_nets.training.perceptrons` gives it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmft.specs import MLP, Problem, ResidualMLP, loss
from dmft.specs.networks.drawing import starts_of
from dmft.specs.networks.population import Field
from dmft.specs.networks.program import input_factors
from dmft.specs.parameterization import (
    MEAN_FIELD,
    STANDARD,
    Scales,
    batch_scale,
    entry_step,
    hidden_scale,
    initial_deviations,
    layer_variances,
    output_scale,
    position_scale,
    trained_layers,
    with_bias,
)
from finite_nets.device.precision import Precision
from finite_nets.device.products import Products
from finite_nets.device.random import normals
from finite_nets.device.rounding import Quantisation, Rounding
from finite_nets.training import curvature, hessian, preconditioned
from finite_nets.training.observables import Shown, kernels
from finite_nets.training.perceptrons import Trainer, scale_first
from finite_nets.training.state import NEVER, Fields, Met, Moved, State
from finite_nets.training.tape import Constants, Numbers, Tape
from finite_nets.training.traces import Index, Trace, tangent_kernel
from finite_nets.training.trainer import Training


def trainer_of(problem: Problem, device: torch.device, precision: Precision, *, program: bool = False) -> Training[Any]:
    """The trainer of a problem's networks: by their program, or, of perceptrons, the one that is made for them.

    program: whether to take the first for perceptrons, too.
    """
    kind = ProgramTrainer if program or by_program(problem, precision) else Trainer
    return kind(problem, device, precision)


def by_program(problem: Problem, precision: Precision) -> bool:
    """Whether the networks of a problem are trained by their program: all that may be rounded to few bits are, and all
    whose entries move by rules of their own."""
    return in_own_coordinates(problem, precision) or type(problem.network) not in (MLP, ResidualMLP)


def in_own_coordinates(problem: Problem, precision: Precision) -> bool:
    """Whether networks read inputs as they are, not in a basis of their span: entries that are rounded, or move each by
    itself, are others in every basis, and so are images that change."""
    return precision.quantisation is not None or problem.training.stepping.by_entry or problem.changing


@dataclass
class Leaves(Moved):
    """What training moves: tensors by number, and the layer of each."""

    tensors: list[Tensor]
    layers: tuple[int, ...]
    trained: tuple[float, ...]
    share: float = 1.0

    @property
    def readout(self) -> Tensor:  # type: ignore[override]
        return self.tensors[max(self.layers)]

    def tensors_moved(self) -> list[Tensor]:
        return self.tensors

    def parts(self) -> list[Tensor]:
        return [tensor for tensor, layer in zip(self.tensors, self.layers, strict=True) if self.trained[layer]]

    def zeros(self) -> Leaves:
        return replace(self, tensors=[torch.zeros_like(tensor) for tensor in self.tensors])

    def copy(self) -> Leaves:
        return replace(self, tensors=[tensor.clone() for tensor in self.tensors])


class ProgramTrainer(Training[Leaves]):
    """Trains batches of networks by their program.  `x` is what it reads, in the coordinates of `coordinates`."""

    def __init__(self, problem: Problem, device: torch.device, precision: Precision) -> None:
        _check(problem, precision)
        inputs, directions = coordinates(problem, real=in_own_coordinates(problem, precision))
        super().__init__(problem, device, precision, inputs)
        self.numbers, sketch = Numbers.of(problem.sketch), problem.sketch
        self.sizes = lru_cache(maxsize=8)(sketch.sizes)
        self.entry_steps = lru_cache(maxsize=8)(self._entry_steps)
        self._read = math.prod(sketch.flattened)  # positions that the readout has weights of its own for
        self._position_scale = position_scale(sketch.flattened)
        self._top, self._places = sketch.place(sketch.readout), [sketch.place(p) for p, _ in sketch.layers]
        self._each = sketch.read  # positions that share it, with outputs of their own
        self._directions = directions
        self._shape = problem.task.x_train.shape[1:]
        self._constants = Constants(self.x)
        self._points = inputs.reshape(-1, inputs.shape[-1])

    # ---- at initialisation -------------------------------------------------------------------------------------------

    def start(self, width: int, members: Tensor, root_seed: int, steps: int | None = None) -> State[Leaves]:  # noqa: ARG002
        weights = Leaves(
            self.draw(width, members, root_seed),
            self.numbers.layers,
            trained_layers(self.network, self.numbers.readout + 1),
            self._read * self.sizes(width)[self._top] / width,
        )
        exploded_at = weights.readout.new_full((len(members),), NEVER)
        return State(weights, self.scales(width, self.batch), exploded_at, self.slots(weights))

    def draw(self, width: int, members: Tensor, root_seed: int) -> list[Tensor]:
        """The members' weights at initialisation, by number."""
        network, numbers = self.network, self.numbers
        variances = layer_variances(network, numbers.readout + 1)
        starts, found = iter(starts_of(network, self._shape)), []
        for number, bank in enumerate(numbers.banks):
            if numbers.ends[number][1] is None:
                found.append(self.x.new_full((len(members), 1), next(starts)))
                continue
            shape = self._drawn_shape(number, bank, width)
            drawn = normals(
                shape,
                root_seed=root_seed,
                width=width,
                parameter=number,
                members=members,
                dtype=self.precision.fields,
            )
            if number in numbers.reads:
                one = (variances[number],)
                scale_first(drawn, initial_deviations(network, self._points, network.bias, one))
            else:
                variance = variances[number] if number <= numbers.readout else network.bias_variance
                if variance != 1:
                    drawn.mul_(math.sqrt(variance))
            if bank:
                rows, columns = shape
                by_target = drawn.reshape(-1, bank, rows // bank, columns).transpose(1, 2)
                drawn = by_target.reshape(-1, rows // bank, bank * columns)
            found.append(drawn)
        return found

    def _drawn_shape(self, number: int, bank: int, width: int) -> tuple[int, ...]:
        sizes, (source, target) = self.sizes(width), self.numbers.ends[number]
        assert target is not None  # numbers are not drawn
        if number in self.numbers.reads:
            return sizes[target], self.x.shape[-1]
        if number == self.numbers.readout:
            return self.outputs // (self._each or 1), self._read * sizes[target]
        return (sizes[target],) if source is None else (max(bank, 1) * sizes[target], sizes[source])

    def scales(self, width: int, batch: int) -> Scales:
        """Of networks of this width, trained on batches of so many samples."""
        network, free = self.network, trained_layers(self.network, self.numbers.readout + 1)
        top = self.sizes(width)[self._top]
        root = 1.0 if network.parameterization == MEAN_FIELD else math.sqrt(top)
        inputs = [self._directions if layer in self.numbers.reads else width for layer in range(len(free))]
        factors = [float(n) if network.parameterization == STANDARD else 1.0 for n in inputs]
        trained = [t * m for t, m in zip(free, factors, strict=True)]
        return Scales(
            output=output_scale(network.gamma0, top) * root,
            update=tuple(m * batch_scale(network.gamma0, batch) / (root * self._share(width)) for m in trained),
            tangent=tuple(trained),
        )

    @cached_property
    def between_neurons(self) -> frozenset[int]:
        """Numbers of matrices, banks among them."""
        return frozenset(range(self.numbers.readout)) - {*self.numbers.reads}

    def neurons_reached(self, width: int) -> list[int | None]:
        """How many the population has that each weight ends in, by number; None of numbers."""
        sizes = self.sizes(width)
        return [None if target is None else sizes[target] for _, target in self.numbers.ends]

    def _entry_steps(self, width: int) -> list[Tensor | float]:
        """gamma0 s of the weights by number, of reads (direction,)."""
        sizes, numbers = self.sizes(width), self.numbers

        def factor(number: int) -> Tensor | float:
            source, _ = numbers.ends[number]
            if number in numbers.reads:
                return self._input_factors
            if number == numbers.readout:
                return self._position_scale
            return 1.0 if source is None else hidden_scale(max(numbers.banks[number], 1) * sizes[source])

        return [entry_step(self.network.gamma0, factor(number)) for number in range(len(numbers.ends))]

    @cached_property
    def _input_factors(self) -> Tensor:
        """s (direction,), copied to the device once."""
        return torch.as_tensor(input_factors(self.network, self._shape)).to(self.x)

    def _share(self, width: int) -> float:
        """N_w / N, where rates have the factor N."""
        return self.sizes(width)[self._top] / width if self.network.parameterization == MEAN_FIELD else 1.0

    # ---- one pass, one update ----------------------------------------------------------------------------------------

    def tape(self, tensors: Sequence[Tensor], products: Products, constants: Constants, rows: int, **kind: Any) -> Tape:
        """For one pass of so many samples through networks with these weights; `kind` as of `Tape`."""
        return Tape(self.numbers, tensors, products, constants, self._shape, rows, **kind)

    def outputs_of(self, state: State[Leaves], met: Met, bits: Quantisation) -> Tensor:
        """(member, sample, output), of the samples met, as networks that are rounded to these bits count them."""
        _, _, _, output = self._forward(state, self.x[met.rows], met, bits)
        return self.counted(state, output, met.rows)

    def outputs_at(self, state: State[Leaves], rows: Index) -> Tensor:
        met = Met(rows, slice(0, 0), slice(None))
        return self._forward(state, self.x[rows], met, self.precision.quantisation)[3]

    def _forward(
        self, state: State[Leaves], x: Tensor, met: Met, bits: Quantisation | None
    ) -> tuple[Tape, Field, Tensor, Tensor]:
        """The tape of a pass and its end, the readout as it was multiplied, and the output, not centered; x: inputs of
        the samples met."""
        rounding = Rounding(bits, (*self.numbers.reads, self.numbers.readout), met.trained)
        tape = self.tape(state.weights.tensors, self.products, self._constants, len(x), traced=True, rounding=rounding)
        with torch.inference_mode(False), torch.no_grad():  # fields that PyTorch differentiates need no copies then
            end = tape.read_out(self.network.program(tape, x))
        readout = rounding.weights(self.numbers.readout, state.weights.readout)
        return tape, end, readout, self.output(end.value.value, readout, self.products, state.scales.output)

    def evaluate(self, state: State[Leaves], met: Met, *, gradients: bool) -> tuple[Fields, Fields]:
        x = self.inputs(met)
        tape, end, readout, output = self._forward(state, x, met, self.precision.quantisation)
        output = self.counted(state, output, met.rows)
        target = self.targets[met.rows]
        delta = loss.descent(torch, self.loss, output, target)
        seen = Fields(x, target, output, delta, tape.features, [], tape.trace(end))
        trained, every_output = seen.at(met.trained), self._starts(readout)
        if gradients:
            found, trace = tape.backward(end, every_output, slice(None))
            seen = seen._replace(gradients=found, trace=trace)
        if gradients and self.from_outputs:
            trained = seen.at(met.trained)
        else:
            starts = every_output if self.from_outputs else self._from_loss(trained.delta, readout)
            found, trace = tape.backward(end, starts, met.trained)
            trained = trained._replace(gradients=found, trace=trace)
        tape.forget()
        return seen, trained

    def push(self, state: State[Leaves], target: Leaves, seen: Fields, coefficients: Tensor, factor: float) -> None:
        update, numbers, trace = state.scales.update, self.numbers, _trace(seen)
        for use in trace.uses:
            number, given, g = use
            layer = numbers.layers[number]
            if not target.trained[layer]:
                continue
            pushed = _weighted(coefficients, g) if self.from_outputs else g[:, :, 0]
            scale = factor * update[layer] * numbers.rate(number, state.width)
            if given is None:
                target.tensors[number].add_(pushed.sum((1, 2)), alpha=scale)
                continue
            if number not in numbers.reads:
                scale *= hidden_scale(self._fan_in(number, state))
            inputs = given.flatten(1, 2).expand(len(g), -1, -1)
            self.products.accumulate(target.tensors[number], pushed.flatten(1, 2), inputs, None, scale=scale)
        if target.trained[-1]:
            scale = factor * update[-1]
            rows = coefficients.reshape(len(coefficients), -1, target.readout.shape[1])
            self.products.accumulate(target.readout, rows, _met(trace.end, target.readout), None, scale=scale)

    def output(self, end: Tensor, readout: Tensor, products: Products, scale: float) -> Tensor:
        """(member, row, output), of positions with outputs of their own side by side."""
        return products.image(_met(end, readout), readout, scale=scale).reshape(*end.shape[:2], -1)

    def _starts(self, readout: Tensor) -> Tensor:
        """(member, 1, output, N): cotangents of what is averaged, positions side by side, from every output."""
        if not self._each:
            return readout[:, None]
        own = torch.eye(self._each, dtype=readout.dtype, device=readout.device)
        return torch.einsum("xy,mcn->mxcyn", own, readout).flatten(3).flatten(1, 2)[:, None]

    def _from_loss(self, delta: Tensor, readout: Tensor) -> Tensor:
        """(member, row, 1, N): their sum with the coefficients Delta."""
        found = self.products.pullback(delta.reshape(len(delta), -1, readout.shape[1]), readout)
        return found.reshape(*delta.shape[:2], 1, -1)

    def _fan_in(self, number: int, state: State[Leaves]) -> int:
        """Neurons of what a matrix multiplies."""
        source, _ = self.numbers.ends[number]
        assert source is not None  # of vectors and reads alone
        return self.sizes(state.width)[source]

    # ---- what is recorded --------------------------------------------------------------------------------------------

    def neurons(self, state: State[Leaves]) -> list[int]:
        sizes = self.sizes(state.width)
        return [sizes[place] for place in self._places]

    def gradient_scales(self, state: State[Leaves]) -> list[float]:
        top = self.sizes(state.width)[self._top]
        return [count / top for count in self.neurons(state)]

    def tangent_kernel(self, state: State[Leaves], a: Fields, b: Fields, shown: Shown | None = None) -> Tensor:  # noqa: ARG002
        first, second = _trace(a), _trace(b)
        factors, inputs = self.tangent_factors(state)
        tops = [_met(trace.end, state.weights.readout) for trace in (first, second)]
        phi = kernels(self.products, tops[:1], tops[1:], [self.sizes(state.width)[self._top]])
        K = factors[self.numbers.readout] * self._between_outputs(phi)
        K = K + tangent_kernel(self.products, first, second, factors, inputs)
        return K.flatten(3).flatten(1, 2)

    def tangent_factors(self, state: State[Leaves]) -> tuple[list[float], list[float]]:
        """Of the weights by number: what products of gradients are multiplied by in the NTK, and those of what was
        given."""
        numbers, sizes, tangent = self.numbers, self.sizes(state.width), state.scales.tangent
        one = sizes[self._top] * self._share(state.width)
        factors = [
            tangent[layer] * numbers.rate(number, state.width) * (1 if end is None else sizes[end]) / one
            for number, (layer, (_, end)) in enumerate(zip(numbers.layers, numbers.ends, strict=True))
        ]
        return factors, [1.0 if source is None else 1 / sizes[source] for source, _ in numbers.ends]

    def _between_outputs(self, phi: Tensor) -> Tensor:
        """(member, row, output, row_2, output_2) of the readout, of averages (member, output of a position or 1, row
        and position, row_2 and position_2)."""
        places = self._each or 1
        members, _, rows, rows_2 = phi.shape
        shape = (members, self.outputs // places, rows // places, places, rows_2 // places, places)
        each = phi.expand(-1, shape[1], -1, -1).reshape(shape)
        same = torch.eye(shape[1], dtype=phi.dtype, device=phi.device)[:, None, None]
        return (each.permute(0, 2, 3, 1, 4, 5)[..., None] * same).flatten(5).flatten(2, 3)

    def preactivations(self, state: State[Leaves], seen: Fields, rows: Sequence[int]) -> list[Tensor]:  # noqa: ARG002
        return [h[:, list(rows)] for h in _trace(seen).h]

    def preconditioned_kernel(self, state: State[Leaves], seen: Fields) -> Tensor:
        assert state.coming is not None  # while a step is recorded
        P, trace, readout = state.coming(), _trace(seen), self.numbers.readout
        factors, inputs = self.tangent_factors(state)
        top = _met(trace.end, state.weights.readout)
        weighted = P[readout] / self.sizes(state.width)[self._top]
        K = factors[readout] * self._between_outputs(torch.einsum("maj,mcj,mbj->mcab", top, weighted, top))
        return K.flatten(3).flatten(1, 2) + preconditioned.tangent_kernel(trace, P, factors, inputs)

    def eigenvalues(self, state: State[Leaves], *, preconditioned: bool = False) -> Tensor:
        P = None
        if preconditioned:
            assert state.coming is not None  # while a step is recorded
            P = state.coming()
        return curvature.eigenvalues(hessian.Hessian(self, state, P))


def _met(end: Tensor, readout: Tensor) -> Tensor:
    """(member, row, N), or of every position, or with all of them side by side: what the readout multiplies."""
    return end.reshape(len(end), -1, readout.shape[-1])


def _trace(fields: Fields) -> Trace:
    assert fields.trace is not None  # of a pass of a program
    return fields.trace


def _weighted(coefficients: Tensor, g: Tensor) -> Tensor:
    """(member, row, position, N): sum over outputs of coefficients (member, row, output) and g (..., start, ...)."""
    if g.shape[2] == 1:
        return coefficients[..., None] * g[:, :, 0]
    return torch.einsum("mrc,mrcyn->mryn", coefficients, g)


# ---- of a problem ----------------------------------------------------------------------------------------------------


def coordinates(problem: Problem, *, real: bool = False) -> tuple[NDArray[np.float64], int]:
    """What the program reads, (sample, [position,] direction), with the input that is the bias of the first layer, and
    how many directions there are: in an orthonormal basis of their span when that has fewer, if not in `real` ones."""
    read = np.asarray(problem.network.inputs(problem.task.x), np.float64)
    directions = read.shape[-1]
    points = with_bias(read.reshape(-1, directions), problem.network.bias)
    if len(points) < points.shape[1] and not real:
        points = np.asarray(np.linalg.qr(points.T)[1].T)
    return points.reshape(*read.shape[:-1], -1), directions


def _check(problem: Problem, precision: Precision) -> None:
    """ValueError for what programs are not trained with, and for one that is not that of the problem any more."""
    network, _ = problem.network, problem.program_digest
    if precision.start != precision.fields:
        name = type(network).__name__
        raise ValueError(f'dtype="{precision.name}" is for perceptrons; train {name} with dtype="float32" or "tf32".')
