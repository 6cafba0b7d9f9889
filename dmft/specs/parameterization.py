"""Every power of N, D and gamma0 in a network: the mean-field (mu-) parameterization, and two others for contrast.

Conventions (Bordelon & Pehlevan 2022; Yang & Hu 2021), for L hidden layers of width N on P training inputs in R^D:

    h^1 = W^0 x / sqrt(D)      h^{l+1} = W^l phi(h^l) / sqrt(N)      f = w . phi(h^L) / (gamma0 N)
    loss = (1/P) sum_mu ell(f_mu, y_mu)      theta <- theta - eta gamma0^2 N dloss/dtheta      all weights iid N(0, 1)

    parameter   shape     enters the forward pass with   one step of gradient descent adds
    W^0         (N, D)    1 / sqrt(D)                    c sum_a Delta_a g^1_a x_a^T / sqrt(D)
    W^l         (N, N)    1 / sqrt(N)                    c sum_a Delta_a g^{l+1}_a phi(h^l_a)^T / sqrt(N)
    w           (N,)      1 / (gamma0 N)                 c sum_a Delta_a phi(h^L_a)

with Delta = -d ell / d f, the backward fields g^l = gamma0 N df/dh^l, and

    c = eta gamma0 / P          (P samples in the batch of a step)

The right column is the middle one: df/dW^l = g^{l+1} phi^T / (gamma0 N sqrt(N)), and the rate eta gamma0^2 N makes
eta gamma0 / P of the prefactors.  In kernels (averages over neurons) no power of N is left:

    f = <z^L phi(h^L)> / gamma0      h^{l+1} += c Delta_a <phi^l phi^l_a> g^{l+1}_a      K^x = x . x' / D

(Averages over neurons, < >, are the one place where 1/N stands elsewhere.)

A residual network (h^{l+1} = h^l + b W^l phi(h^l) / sqrt(N), `branch_scale` b) has b / sqrt(N) in the place of
1 / sqrt(N) in the row of W^l.  For several outputs Delta and the readout gain an index, and sums run over it.  A bias
b^l ~ N(0, 1) that enters h with the factor sigma (`bias`) adds c sigma sum_a Delta_a g_a in a step: as if every layer
had one more input, of value sigma, in the products of inputs: K^x + sigma^2, Phi^l + sigma^2.

A convolutional network has a matrix for each of the K places k of its kernel, which all of its positions y share; the
fan-in is K times as large, and the readout averages over positions:

    h^1_y = sum_k W^{0k} x_{y+k} / sqrt(K C)     h^{l+1}_y = sum_k W^{lk} phi(h^l_{y+k}) / sqrt(K N)
    f = w . mean_y phi(h^L_y) / (gamma0 N)

    W^{0k}      (N, C)    1 / sqrt(K C)      c sum_{a,y} Delta_a g^1_{a,y} x_{a,y+k}^T / sqrt(K C)
    W^{lk}      (N, N)    1 / sqrt(K N)      c sum_{a,y} Delta_a g^{l+1}_{a,y} phi(h^l_{a,y+k})^T / sqrt(K N)
    w           (N,)      1 / (gamma0 N)     c sum_a Delta_a mean_y phi(h^L_{a,y})

with g^l_y = gamma0 N df/dh^l_y, of which g^L_y = w phi'(h^L_y) / Y for Y positions, and (C channels of the input)

    K_{ab} = sum_l (1/K) sum_{k,y,y'} G^{l+1}_{ay,by'} Phi^l_{a(y+k),b(y'+k)} + mean_{y,y'} Phi^L_{ay,by'}

where Phi^0 is the product of inputs over C.  A readout with weights w_y of its own for each of Y positions,

    f = sum_y w_y . phi(h^L_y) / (gamma0 N sqrt(Y)),      w_y += c sum_a Delta_a phi(h^L_{a,y}) / sqrt(Y)

has g^L_y = w_y phi'(h^L_y) / sqrt(Y), and mean_y Phi^L_{ay,by} in the place of the last term of K.

A program may have populations of N_p neurons, other numbers than N (`dmft.specs.networks.population.Population`).  Sums
over a population are those over its neurons, W v / sqrt(N_in) and f = w . features / (gamma0 N_w), and the rate remains
eta gamma0^2 N for all parameters: with g = gamma0 N_p df/dh per neuron of p, a step adds

    W (N_out, N_in)   c (N / N_out) sum_a Delta_a g_a v_a^T / sqrt(N_in)      and N / N_out times its part of the NTK
    what ends in p    c (N / N_p) ...                                         likewise; of the readout N / N_w

A parameter that is one number n, such as a gain (`net.number`), has no population: gamma0 df/dn = O(1), and its rate is
eta gamma0^2, of gradient descent without N.  A step adds c sum_a Delta_a gamma0 df_a/dn, and K the product of gamma0
df/dn.  Where rates of weights lack N, as in "ntk" below, its rate is 1/N of theirs, too.

Of L residual blocks, h^{l+1} = h^l + beta0 L^-alpha W^l phi(h^l) / sqrt(N) with 1/2 <= alpha <= 1 has a limit of L ->
infinity in which features are learned if what is trained in branches, and it alone, learns at L^{2 alpha - 1} times the
rate of all others: the blocks' part of the NTK, beta0^2 L^{-2 alpha} sum_l G^{l+1} Phi^l times that, is of order 1.
A factor c^2 in the rate of a weight is a factor c in the forward pass and a variance 1 / c^2 at initialisation, so that
all rates may remain eta gamma0^2 N: with c = L^{alpha - 1/2}

    h^{l+1} = h^l + beta0 L^-1/2 W^l phi(h^l) / sqrt(N)      W^l ~ N(0, L^{1 - 2 alpha})

and c besides in all layers of a branch but its last.  Gains in branches are numbers of blocks, too: c n of a number n
that starts at 1 / c moves c^2 times as fast as n alone.  With alpha = 1/2 the noise of branches at initialisation has a
limit of its own, with alpha = 1 it vanishes, and what training adds remains.  (Bordelon, Chaudhry & Pehlevan 2024 have
the same with rates of all weights scaled, and read-in and readout scaled against that.)

Other parameterizations, which have no limit with feature learning, in the same form: Gaussian parameters of unit
variance, forward factors as above, g = (1 / output scale) df/dh.

                  f = w . phi(h^L) times    rate of dloss/dtheta    m of W^0, W^l, w    c of a layer
    mean_field    1 / (gamma0 N)            eta gamma0^2 N m        1, 1, 1             eta gamma0 m / P
    ntk           1 / (gamma0 sqrt(N))      eta gamma0^2 m          1, 1, 1             eta gamma0 m / (P sqrt(N))
    standard      1 / (gamma0 sqrt(N))      eta gamma0^2 m          D, N, N             eta gamma0 m / (P sqrt(N))

Weights and biases at initialisation are N(0, 1) here.  With `weight_variance` (v_0 .. v_L, one a layer, v_L of the
readout) and `bias_variance` (v_b) they are N(0, v), and nothing else changes: rates, forward factors and what a step
adds are those of the table.  Covariances at initialisation are then v_0 K^x + v_b sigma^2 and v_l Phi^l + v_b sigma^2.

"ntk" is "mean_field" with the richness gamma0 / sqrt(N): it becomes lazy with width, and its output at initialisation
is of order one.  "standard" is one learning rate eta gamma0^2 for weights of variance 1/D and 1/N, as in ordinary
PyTorch code (without biases); its steps grow with width, K = sum_l m_l G^{l+1} Phi^l.

Optimisers that are not linear in the gradient (`dmft.specs.training.entrywise`) see it scaled to be O(1) in each entry,

    -dloss/dtheta = s G / (gamma0 N)      theta <- (1 - eta lambda) theta + eta gamma0 s Q(G)      (of a number N is 1)

with the factor s of theta in the forward pass, for which only the fan-in counts: dh is a sum over it of terms of order
one over it.  Q = G is gradient descent.  To `torch.optim` the same optimiser is a rate, an eps and, where decay is
decoupled, a weight_decay of each group, in the units of weights N(0, 1), or of `torch.nn.Linear`, W~ = s W and
w~ = s w / (gamma0 N):

                              s               lr            eps                 nn.Linear: lr       eps
    W^0 (N, D)                1 / sqrt(D)     eta gamma0 s  eps s / (gamma0 N)  eta gamma0 / D      eps / (gamma0 N)
    W^l (N, N)                1 / sqrt(N)     eta gamma0 s  eps s / (gamma0 N)  eta gamma0 / N      eps / (gamma0 N)
    bank of K (N, N)          1 / sqrt(K N)   eta gamma0 s  eps s / (gamma0 N)  eta gamma0 / (K N)  eps / (gamma0 N)
    b, h += sigma b           1               eta gamma0    eps / (gamma0 N)    eta gamma0 sigma    eps / gamma0 N sigma
    w (N, C), of Y positions  1 / sqrt(Y)     eta gamma0 s  eps s / (gamma0 N)  eta / (N Y)         eps
    a number n                1               eta gamma0    eps / gamma0        eta gamma0          eps / gamma0
    weight_decay              eta lambda / lr everywhere

(`dmft.torch_groups` has them as numbers.)  An eps that is the same at every width, in all layers, as it usually is, is
none of these: hidden layers and readout differ by gamma0 N, and Adam becomes descent with momentum once the gradients
have fallen below it.  Betas and bias corrections do not scale.  Clipping by value is one of G.
Gradients divided by their length, of a weight that ends in N_p neurons or of all weights, are those of SGD with the
rate eta gamma0 sqrt(N_p), or sqrt(N), in units of weights N(0, 1), and times s, or s / (gamma0 N), in the others.

Symbols: eta learning rate, gamma0 richness (gamma0 -> 0 is the lazy limit), P training samples, D input dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dmft.specs.networks import Architecture, Network

MEAN_FIELD = "mean_field"
STANDARD = "standard"
PARAMETERIZATIONS = (MEAN_FIELD, "ntk", STANDARD)


def input_scale(dimension: int) -> float:
    """1/sqrt(D): factor of W^0 x."""
    return 1.0 / math.sqrt(dimension)


def hidden_scale(width: int) -> float:
    """1/sqrt(N): factor of W^l phi(h^l), and of W^l^T g^{l+1}."""
    return 1.0 / math.sqrt(width)


def output_scale(gamma0: Any, width: int = 1) -> Any:
    """1/(gamma0 N): factor of the sum w . phi(h^L).  With `width=1`, the factor of an average
    over neurons.  (`gamma0` may be a number of any array library.)"""
    return 1.0 / (gamma0 * width)


def position_scale(flattened: tuple[int, ...]) -> float:
    """1/sqrt(Y): s of a readout with weights of its own for each of Y = prod `flattened` positions."""
    return 1.0 / math.sqrt(math.prod(flattened))


def batch_scale(gamma0: Any, batch: int) -> Any:
    """gamma0 / P: factor of Delta_a in every rank-one update, for P samples in a batch; c is the learning rate times
    this.  (`gamma0` may be a number of any array library.)"""
    return gamma0 / batch


def number_rate(width: int) -> float:
    """1/N: the rate of a number beside that of weights."""
    return 1.0 / width


def entry_step(gamma0: Any, s: Any) -> Any:
    """gamma0 s: what a rate multiplies in a step of Q."""
    return gamma0 * s


def matrix_step(gamma0: Any, outputs: int = 1) -> Any:
    """gamma0 sqrt(N_out): what a rate multiplies in a step of a whole matrix, by an orthogonal factor (`dmft.Muon`); in
    bases that are orthonormal as averages over neurons, that of `outputs=1`."""
    return gamma0 * math.sqrt(outputs)


def norm_step(gamma0: Any, width: int, rows: int) -> tuple[Any, Any]:
    """gamma0 sqrt(N_p), what a rate multiplies in a step along -dloss/dtheta over its length, and sqrt(N_p) /
    (gamma0 N), that length over n: of weights that end in N_p neurons, or of all weights of a network with N_p = N."""
    return gamma0 * math.sqrt(rows), math.sqrt(rows) / (gamma0 * width)


def entry_gradient(gamma0: Any, width: int, s: Any) -> Any:
    """s / (gamma0 N), of a number with `width=1`: -dloss/dtheta over G."""
    return s / (gamma0 * width)


def input_kernel(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """K^x = x x^T / D between all samples of `x` (sample, feature) or (sample, [row,] position, channel)."""
    flat = x.reshape(len(x), -1)
    return (flat @ flat.T) * input_scale(flat.shape[1]) ** 2


def with_bias(x: NDArray[np.float64], bias: float) -> NDArray[np.float64]:
    """Inputs, flattened to (sample, feature), that h takes with weights N(0, 1), and one more of value `bias` if that
    is not zero."""
    flat = x.reshape(len(x), -1)
    return np.column_stack([flat, np.full(len(x), bias)]) if bias else flat


@dataclass(frozen=True)
class Deviations:
    """Standard deviations at initialisation.

    weights: (layer,), of W^0 .. W^{L-1} and w; biases: of b^1 .. b^{L-1}.
    along, extra: W^0 = weights[0] z + extra along (along . z) of normals z (input direction, ...), where the bias of
        the first layer, which is one of its inputs, has a variance of its own; `along` (input direction,) of length 1.
    """

    weights: tuple[float, ...]
    biases: float
    along: NDArray[np.float64]
    extra: float


def learned(blocks: int, exponent: Any) -> Any:
    """c = L^{alpha - 1/2}: the factor of weights and gains in branches that beta0 L^-alpha multiplies."""
    return blocks ** (exponent - 0.5)


def branch_factor(blocks: int, scale: Any, exponent: Any) -> Any:
    """c beta0 L^-alpha: of the last weights of a branch."""
    return scale * blocks**-exponent * learned(blocks, exponent)


def initial_deviations(
    network: Any, inputs: NDArray[np.float64], bias: float, variances: tuple[float, ...] | None = None
) -> Deviations:
    """Of a network on `inputs` (sample, input direction) in any orthonormal basis of (x, bias), where every sample has
    the value `bias`; the variances are those of its layers, if no others are given."""
    variances = layer_variances(network) if variances is None else variances
    weight, extra = variances[0], 0.0
    along = np.zeros(inputs.shape[1])
    if bias:
        # coordinates of the direction of the bias: its inner product with every sample is `bias`
        along = np.linalg.lstsq(inputs, np.full(len(inputs), float(bias)), rcond=None)[0]
        square = float(along @ along)  # at most 1, but for rounding
        along = along / math.sqrt(square)
        extra = math.sqrt(max(weight + (network.bias_variance - weight) * square, 0.0)) - math.sqrt(weight)
    deviations = tuple(math.sqrt(variance) for variance in variances)
    return Deviations(deviations, math.sqrt(network.bias_variance), along, extra)


def layer_variances(network: Any, layers: int | None = None) -> tuple[float, ...]:
    """v_0 .. v_L, of the weights of every layer at initialisation."""
    count: int = network.depth + 1 if layers is None else layers
    given = network.weight_variance
    own = given if isinstance(given, tuple) else (given,) * count
    return tuple(a * b for a, b in zip(own, network.relative_variances(count), strict=True))


@dataclass(frozen=True)
class Scales:
    """Scales of a network of a given width.

    output: factor of w . phi(h^L).
    update: (layer,), gamma0 / P and what the parameterization adds: c of a layer over the learning rate.  0 where the
        layer is frozen.
    tangent: (layer,), factor of G^{l+1} Phi^l in the NTK: m, with b^2 in the blocks of a residual network; 0 where
        the layer is frozen.
    """

    output: float
    update: tuple[float, ...]
    tangent: tuple[float, ...]


def scales(network: Network, width: int, dimension: int, batch: int) -> Scales:
    """Of a network on inputs of `dimension` features, trained on batches of `batch` samples; layers are 0..L."""
    mean_field = network.parameterization == MEAN_FIELD
    root = 1.0 if mean_field else math.sqrt(width)
    standard = network.parameterization == STANDARD
    factors = [float(dimension if layer == 0 else width) if standard else 1.0 for layer in range(network.depth + 1)]
    trained = trained_layers(network)
    inner = [1.0, *[network.branch**2] * (network.depth - 1), 1.0]
    return Scales(
        output=output_scale(network.gamma0, width) * root,
        update=tuple(t * m * batch_scale(network.gamma0, batch) / root for t, m in zip(trained, factors, strict=True)),
        tangent=tuple(t * m * b for t, m, b in zip(trained, factors, inner, strict=True)),
    )


def trained_layers(network: Any, layers: int | None = None) -> tuple[float, ...]:
    """(layer,), for 0..L, or so many layers: 1 where weights are trained, 0 where they are frozen."""
    count: int = network.depth + 1 if layers is None else layers
    return tuple(float(layer not in network.frozen) for layer in range(count))


def require_limit(network: Architecture) -> None:
    """ValueError if the parameterization has no limit that the theory computes."""
    if network.parameterization != MEAN_FIELD:
        raise ValueError(
            f"parameterization={network.parameterization!r} has no infinite-width limit with feature learning; the "
            f'theory is for "{MEAN_FIELD}". Train networks of finite width with finite_nets, or look at '
            f'dmft.lazy_limit of the same problem in "{MEAN_FIELD}", which "ntk" tends to.'
        )
