"""Images of a batch, mirrored and shifted on their device: after[r, c] = before[r + down, c + right], 0 outside."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def changed(x: Tensor, changes: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inputs (sample, feature) whose first features are an image of `shape` (row, column, channel), of which each is
    mirrored, if it is, and shifted as `changes` (sample, 3) says (`dmft.Epochs.changes`)."""
    size = math.prod(shape)
    images = moved(x[:, :size].reshape(-1, *shape), changes).flatten(1)
    return images if x.shape[1] == size else torch.cat([images, x[:, size:]], dim=1)


def moved(images: Tensor, changes: Tensor) -> Tensor:
    """The same of images (sample, row, column, channel)."""
    samples, rows, columns = (torch.arange(n, device=images.device) for n in images.shape[:3])
    flip, down, right = changes.long()[:, :, None].unbind(1)
    row, column = rows + down, columns + right
    column = torch.where(flip > 0, len(columns) - 1 - column, column)
    inside = _within(row, len(rows))[:, :, None] & _within(column, len(columns))[:, None]
    row, column = row.clamp(0, len(rows) - 1), column.clamp(0, len(columns) - 1)
    return images[samples[:, None, None], row[:, :, None], column[:, None]] * inside[..., None]


def _within(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)
