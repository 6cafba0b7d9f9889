"""Networks of few bits: what is multiplied is rounded to integers before every product, and learning sees through it.

    Q(v) = s round(v / s), |Q(v)| <= s n          n = 2^(bits - 1) - 1,  s = max |v| / n

    weights        s for each row, all that one neuron sums over
    activations    s for each network and product, of the samples that are trained on; others end at its largest

Straight through: gradients are those of the rounded network with dQ / dv = 1.  So directions are made of Q(v) and of
cotangents that went back through Q(W), while the weights that they move keep all of their digits.

Source: Bengio, Leonard & Courville 2013 (arXiv:1308.3432); scales as of Kumar et al. 2024 (arXiv:2411.04330).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from dmft.specs import _check

FEWEST, MOST = 2, 16  # bits: of one, a number and its negative would have no zero between them
ROWS = slice(None)


@dataclass(frozen=True)
class Quantisation:
    """What is rounded to how many bits in training, straight through.

    Args:
        weights: bits of all matrices, the readout among them; None leaves them as they are.
        activations: bits of all that matrices multiply, the inputs among them.
        ends: whether what reads inputs and the readout are rounded, too, or matrices between neurons alone.

    Vectors (biases, gains) and sums are never rounded.  With neither bits, networks are those of full precision, with
    the same weights at the start as all others.

    Raises:
        ValueError, TypeError: bits that are not 2 to 16.

    Example:
        >>> finite_nets.Quantisation(weights=4).text
        'weights of 4 bits'
    """

    weights: int | None = None
    activations: int | None = None
    ends: bool = True

    def __post_init__(self) -> None:
        for name in ("weights", "activations"):
            if (bits := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_bits(name, bits))
        if not isinstance(self.ends, bool):
            raise TypeError(f"ends={self.ends!r} is not True or False.")

    @property
    def text(self) -> str:
        """For attributes of results."""
        given = [f"{name} of {bits} bits" for name in ("weights", "activations") if (bits := getattr(self, name))]
        return (", ".join(given) or "full precision") + ("" if self.ends or not given else ", between neurons alone")


def check_bits(name: str, bits: int) -> int:
    """The number, if it is one that things are rounded to."""
    found = _check.integer(name, bits, minimum=FEWEST)
    if found > MOST:
        raise ValueError(f"{name}={bits} is more than {MOST} bits; leave {name} out for full precision.")
    return found


class Rounding:
    """What one pass rounds.

    Args:
        bits: None for nothing.
        ends: numbers of the weights that read inputs, and of the readout.
        rows: of the samples that are trained on.
    """

    def __init__(
        self, bits: Quantisation | None = None, ends: Collection[int] = (), rows: slice | Tensor = ROWS
    ) -> None:
        given = Quantisation() if bits is None else bits
        self._weights, self._activations = given.weights, given.activations
        self._left, self._rows = () if given.ends else ends, rows

    @property
    def copies(self) -> bool:
        """Whether what matrices multiply is kept rounded."""
        return self._activations is not None

    def weights(self, number: int, w: Tensor) -> Tensor:
        """Weights (member, N_out, N_in) by number as a product has them."""
        if self._weights is None or number in self._left:
            return w
        return rounded(w, self._weights, w.abs().amax(-1, keepdim=True))

    def given(self, number: int, v: Tensor) -> Tensor:
        """What they multiply, (member, row, ...)."""
        if self._activations is None or number in self._left:
            return v
        largest = v[:, self._rows].abs().flatten(1).amax(1)
        return rounded(v, self._activations, largest.reshape(-1, *[1] * (v.ndim - 1)))


NOTHING = Rounding()


def rounded(v: Tensor, bits: int, largest: Tensor) -> Tensor:
    """Q(v); zero where the largest is."""
    levels = 2 ** (bits - 1) - 1
    step = largest / levels
    found = torch.where(step > 0, v / step, torch.zeros_like(v))
    return found.round_().clamp_(-levels, levels).mul_(step)
