"""Modules of one width side by side: functions of one member's parameters, run for all members at once.

Parameters have the member as their first axis, and `torch.func.vmap` makes batched products of those of one module.  A
single member is run without it.  A member starts from normals that are functions of (root seed, width, seed index).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from dmft.specs import loss as losses
from finite_nets.device.random import normals
from finite_nets.modules.data import Batch
from finite_nets.modules.rates import Rate
from finite_nets.modules.recording import Parameters

Function = Callable[..., Any]


def require_trainable(module: nn.Module) -> None:
    """ValueError for modules whose outputs are no function of parameters and one sample."""
    for name, part in module.named_modules():
        what = f"{name or 'the module'} is {type(part).__name__}"
        if isinstance(part, _DropoutNd) and part.p > 0:
            raise ValueError(f"{what}, which makes outputs random; set p=0.")
        if isinstance(part, _NormBase) and (part.track_running_stats or "Batch" in type(part).__name__):
            raise ValueError(
                f"{what}, whose outputs depend on other samples and on what it saw before; use GroupNorm or LayerNorm."
            )


def start(module: nn.Module, rates: Sequence[Rate], width: int, members: Tensor, root_seed: int) -> Parameters:
    """(member, ...) of every parameter, as the table of `finite_nets.modules.rates` has it."""
    own = dict(module.named_parameters())
    found: Parameters = {}
    for index, one in enumerate(rates):
        value = own[one.name].detach()
        deviation = one.deviation
        if deviation is None or not _is_drawn(one, value):
            kept = value if _is_constant(value) else torch.zeros_like(value)
            found[one.name] = kept.to(members.device).expand(len(members), *value.shape).clone()
        elif deviation == 0:
            found[one.name] = torch.zeros((len(members), *value.shape), device=members.device)
        else:
            found[one.name] = deviation * normals(
                tuple(value.shape),
                root_seed=root_seed,
                width=width,
                parameter=index,
                members=members,
                dtype=torch.float32,
            )
    return found


def drawn(module: nn.Module, rates: Sequence[Rate]) -> list[str]:
    """Names of the parameters that start from normals of some size."""
    own = dict(module.named_parameters())
    return [one.name for one in rates if one.deviation and _is_drawn(one, own[one.name])]


def _is_drawn(one: Rate, value: Tensor) -> bool:
    return one.deviation is not None and not (one.role == "embedding" and _is_constant(value))


def _is_constant(value: Tensor) -> bool:
    return bool((value == value.flatten()[0]).all())


class _GroupNorms(TorchFunctionMode):
    """Group norms from means and variances: PyTorch's own asks for memory formats, which `vmap` does not know."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.nn.functional.group_norm:
            return _group_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    grouped = x.float().reshape(len(x), num_groups, -1)
    variance, mean = torch.var_mean(grouped, dim=-1, correction=0, keepdim=True)
    normed = ((grouped - mean) * (variance + eps).rsqrt()).reshape(x.shape)
    shape = (1, -1, *[1] * (x.ndim - 2))
    normed = normed if weight is None else normed * weight.reshape(shape)
    found: Tensor = normed if bias is None else normed + bias.reshape(shape)
    return found


class Batched:
    """Runs functions of one member's parameters and of inputs that all share.

    half: whether products are made in bfloat16.
    """

    def __init__(self, module: nn.Module, loss: str, device: torch.device, *, half: bool, tokens: bool) -> None:
        self._module, self._loss, self._device = module, loss, device
        self._half, self._tokens = half, tokens
        self._group_norms = any(isinstance(part, nn.GroupNorm) for part in module.modules())
        self._gradient = grad_and_value(self._batch_loss)

    def run(self, function: Function, parameters: Parameters, *inputs: Tensor) -> Any:
        """(member, ...) of what the function returns for each member."""
        if len(next(iter(parameters.values()))) == 1:
            found = function({name: value[0] for name, value in parameters.items()}, *inputs)
            return torch.utils._pytree.tree_map(lambda x: x[None], found)
        with _GroupNorms() if self._group_norms else nullcontext():
            return vmap(function, in_dims=(0, *(None for _ in inputs)))(parameters, *inputs)

    def forward(self, function: Function, parameters: Parameters, *inputs: Tensor) -> Any:
        """The same without gradients, in the precision of the networks."""
        with torch.no_grad(), self._precision():
            return self.run(function, parameters, *inputs)

    def gradients(self, parameters: Parameters, batch: Batch, begun: Parameters | None) -> tuple[Parameters, Tensor]:
        """Gradients (member, ...) of the loss of a batch, and losses (member,); `begun`: where outputs of those are
        subtracted."""
        if begun is None:
            found, value = self.run(lambda p, x, y: self._gradient(p, x, y, None), parameters, *batch)
        else:
            both = {"now": parameters, "begun": begun}
            flat = {f"{part} {name}": value for part, each in both.items() for name, value in each.items()}

            def centered(p: Parameters, x: Tensor, y: Tensor) -> Any:
                now, before = (
                    {name.removeprefix(f"{part} "): v for name, v in p.items() if name.startswith(f"{part} ")}
                    for part in both
                )
                with torch.no_grad(), self._precision():
                    offset = functional_call(self._module, before, (x,))
                return self._gradient(now, x, y, offset)

            found, value = self.run(centered, flat, *batch)
        return found, value

    def _batch_loss(self, parameters: Parameters, x: Tensor, y: Tensor, offset: Tensor | None) -> Tensor:
        with self._precision():
            output = functional_call(self._module, parameters, (x,))
        output = output.float() if offset is None else output.float() - offset.float()
        found: Tensor
        if self._tokens:
            chance = output.log_softmax(dim=-1)
            found = -torch.gather(chance, -1, y[..., None]).mean()
            return found
        found = losses.values(torch, self._loss, output.reshape(y.shape), y).mean()
        return found

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._half)


def shape_of(module: nn.Module, x: Tensor) -> tuple[tuple[int, ...], int]:
    """Of the output for these inputs, and how many numbers a pass makes for each of them."""
    made = 0

    def count(_module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal made
        made += sum(each.numel() for each in torch.utils._pytree.tree_leaves(output) if isinstance(each, Tensor))

    leaves = [part for part in module.modules() if not any(True for _ in part.children())]
    handles = [part.register_forward_hook(count) for part in leaves]
    try:
        with torch.no_grad():
            output = module(x)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor):
        raise TypeError(f"the module returns {type(output).__name__}, not a tensor of outputs.")
    return tuple(output.shape), -(-made // len(x))
