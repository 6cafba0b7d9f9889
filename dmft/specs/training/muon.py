"""Muon: matrices move by the orthogonal factor of their momentum, all other weights by Adam.

    M <- mu M + (1 - mu) G        X = (1 - mu) G + mu M, of Nesterov, or M
    W <- (1 - eta lambda) W + eta gamma0 sqrt(N_out) O(X)

for W ~ N(0, 1) that enters as W v / sqrt(N): of `torch.nn.Linear`, O(X) with the rate eta gamma0.  O is the odd
polynomial of Newton and Schulz, some iterations of X <- a X + (b X X^T + c (X X^T)^2) X from X / |X|_F, which takes
singular values to about 1.  G is a sum of few outer products, and an odd polynomial stays in the span of what the
matrix has met: in orthonormal bases of that (`dmft.engine.matrix`), M = Q_B C Q_F^T, it is that of C, and the limit
keeps low rank,

    C_W <- (1 - eta lambda) C_W + eta gamma0 O(C)

A bank of K matrices is one of fan-in K N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dmft.specs import _check
from dmft.specs.training.batches import Batches
from dmft.specs.training.entrywise import Adam, Entrywise

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Muon(Entrywise):
    """Muon for the matrices between neurons, Adam for what reads inputs, biases, numbers and the readout.

    Args:
        learning_rate: eta of all weights, one number or one for each step; a step moves h by about eta gamma0.
        steps: number T of updates.
        momentum: mu of matrices.
        nesterov: whether the momentum looks ahead.
        iterations: of Newton and Schulz.
        beta1, beta2, eps: of Adam.
        weight_decay, batches, observe: as of `dmft.Adam`.

    Raises:
        ValueError, TypeError: naming the argument.

    Source: Jordan et al. 2024.

    Example:
        >>> state, X = dmft.Muon(0.1, steps=3).matrix(np, (np.zeros((2, 2)),), np.diag([3.0, 1.0]))
        >>> X.round(1).tolist()  # singular values near 1
        [[0.8, 0.0], [0.0, 1.1]]
    """

    learning_rate: float | tuple[float, ...]
    steps: int
    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-3
    weight_decay: float = 0.0
    batches: Batches | None = None
    observe: str = "all"
    slots = 2
    by_matrix = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_fractions("momentum", "beta1", "beta2")
        self._check_eps()
        if not isinstance(self.nesterov, bool):
            raise TypeError(f"nesterov={self.nesterov!r} is not True or False.")
        object.__setattr__(self, "iterations", _check.integer("iterations", self.iterations, minimum=1))

    def update(self, xp: Any, t: Any, state: Sequence[Any], G: Any) -> tuple[tuple[Any, ...], Any]:
        return Adam.update(self, xp, t, state, G)  # type: ignore[arg-type]

    def matrix(self, xp: Any, state: Sequence[Any], G: Any) -> tuple[tuple[Any, ...], Any]:
        """(state, O) for the gradients of matrices (..., output, input), of any positive unit; all but the first of
        the state stay."""
        M = self.momentum * state[0] + (1 - self.momentum) * G
        X = self.momentum * M + (1 - self.momentum) * G if self.nesterov else M
        return (M, *state[1:]), orthogonalised(xp, X, self.iterations)


def orthogonalised(xp: Any, X: Any, iterations: int) -> Any:
    """O(X) of matrices (..., output, input); 0 of zeros."""
    squares = (X * X).sum((-2, -1))[..., None, None]
    live = squares != 0  # of what is no number, too, which so remains none
    X = xp.where(live, X / xp.sqrt(xp.where(live, squares, 1.0)), 0.0)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        A = X @ xp.swapaxes(X, -1, -2)
        X = a * X + (b * A + c * (A @ A)) @ X
    return X
