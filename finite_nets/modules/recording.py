"""What is recorded of modules in training, at saved steps, of the observed samples.

    prediction            (sample[, output]), the last position of text
    feature_kernel        (layer, sample, sample_2): mean over the entries (neurons, positions) of a layer of products
    activation_size       (layer,): root mean square of its entries;  activation_change: that of what training added
    activation_density    (layer, bin): share of entries in a bin over its width
    weight_change         (parameter,): |theta - theta_0| / |theta_0| of Frobenius, of those that start from normals
    measured              (entry,): what functions of the user's own return, one after the other

Layers are the outputs of submodules, by name.  (In mean-field scaling weight_change of a hidden matrix falls like
N^-1/2: what is learned has few directions.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

Parameters = dict[str, Tensor]
Measure = Callable[[nn.Module, Tensor], Tensor]


class _Measured(nn.Module):
    """A function of a module and inputs, as a module that has its parameters."""

    def __init__(self, module: nn.Module, function: Measure) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.module, x)


class Recorder:
    """Of one module, whose parameters are given anew at every call: (member, ...) each.

    Args:
        run: (function of parameters and inputs of one member, parameters (member, ...), inputs) -> (member, ...).
        inputs: of the observed samples.
        layers: names of submodules.
        edges: of bins.
        chunk: samples of a pass.
    """

    def __init__(
        self,
        module: nn.Module,
        run: Callable[[Callable[[Parameters, Tensor], Any], Parameters, Tensor], Any],
        inputs: Tensor,
        layers: Sequence[str],
        observables: Sequence[str],
        edges: Tensor,
        measure: Mapping[str, Measure],
        chunk: int,
    ) -> None:
        self._module, self._run, self._inputs, self._chunk = module, run, inputs, chunk
        self._layers, self._observables, self._edges = list(layers), observables, edges
        self._measure = {name: _Measured(module, function) for name, function in measure.items()}
        self._start: Parameters = {}
        self._activations: list[Tensor] = []
        self.shapes: dict[str, tuple[int, ...]] = {}  # of what is measured

    def outputs(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Of one member."""
        found: Tensor = functional_call(self._module, parameters, (x,))
        return found

    def _seen(self, parameters: Parameters, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        with _hooks(self._module, self._layers) as caught:
            output = functional_call(self._module, parameters, (x,))
            return output, [caught[name] for name in self._layers]

    def begin(self, parameters: Parameters, weights: Sequence[str]) -> None:
        """Training begins from these, of which changes are recorded."""
        self._start = {name: parameters[name].clone() for name in weights}
        self._activations = self._passed(parameters)[1] if "activation_change" in self._observables else []

    def _passed(self, parameters: Parameters) -> tuple[Tensor, list[Tensor]]:
        """Outputs, and activations of layers, (member, sample, ...)."""
        outputs, activations = [], []
        for x in torch.split(self._inputs, self._chunk):
            output, layers = self._run(self._seen, parameters, x)
            outputs.append(output.float())
            activations.append([layer.float().flatten(2) for layer in layers])
        joined = [torch.cat(parts, dim=1) for parts in zip(*activations, strict=True)]
        return torch.cat(outputs, dim=1), joined

    def step(self, parameters: Parameters, weights: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Names and values (member, ...), of the present parameters; of these `weights` of the change."""
        output, layers = self._passed(parameters)
        yield "prediction", output
        if layers:
            yield from self._of_layers(layers)
        if "weight_change" in self._observables and weights:
            start = self._start
            moved = [_norm(parameters[name] - start[name]) / _norm(start[name]) for name in weights]
            yield "weight_change", torch.stack(moved, dim=1)
        if self._measure:
            yield "measured", torch.cat([self._measured(name, parameters) for name in self._measure], dim=1)

    def _of_layers(self, layers: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
        formulas: dict[str, Callable[[Tensor], Tensor]] = {
            "feature_kernel": lambda h: (h @ h.mT) / h.shape[-1],
            "activation_size": _root_mean,
            "activation_density": lambda h: _density(h.flatten(1), self._edges),
        }
        for name, formula in formulas.items():
            if name in self._observables:
                yield name, torch.stack([formula(h) for h in layers], dim=1)
        if "activation_change" in self._observables:
            added = [_root_mean(h - h0) for h, h0 in zip(layers, self._activations, strict=True)]
            yield "activation_change", torch.stack(added, dim=1)

    def _measured(self, name: str, parameters: Parameters) -> Tensor:
        wrapped = self._measure[name]

        def of(parameters: Parameters, x: Tensor) -> Tensor:
            found: Tensor = functional_call(wrapped, {f"module.{key}": p for key, p in parameters.items()}, (x,))
            return found

        found: Tensor = self._run(of, parameters, self._inputs).float()
        self.shapes[name] = tuple(found.shape[1:])
        return found.flatten(1) if found.ndim > 1 else found[:, None]


@contextmanager
def _hooks(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of submodules in a pass, by name."""
    caught: dict[str, Tensor] = {}

    def catching(name: str) -> Callable[..., None]:
        def catch(_module: nn.Module, _args: Any, output: Any) -> None:
            caught[name] = output[0] if isinstance(output, tuple) else output

        return catch

    handles = [module.get_submodule(name).register_forward_hook(catching(name)) for name in names]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _norm(x: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return found


def _root_mean(h: Tensor) -> Tensor:
    return torch.sqrt((h.flatten(1) ** 2).mean(dim=1))


def _density(h: Tensor, edges: Tensor) -> Tensor:
    """(member, bin), of entries (member, entry); those outside of all bins count in no bin."""
    bins = len(edges) - 1
    width = float(edges[1] - edges[0])
    place = torch.floor((h - edges[0]) / width)
    place = torch.where((place >= 0) & (place < bins), place, torch.full_like(place, bins)).long()
    counts = torch.zeros(len(h), bins + 1, device=h.device)
    counts.scatter_add_(1, place, torch.ones_like(h))
    found: Tensor = counts[:, :bins] / (h.shape[1] * width)
    return found


def as_predictions(outputs: NDArray[Any], *, scalar: bool) -> NDArray[Any]:
    """(member, step, sample[, output]) of the outputs of modules: the last position where there are positions."""
    if outputs.ndim == 5:
        outputs = outputs[..., -1, :]
    return outputs[..., 0] if scalar and outputs.ndim == 4 else outputs


def bin_edges(bins: tuple[float, int]) -> Tensor:
    """(edge,), of so many bins between -range and range."""
    reach, count = bins
    return torch.linspace(-reach, reach, count + 1)


def centres(edges: NDArray[Any]) -> NDArray[Any]:
    """Of bins."""
    return np.asarray((edges[1:] + edges[:-1]) / 2)
