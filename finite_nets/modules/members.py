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
from finite_nets.ensembles.runner import out_of_memory
from finite_nets.modules.data import Batch
from finite_nets.modules.rates import Rate
from finite_nets.modules.recording import Parameters

Function = Callable[..., Any]
LARGE = 64 * 64  # channels in times channels out, from which on a convolution is worth as many products as places


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


class _SideBySide(TorchFunctionMode):
    """What PyTorch does not do well for several members at once.

    Group norms are made of means and variances: those of PyTorch ask for memory formats, which `vmap` does not know.
    On a GPU convolutions are made of batched products, one for each place of the kernel, which run at the speed of
    matrix units; those of PyTorch become grouped ones.
    """

    def __init__(self, products: bool) -> None:
        super().__init__()
        self._products = products

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.nn.functional.group_norm:
            return group_norm(*args, **(kwargs or {}))
        if func is torch.conv2d and self._products and args[1].shape[0] * args[1].shape[1] >= LARGE:
            found = conv_by_products(*args, **(kwargs or {}))
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))


def conv_by_products(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """`torch.conv2d` of images (sample, channel, row, column); None for groups and paddings that have names."""
    if groups != 1 or isinstance(padding, str):
        return None
    pairs = ((each, each) if isinstance(each, int) else tuple(each) for each in (stride, padding, dilation))
    (down, right), (rows, columns), (apart, beside) = pairs
    height, width = weight.shape[2:]
    x = torch.nn.functional.pad(x, (columns, columns, rows, rows)).permute(0, 2, 3, 1)
    out_rows = (x.shape[1] - apart * (height - 1) - 1) // down + 1
    out_columns = (x.shape[2] - beside * (width - 1) - 1) // right + 1
    found: Tensor | None = None
    for i in range(height):
        for j in range(width):
            first, left = apart * i, beside * j
            part = x[:, first : first + down * out_rows : down, left : left + right * out_columns : right]
            product = part.reshape(-1, part.shape[-1]) @ weight[:, :, i, j].T
            found = product if found is None else found + product
    assert found is not None
    found = found if bias is None else found + bias
    return found.reshape(len(x), out_rows, out_columns, -1).permute(0, 3, 1, 2)


def group_norm(
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
        self._replaced = any(isinstance(part, (nn.GroupNorm, nn.Conv2d)) for part in module.modules())
        self._gradient = grad_and_value(self._batch_loss)

    def run(self, function: Function, parameters: Parameters, *inputs: Tensor) -> Any:
        """(member, ...) of what the function returns for each member."""
        if len(next(iter(parameters.values()))) == 1:
            found = function({name: value[0] for name, value in parameters.items()}, *inputs)
            return torch.utils._pytree.tree_map(lambda x: x[None], found)
        with _SideBySide(self._device.type == "cuda") if self._replaced else nullcontext():
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


def sizes_of(module: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[tuple[int, ...], int, int]:
    """The shape of the output for these inputs; of each input, how many numbers a pass makes, and those of layers."""
    made, kept = 0, 0

    def count(part: nn.Module, _args: Any, output: Any) -> None:
        nonlocal made, kept
        numbers = sum(each.numel() for each in torch.utils._pytree.tree_leaves(output) if isinstance(each, Tensor))
        made += numbers * (part in leaves)
        kept += numbers * (part in shown)

    leaves = {part for part in module.modules() if not any(True for _ in part.children())}
    shown = {module.get_submodule(name) for name in layers}
    handles = [part.register_forward_hook(count) for part in leaves | shown]
    try:
        with torch.no_grad():
            output = module(x)
    except (RuntimeError, ValueError, IndexError) as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"the module cannot be run with the inputs of the task, of shape {tuple(x.shape)}, "
            f"{'(sample, position) of tokens' if x.ndim == 2 and not x.is_floating_point() else '(sample, ...)'}; "
            f"PyTorch says: {error}. Make it for such inputs, or give other ones (dmft.Task)."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor):
        raise TypeError(f"the module returns {type(output).__name__}, not a tensor of outputs.")
    return tuple(output.shape), -(-made // len(x)), -(-kept // len(x))
