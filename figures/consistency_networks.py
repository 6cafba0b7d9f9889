"""Networks of the study of consistency across widths: a small ResNet and a causal Transformer, in plain PyTorch.

Both have a limit at mean-field rates: normalisation divides by averages over all channels, and attention takes logits
q.k / size of a head, of which there are four at any width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BLOCKS = 3
HEADS = 4
LAYERS = {"resnet": ("stem", "blocks.0", "blocks.2"), "transformer": ("blocks.0", "blocks.1")}


class ConvBlock(nn.Module):
    """x + conv(relu(norm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(torch.relu(self.norm(x)))
        return out


class ResNet(nn.Module):
    """Images (sample, channel, row, column) to outputs: a stem, three blocks, means over the quarters of an image.

    Images of more than 16 rows are halved in the stem, and after the first block.
    """

    def __init__(self, width: int, channels: int, rows: int, outputs: int) -> None:
        super().__init__()
        large = rows > 16
        self.stem = nn.Conv2d(channels, width, 3, stride=2 if large else 1, padding=1, bias=False)
        self.blocks = nn.ModuleList(ConvBlock(width) for _ in range(BLOCKS))
        self.halved = nn.AvgPool2d(2) if large else nn.Identity()
        self.norm = nn.GroupNorm(1, width)
        self.quarters = nn.AvgPool2d((rows // 4 if large else rows) // 2)
        self.readout = nn.Linear(4 * width, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.halved(self.blocks[0](self.stem(x)))
        for block in self.blocks[1:]:
            x = block(x)
        out: Tensor = self.readout(self.quarters(torch.relu(self.norm(x))).flatten(1))
        return out


class Attention(nn.Module):
    """Causal attention of a fixed number of heads."""

    future: Tensor

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.register_buffer("future", torch.ones(context, context, dtype=torch.bool).triu(1))

    def heads(self, x: Tensor) -> Tensor:
        """(sample, head, position, size)."""
        return x.reshape(*x.shape[:-1], HEADS, -1).transpose(1, 2)

    def maps(self, x: Tensor) -> Tensor:
        """(sample, head, query, key), rows of which sum to one."""
        q, k = self.heads(self.query(x)), self.heads(self.key(x))
        logits = q @ k.transpose(-1, -2) / q.shape[-1]
        return logits.masked_fill(self.future, float("-inf")).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.maps(x) @ self.heads(self.value(x))
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, context)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        out: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm_2(x))))
        return out


class Transformer(nn.Module):
    """Tokens (sample, position) to outputs (sample, position, character)."""

    def __init__(self, width: int, characters: int, context: int, depth: int = 2) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(characters, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, context) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, characters, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token(x) + self.position.weight
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.readout(self.norm(x))
        return out


def attention_map(module: nn.Module, x: Tensor) -> Tensor:
    """(query, key) of the last block for the last of the inputs, mean over heads."""
    assert isinstance(module, Transformer)
    x = x[-1:]
    h = module.token(x) + module.position.weight
    for block in module.blocks[:-1]:
        h = block(h)
    last = module.blocks[-1]
    assert isinstance(last, Block)
    return last.attention.maps(last.norm_1(h))[0].mean(dim=0)
