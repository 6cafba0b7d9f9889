"""What is recorded of a batch of networks at a step, with a leading axis `member`.

    Phi^l = phi(h^l) . phi(h^l)' / N      G^l = g^l . g^l' / N
    K = sum_{l=0..L} m_l G^{l+1} (Phi^l + sigma^2)      Phi^0 = K^x,  G^{L+1} = 1 in outputs

sigma is the scale of biases, which the last term, that of the readout, lacks; m_l is 1 where weights are trained, b^2
in the blocks of a residual network (`dmft.specs.parameterization`, tangent scales).  Fields are (member, sample, N),
backward fields (member, sample, output, N); an event is a sample, or a sample and an output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmft.schema import Seen
from finite_nets.device.products import Products

if TYPE_CHECKING:
    from finite_nets.training.state import Fields, State, W
    from finite_nets.training.trainer import Training


class Shown(Seen):
    """What observables see of a pass over the observed samples (`dmft.schema.observable`)."""

    xp = torch

    def __init__(self, trainer: Training[W], state: State[W], fields: Fields) -> None:
        super().__init__(slice(0, max(trainer.n_train - trainer.observed.start, 0)))
        self._trainer, self._state, self._fields = trainer, state, fields
        self.targets = fields.target

    @property
    def preactivations(self) -> list[Tensor]:
        every = range(len(self._fields.x))
        return [h.flatten(2) for h in self._trainer.preactivations(self._state, self._fields, every)]

    @property
    def features(self) -> list[Tensor]:
        return self._fields.features

    @property
    def gradients(self) -> list[Tensor]:
        self.require_gradients(bool(self._fields.gradients))
        each = zip(self._fields.gradients, self._trainer.gradient_scales(self._state), strict=True)
        return [g if scale == 1 else scale * g for g, scale in each]

    def inner(self, a: Sequence[Tensor], b: Sequence[Tensor], *, mean: bool = True) -> Tensor:
        return kernels(self._trainer.products, a, b, None if mean else self._trainer.neurons(self._state))

    def averages(self, name: str, function: Callable[[Tensor], Tensor] = lambda a: a) -> Tensor:
        assert self._fields.trace is not None  # of a program
        found = [function(note.units()).mean(-1) for note in self._fields.trace.notes if note.name == name]
        return torch.stack(found, dim=1)

    def preconditioned_kernel(self) -> Tensor:
        self.require_gradients(bool(self._fields.gradients))
        return self._trainer.preconditioned_kernel(self._state, self._fields)

    def tangent_kernel(self) -> Tensor:
        self.require_gradients(bool(self._fields.gradients))
        return self._trainer.tangent_kernel(self._state, self._fields, self._fields, self)


def kernels(
    products: Products, a: Sequence[Tensor], b: Sequence[Tensor], counts: Sequence[float] | None = None
) -> Tensor:
    """(member, layer, event, event_2): averages over neurons of products of the fields of two passes, by layer.

    counts: what the sums of every layer are divided by; as many as they have terms by default.
    """
    pairs = [(_by_event(v), _by_event(w)) for v, w in zip(a, b, strict=True)]
    counts = [v.shape[-1] for v, _ in pairs] if counts is None else counts
    each = zip(pairs, counts, strict=True)
    return torch.stack([products.image(v, w, scale=1 / count) for (v, w), count in each], dim=1)


def two_time_kernels(products: Products, fields: list[Tensor], counts: Sequence[float] | None = None) -> Tensor:
    """(member, layer, step and event, step_2 and event_2) from fields (step, member, ..., N) a layer."""
    by_event = [_by_event(field.movedim(0, 1)) for field in fields]
    return kernels(products, by_event, by_event, counts)


def ntk(
    input_kernel: Tensor, feature_kernel: Tensor, gradient_kernel: Tensor, tangent: Sequence[float], bias: float
) -> Tensor:
    """(member, event, event_2), from Phi^0 + sigma^2 (sample, sample_2), Phi (member, layer, sample, sample_2) and G
    (member, layer, event, event_2)."""
    rows, columns = input_kernel.shape
    members, layers, events, events_2 = gradient_kernel.shape
    outputs = events // rows
    G = gradient_kernel.reshape(members, layers, rows, outputs, columns, outputs)
    phi = feature_kernel[:, :, :, None, :, None]
    same = torch.eye(outputs, dtype=phi.dtype, device=phi.device)[:, None, :]
    K = tangent[0] * G[:, 0] * input_kernel[:, None, :, None] + tangent[-1] * phi[:, -1] * same
    for layer in range(1, layers):
        K = K + tangent[layer] * G[:, layer] * (phi[:, layer - 1] + bias**2)
    return K.reshape(members, events, events_2)


def _by_event(field: Tensor) -> Tensor:
    """(member, event, N)."""
    return field.flatten(1, -2)
