"""Transformers: blocks of multi-head attention, and of perceptrons, on one residual stream of N neurons.

    h^1_s = W^0 x_s / sqrt(D) + p_s                                  p_s a vector of each position, if "learned"
    h^{l+1} = h^l + beta0 L^{-alpha_L} MHSA(norm(h^l)),  and the same way  + beta0 L^{-alpha_L} MLP(norm(h^l))
    k = d^{alpha_A - 1} W_K h / sqrt(N),  q likewise,  v = W_V h / sqrt(N)       d neurons a head, N / d = H heads
    A_{st} = d^{-alpha_A} k_s . q_t,   sigma = softmax of A over t,   m_s = sum_t sigma_{st} v_t         in every head
    MHSA_s = W_O m_s / sqrt(N),    MLP_s = W_D phi(W_U h_s / sqrt(N)) / sqrt(r N)
    f = w . mean_s h^{L+1}_s / (gamma0 N),   or f_s = w . h^{L+1}_s / (gamma0 N) at every position

of weights N(0, 1), and W_K, W_Q of variance d^{2 - 2 alpha_A}.  All learn at the rate eta gamma0^2 N, those of blocks
at L^{2 alpha_L - 1} times that (gains likewise, beside other numbers), so that what a block learns is of order 1 / L
for every alpha_L: such a factor c^2 is a factor c in the program of a weight of variance 1 / c^2
(`dmft.specs.parameterization`).

    limit "heads"        H -> inf at fixed d: heads are independent of each other, each its own softmax
    limit "head_dim"     d -> inf at fixed H: scores are averages over the neurons of a head, A = <k_s q_t>

The neurons of a block's heads are one population of N, whose units are heads of d neurons in the first limit, and in
the second d tuples of one neuron of every head.  Networks of both are the same.

With alpha_A = 1 both are deterministic, and the variance of A over heads is O(1/d).  With alpha_A = 1/2 the first
limit is; in the second A(0) remains random, and what k and q send into the stream grows as d^{1/2}: where anything
below an attention layer is trained there is no limit.

Source: Bordelon, Chaudhry & Pehlevan 2024 (arXiv 2405.15712), with L_0 = 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.specs import _check
from dmft.specs.activation import Activation, gelu
from dmft.specs.networks.fields import (
    check_branches,
    frozen_layers,
    require_activation,
    require_movement,
    require_same_layers,
    variances,
)
from dmft.specs.networks.normalization import normalized, require_normalization
from dmft.specs.networks.population import Field, Population
from dmft.specs.networks.program import Architecture, traced
from dmft.specs.networks.sketch import ATTENTION
from dmft.specs.parameterization import MEAN_FIELD, STANDARD, branch_factor, input_scale, learned

HEADS, HEAD_DIM = "heads", "head_dim"
LIMITS = (HEADS, HEAD_DIM)
POSITIONS = (None, "learned")
READOUTS = ("mean", "last", "every position")
STREAM = "stream"


@dataclass(frozen=True)
class Transformer(Architecture):
    """Transformer whose heads, or their dimension, grow with the width N = heads * head_dim of its residual stream.

    Its task has positions: inputs (sample, position, channel).

    Args:
        blocks: number L of them, at least 1.
        heads: H, with `limit="head_dim"` alone: what grows is no part of a problem.
        head_dim: d, neurons of a head, with `limit="heads"` alone.
        limit: what grows with the width of networks, "heads" or "head_dim".
        gamma0: richness (feature-learning strength).
        branch_scale, branch_exponent: beta0, and alpha_L in [1/2, 1]; branches are added beta0 L^{-alpha_L} times.
        attention_exponent: alpha_A in [1/2, 1]; 1 alone where the dimension of heads grows.
        causal: whether positions attend to themselves and earlier ones alone.
        positions: "learned", a vector of N(0, 1) for every position, which is trained as W^0 is; None, positions are
            told apart by their inputs (and the mask) alone.
        mlp: whether a perceptron follows the attention of every block.
        mlp_width, activation: of its layer, neurons beside N, and phi.
        normalization: of what branches read, "layer_norm", "rms_norm" (`dmft.LayerNorm`, `dmft.RMSNorm`: over the
            neurons, at each position), or None.
        trained_gain: whether each normalisation trains a gain, one number, from 1 on.
        readout: what is read, "mean" of all positions, the "last" one, or "every position": outputs are then those of
            all positions side by side, targets (sample, position), or (sample, position, output) with the last two
            axes flattened.
        centered: subtract from the output its value at initialisation.
        frozen: weights that are not trained, by their names or numbers (`weights`); a gain by the weight before it.
        parameterization, weight_variance: as of `MLP`; "standard" is not offered.

    Raises:
        ValueError, TypeError: naming the argument.  By a `Problem`: inputs without positions.

    Source: Bordelon, Chaudhry & Pehlevan 2024.

    Example:
        >>> words = np.random.default_rng(0).standard_normal((2, 4, 5))  # of four positions and five channels
        >>> network = dmft.Transformer(blocks=1, head_dim=2, causal=True)
        >>> dmft.Problem(network, dmft.Task(words, [-1, 1]), dmft.GradientDescent(0.5, 3)).sketch.sizes(64)
        (64, 64)
        >>> list(network.weights)
        ['W0', 'K1', 'Q1', 'V1', 'O1', 'w']
    """

    blocks: int
    heads: int | None = None
    head_dim: int | None = None
    limit: str = HEADS
    gamma0: float = 1.0
    branch_scale: float = traced(default=1.0)
    branch_exponent: float = traced(default=1.0)
    attention_exponent: float = traced(default=1.0)
    causal: bool = False
    positions: str | None = None
    mlp: bool = False
    mlp_width: float = 4.0
    activation: Activation = field(default_factory=gelu)
    normalization: str | None = None
    trained_gain: bool = False
    readout: str = "mean"
    centered: bool = True
    frozen: tuple[int, ...] = ()
    parameterization: str = MEAN_FIELD
    weight_variance: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("blocks", _check.integer("blocks", self.blocks, minimum=1))
        hint = "The lazy limit, gamma0 -> 0, is that of small gamma0 here."
        put("gamma0", _check.positive("gamma0", self.gamma0, hint=hint))
        check_branches(self)
        for name, known in (("limit", LIMITS), ("positions", POSITIONS), ("readout", READOUTS)):
            if getattr(self, name) not in known:
                choices = ", ".join(map(repr, known))
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {choices}.")
        put("attention_exponent", _check.positive("attention_exponent", self.attention_exponent))
        if not 0.5 <= self.attention_exponent <= 1:
            raise ValueError(
                f"attention_exponent={self.attention_exponent} is not between 1/2 and 1, where limits are."
            )
        for name in ("causal", "mlp", "centered"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r} must be True or False.")
        self._check_heads()
        require_normalization(self.normalization, self.trained_gain)
        require_activation(self.activation)
        put("mlp_width", _check.positive("mlp_width", self.mlp_width))
        Population("mlp", self.mlp_width)  # which refuses what is no ratio
        last = len(self.weights) - 1
        put("frozen", frozen_layers(self._numbered(self.frozen), last))
        put("weight_variance", variances(self.weight_variance, last))
        require_movement(self, last)
        if self.parameterization not in (MEAN_FIELD, "ntk"):
            why = ": its rates are those of perceptrons" if self.parameterization == STANDARD else ""
            raise ValueError(
                f'parameterization={self.parameterization!r} is not offered{why}; take "{MEAN_FIELD}", or "ntk".'
            )

    def _check_heads(self) -> None:
        fixed, grows = (HEAD_DIM, HEADS) if self.limit == HEADS else (HEADS, HEAD_DIM)
        if getattr(self, grows) is not None:
            raise ValueError(
                f'{grows}={getattr(self, grows)!r} is what grows with limit="{self.limit}", and no part of a problem: '
                f"leave it out; networks of width N have N / {fixed} of them."
            )
        if getattr(self, fixed) is None:
            raise ValueError(f'limit="{self.limit}" keeps {fixed} as it is; give {fixed}, e.g. {fixed}=4.')
        object.__setattr__(self, fixed, _check.integer(fixed, getattr(self, fixed), minimum=1))
        if self.limit == HEAD_DIM and self.attention_exponent != 1:
            raise ValueError(
                f"attention_exponent={self.attention_exponent:g} has no deterministic limit of head_dim -> infinity: "
                "scores at initialisation remain random, and what they send into trained layers below grows as "
                'head_dim^(1 - attention_exponent). Take attention_exponent=1, or limit="heads" with a head_dim, of '
                "which networks of any number of heads can be compared."
            )

    def _numbered(self, frozen: Any) -> Any:
        """Numbers in the place of names."""
        if isinstance(frozen, str) or not isinstance(frozen, Iterable):
            return frozen
        names = self.weights
        if unknown := [each for each in frozen if isinstance(each, str) and each not in names]:
            raise ValueError(f"frozen holds {unknown[0]!r}; the weights are {', '.join(names)}.")
        return [names.get(each, each) for each in frozen]

    @property
    def weights(self) -> dict[str, int]:
        """Numbers of weights, as `frozen` and `weight_variance` have them, by name: W0; of every block, from 1 on, K,
        Q, V and O (of heads), U and D (of the perceptron); the readout w."""
        kinds = "KQVOUD" if self.mlp else "KQVO"
        names = ["W0", *(f"{kind}{block}" for block in range(1, self.blocks + 1) for kind in kinds), "w"]
        return {name: number for number, name in enumerate(names)}

    @property
    def every_position(self) -> bool:
        return self.readout == READOUTS[-1]

    @property
    def _group(self) -> int:
        """Neurons of a unit of the population of heads."""
        fixed = self.head_dim if self.limit == HEADS else self.heads
        assert fixed is not None  # checked on construction
        return fixed

    def with_blocks(self, count: int) -> Transformer:
        require_same_layers(self, len(self.weights) - 1)
        return replace(self, blocks=count)

    def program(self, net: Any, x: Any) -> Field:
        count = _positions(net.shape)
        h = net.blocks(self.blocks, self._block, net.read("W0", x, to=STREAM))
        if self.every_position:
            return net.layer(h, h)  # type: ignore[no-any-return]
        read = np.full(count, 1 / count) if self.readout == "mean" else np.eye(count)[-1]
        return net.mix(net.layer(h, h), read)  # type: ignore[no-any-return]

    def _block(self, net: Any, h: Field) -> Field:
        branch = branch_factor(self.blocks, self.branch_scale, self.branch_exponent)
        shown = net.layer(h, self._normalized(net, h, "a"))
        h = h + branch * net.apply("O", self._attended(net, shown), to=STREAM)
        if self.mlp:
            shown = self._normalized(net, h, "m")
            u = self._learned * net.apply("U", shown, to=Population("mlp", self.mlp_width))
            h = h + branch * net.apply("D", net.activate(self.activation, u), to=STREAM)
        return h

    @property
    def _learned(self) -> Any:
        """c of blocks."""
        return learned(self.blocks, self.branch_exponent)

    def _normalized(self, net: Any, h: Field, gain: str) -> Field:
        return normalized(self.normalization, net, h, gain if self.trained_gain else None, self._learned)

    def _attended(self, net: Any, h: Field) -> Field:
        """m of all heads."""
        c, heads = self._learned, Population("heads", group=self._group)
        if self.limit == HEADS:
            scale = c * self._group ** (self.attention_exponent - 1)
            k, q = (scale * net.apply(name, h, to=heads) for name in "KQ")
            v = c * net.apply("V", h, to=heads)
            within = partial(scores, exponent=self.attention_exponent)
            net.show(ATTENTION, partial(_shown, of=within, causal=self.causal), k, q)
            return net.local(partial(attended, of=within, axes="hn", causal=self.causal), v, k, q)  # type: ignore[no-any-return]
        k, q, v = (c * net.apply(name, h, to=heads) for name in "KQV")
        A = net.overlaps(k, q)
        net.show(ATTENTION, partial(_shown_numbers, causal=self.causal), A)
        return net.local(partial(attended, of=of_pairs, axes="nh", causal=self.causal), v, A)  # type: ignore[no-any-return]

    def inputs(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """x / sqrt(D) (sample, position, channel), and after the channels which position it is."""
        count = _positions(x.shape[1:])
        scaled: NDArray[np.float64] = x * input_scale(x.shape[-1])
        if self.positions is None:
            return scaled
        return np.concatenate([scaled, np.broadcast_to(np.eye(count), (len(x), count, count))], axis=-1)

    def input_factors(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """1 / sqrt(D) of channels, 1 of which position it is."""
        count = 0 if self.positions is None else _positions(shape)
        return np.concatenate([np.full(shape[-1], input_scale(shape[-1])), np.ones(count)])

    def counts(self, width: int) -> dict[str, int]:
        return {self.limit: width // self._group}

    def relative_variances(self, layers: int) -> tuple[float, ...]:
        of_block = learned(self.blocks, self.branch_exponent) ** -2
        of_keys = of_block * self._group ** (2 - 2 * self.attention_exponent)
        by_kind = {"W": 1.0, "w": 1.0, "K": of_keys, "Q": of_keys}
        found = tuple(by_kind.get(name[0], of_block) for name in self.weights)
        assert len(found) == layers
        return found


def _positions(shape: tuple[int, ...]) -> int:
    """Of an input of this shape; ValueError if it has none."""
    if len(shape) != 2:
        raise ValueError(
            f"a transformer needs positions, and an input of shape {shape} is not (position, channel); give inputs "
            "(sample, position, channel): x[:, :, None] for one channel, x.reshape(len(x), -1, channels) for images."
        )
    return shape[0]


# ---- formulas, of arrays (..., position, head, component) ------------------------------------------------------------


def scores(xp: Any, k: Any, q: Any, *, exponent: Any) -> Any:
    """A (..., head, s, t)."""
    return xp.einsum("...shn,...thn->...hst", k, q) * k.shape[-1] ** -exponent


def of_pairs(xp: Any, A: Any) -> Any:
    """(..., head, s, t) of numbers (..., pair, 1, head)."""
    count = round(A.shape[-3] ** 0.5)
    return xp.moveaxis(A.reshape(*A.shape[:-3], count, count, A.shape[-1]), -1, -3)


def softmax(xp: Any, A: Any, *, causal: bool) -> Any:
    """Over the last axis, t; causal: over t <= s."""
    if causal:
        A = xp.where(xp.tril(xp.ones_like(A)) > 0, A, -xp.inf)
    weights = xp.exp(A - xp.amax(A, -1)[..., None])
    return weights / weights.sum(-1)[..., None]


def attended(xp: Any, v: Any, *given: Any, of: Any, axes: str, causal: bool) -> Any:
    """m_s = sum_t sigma_{st} v_t; `of`: (xp, *given) -> A; axes: of the units of v and their components, h that of
    heads."""
    return xp.einsum(f"...hst,...t{axes}->...s{axes}", softmax(xp, of(xp, *given), causal=causal), v)


def _shown(xp: Any, *given: Any, of: Any, causal: bool) -> Any:
    """sigma of every head, (..., pair, head, 1)."""
    sigma = xp.moveaxis(softmax(xp, of(xp, *given), causal=causal), -3, -1)
    return sigma.reshape(*sigma.shape[:-3], -1, sigma.shape[-1])[..., None]


def _shown_numbers(xp: Any, A: Any, *, causal: bool) -> Any:
    """sigma of every head, (..., pair, head), of numbers (..., pair, head)."""
    return _shown(xp, A[..., None, :], of=of_pairs, causal=causal)[..., 0]
