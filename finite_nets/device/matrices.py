"""Hidden weight matrices of a batch, with delayed updates.

Training adds to a matrix pairs of a backward and a forward field.  They are kept beside it as they are, and folded into
it only when their room is used up:

    W = d W_0 + sum_j c_j l_j r_j^T        W x = d W_0 x + L^T (c (R x)),    W^T g = d W_0^T g + R^T (c (L g))

A step that updates the matrix reads it three times and writes it once (or twice and once, `Matrix.descend`), 4 N^2
numbers a member and layer, with 6 N^2 P operations; one that only looks at it reads it twice, and 4 N j numbers of j
pairs (P more in every step).  Without folding, T steps read 2 N^2 + 2 N P T numbers on average, with 4 N^2 P + 4 N P^2
T operations: less of both for P T < N/2.  Where rows are few, bytes alone decide, and folding after every s pairs
pays, too: 2 N^2 + 2 N s + 2 N^2 P / s numbers, the least at s = sqrt(N P).  Elsewhere, and on a CPU with its caches,
nothing is delayed.

Linear optimisers act on d and c alone, the memory kernels of `dmft.specs.training`: what they remember is another
combination of the same W_0 and pairs, and costs no memory until they are folded.
"""

from __future__ import annotations

import math
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dmft.specs import Activation
from finite_nets.device.fields import Field, Layer, Slope, field
from finite_nets.device.fused import Below
from finite_nets.device.products import Products

KEPT = 1024  # rows of coefficients: steps that need others are not recorded
FEW_ROWS = 16  # of fields, up to which products take the time of reading the weights


def room(width: int, rows: int, steps: int, start: torch.dtype, device: torch.device) -> int:
    """How many pairs to keep, for `rows` new ones in each of `steps` steps; 0 to fold every step at once."""
    total = rows * steps
    if start == torch.bfloat16:
        return total  # what is folded into it would be rounded away
    if device.type == "cpu":
        return 0
    if total <= width / 2:
        return total
    best = round(math.sqrt(width / rows)) * rows
    return best if rows <= FEW_ROWS and best > rows else 0


class Store:
    """Pairs that updates have added, and the matrices made of them.

    left, right: (member, pair, N), of which the first `used` are filled.
    """

    def __init__(self, like: Tensor, room: int, fields: torch.dtype) -> None:
        members, n_out, n_in = like.shape
        self.left = like.new_empty((members, room, n_out), dtype=fields)
        self.right = like.new_empty((members, room, n_in), dtype=fields)
        self.used = 0
        # of coefficients, where recorded steps find them: kept for as long as this is
        self.rows: dict[tuple[tuple[int, float], ...], Tensor] = {}
        # a matrix holds its store: weakly, or the cycle would keep a batch in memory; in the order in which they came
        self.matrices: WeakKeyDictionary[Matrix, None] = WeakKeyDictionary()

    def fits(self, rows: int) -> bool:
        """Whether so many pairs can be kept, if all others are folded."""
        return rows <= self.left.shape[1]

    def append(self, products: Products, g: Tensor, x: Tensor, coefficients: Tensor | None) -> None:
        """Keep the pairs c_a g_a, x_a."""
        rows = x.shape[1]
        if self.used + rows > self.left.shape[1]:
            self.fold(products)
        slot = slice(self.used, self.used + rows)
        if coefficients is None:
            self.left[:, slot] = g
        else:
            torch.mul(g, coefficients[..., None], out=self.left[:, slot])
        self.right[:, slot] = x
        self.used += rows

    def fold(self, products: Products) -> None:
        """Add all pairs to every matrix."""
        left, right = self.left[:, : self.used], self.right[:, : self.used]
        for matrix in self.matrices:
            matrix.fold(products, left, right)
        self.used = 0


class Phase(NamedTuple):
    """What of a matrix is no tensor: its d and c, and how many pairs are kept."""

    factor: float
    weights: tuple[tuple[int, float], ...]
    used: int


class Matrix:
    """d W_0 + sum_j c_j l_j r_j^T, of a batch: (member, N, N).

    start: W_0, which combinations of one store share until one of them is folded; factor: d; weights: c, by the pairs
    of one update each.
    """

    def __init__(self, start: Tensor, store: Store, factor: float = 1.0) -> None:
        self.start, self.factor = start, factor
        self.weights: list[tuple[int, float]] = []
        self.store = store
        store.matrices[self] = None

    def zeros(self) -> Matrix:
        """Another combination of the same, zero now."""
        matrix = Matrix(self.start, self.store, 0.0)
        matrix.weights = [(rows, 0.0) for rows, _ in self.weights]
        return matrix

    def copy(self) -> Matrix:
        """The same combination, on its own."""
        matrix = Matrix(self.start, self.store, self.factor)
        matrix.weights = list(self.weights)
        return matrix

    @property
    def phase(self) -> Phase:
        return Phase(self.factor, tuple(self.weights), self.store.used)

    def enter(self, phase: Phase) -> None:
        """Be in this phase; tensors are to be those it was left with."""
        self.factor, self.weights, self.store.used = phase.factor, list(phase.weights), phase.used

    # ---- a linear space ----------------------------------------------------------------------------------------------

    def mul_(self, factor: float) -> None:
        self.factor *= factor
        self.weights = [(rows, factor * c) for rows, c in self.weights]

    def add_(self, other: Matrix, *, alpha: float) -> None:
        """Add alpha times another combination of the same."""
        if self.start is other.start:
            self.factor += alpha * other.factor
        elif other.factor:
            self._own_start().add_(other.start, alpha=alpha * other.factor)
        self.weights = [(rows, c + alpha * b) for (rows, c), (_, b) in zip(self.weights, other.weights, strict=True)]

    def push(self, products: Products, g: Tensor, x: Tensor, coefficients: Tensor | None, scale: float) -> None:
        """Add scale sum_a c_a g_a x_a^T, for fields g, x (member, row, N) and c (member, row), or ones."""
        rows = x.shape[1]
        if not self.store.fits(rows):
            self._into_start(products, g, x, coefficients, scale)
            return
        self.store.append(products, g, x, coefficients)
        for matrix in self.store.matrices:
            matrix.weights.append((rows, scale if matrix is self else 0.0))

    def descend(self, products: Products, g: Field, layer: Layer, *, scale: float, keep: float, push: float) -> Field:
        """slope (scale W^T g) of the layer below, and then W = keep W + push sum_a g_a x_a^T with its x."""
        if self._kept(layer):
            found = self.pullback(products, g.values, scale=scale, slope=layer.slope)
            self.mul_(keep)
            self.push(products, g.values, layer.phi.values, None, push)
            return Field(found)
        factor, self.factor = self.factor, 1.0
        return products.descend(self.start, g, layer, scale=scale * factor, keep=keep * factor, push=push)

    def descend_both(
        self,
        products: Products,
        g: Field,
        layer: Layer,
        *,
        scale: float,
        keep: float,
        push: float,
        below: Below,
    ) -> None:
        """`descend`, and with what it finds the update of the layer below."""
        if self._kept(layer):
            found = self.descend(products, g, layer, scale=scale, keep=keep, push=push)
            products.accumulate(below.w, found, below.x, None, keep=below.keep, scale=below.push)
            return
        factor, self.factor = self.factor, 1.0
        moved = {"scale": scale * factor, "keep": keep * factor, "push": push}
        products.descend_both(self.start, g, layer, below=below, **moved)

    def _kept(self, layer: Layer) -> bool:
        """Whether an update by its rows is not made in the matrix at once."""
        return self.store.fits(layer.phi.values.shape[1]) or self._shared

    def fold(self, products: Products, left: Tensor, right: Tensor) -> None:
        """Add the pairs to the start."""
        if any(c for _, c in self.weights):
            scale, each = self._common_scale(left)
            self._into_start(products, left, right, each, scale)
        self.weights = []

    def _into_start(self, products: Products, g: Tensor, x: Tensor, coefficients: Tensor | None, scale: float) -> None:
        if self._shared:
            self._own_start()
        products.accumulate(self.start, g, x, coefficients, keep=self.factor, scale=scale)
        self.factor = 1.0

    @property
    def _shared(self) -> bool:
        return any(matrix.start is self.start for matrix in self.store.matrices if matrix is not self)

    def _own_start(self) -> Tensor:
        """The start, with the factor in it, as an array of this matrix alone."""
        if self._shared:
            self.start = self.factor * self.start
        elif self.factor != 1.0:
            self.start.mul_(self.factor)
        self.factor = 1.0
        return self.start

    # ---- products ----------------------------------------------------------------------------------------------------

    def activated(
        self,
        products: Products,
        x: Tensor | Field,
        activation: Activation,
        *,
        scale: float,
        add: Tensor | None,
        keep: bool,
    ) -> Layer:
        """phi and phi' of y = scale W x + add."""
        pairs = self._pairs(products, field(x).values, self.store.right, self.store.left, scale)
        return products.activated(x, self.start, activation, scale=scale * self.factor, pairs=pairs, add=add, keep=keep)

    def image(self, products: Products, x: Tensor, *, scale: float) -> Tensor:
        """scale W x."""
        pairs = self._pairs(products, x, self.store.right, self.store.left, scale)
        return products.image(x, self.start, scale=scale * self.factor, pairs=pairs)

    def pullback(self, products: Products, g: Tensor, *, scale: float, slope: Slope | None = None) -> Tensor:
        """slope (scale W^T g), or without slope."""
        pairs = self._pairs(products, g, self.store.left, self.store.right, scale)
        return products.pullback(g, self.start, scale=scale * self.factor, pairs=pairs, slope=slope)

    def _pairs(
        self, products: Products, x: Tensor, met: Tensor, image: Tensor, scale: float
    ) -> tuple[Tensor, Tensor] | None:
        """Coefficients of x on what the pairs have met, times theirs, and the images."""
        used = self.store.used
        if not any(c for _, c in self.weights):
            return None
        common, each = self._common_scale(x)
        coefficients = products.image(x, met[:, :used], scale=scale * common)
        return coefficients if each is None else coefficients * each[:, None], image[:, :used]

    def _common_scale(self, like: Tensor) -> tuple[float, Tensor | None]:
        """One factor of all pairs, and the rest (1, pair) where that is not all."""
        weights = [c for _, c in self.weights]
        if min(weights) == max(weights):
            return weights[0], None
        known, key = self.store.rows, tuple(self.weights)
        if (row := known.get(key)) is None:
            each = [c for rows, c in self.weights for _ in range(rows)]
            row = torch.tensor(each, dtype=like.dtype, device=like.device)[None]
            if len(known) < KEPT:
                known[key] = row
        return 1.0, row
