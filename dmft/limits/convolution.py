"""Frozen kernels of a convolutional network: those of a perceptron, with a position y beside every sample.

    K^{h,1}_{ay,by'}   = v_0 p_{ay} . p_{by'}                                   patches p of the input, / sqrt(K C)
    Phi^l              = E phi phi            under K^{h,l}
    K^{h,l+1}_{ay,by'} = v_l (1/K) sum_k Phi^l_{a(y+k),b(y'+k)}
    G^L_{ay,by'}       = v_L E phi' phi' / Y^2                                  Y positions, which the readout averages
    G^l_{ax,bx'}       = v_l E phi' phi'  (1/K) sum_k G^{l+1}_{a(x-k),b(x'-k)}
    K_{ab}             = sum_{yy'} G^1 p . p + sum_{l=1}^{L-1} sum_{yy'} G^{l+1} (1/K) sum_k Phi^l_{a(y+k),b(y'+k)}
                         + mean_{yy'} Phi^L                                     frozen layers left out

Sources: Novak et al. 2019, Garriga-Alonso et al. 2019 (covariances); Arora et al. 2019 (NTK).

Assumptions and approximations: those of `dmft.limits.lazy`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.limits.gaussian import NODES, diagonal_error, gaussian_averages
from dmft.limits.result import FrozenKernels
from dmft.specs import CNN
from dmft.specs.networks.convolution import mixing
from dmft.specs.parameterization import layer_variances, trained_layers

Array = NDArray[np.float64]


def frozen_convolution(network: CNN, x: Array, *, nodes: int = NODES) -> FrozenKernels:
    """The recursion above; feature kernels are means over equal positions, gradient kernels their sums.

    Args:
        network: gamma0 does not matter.
        x: (sample, [row,] position, channel).
        nodes: of the quadrature in each of two dimensions, for activations without a closed form.
    """
    patches, phi, error = network.inputs(x), network.activation, 0.0
    stack: Any = network  # of as many layers of weights as a perceptron
    grids, (first, *variances, last) = network.grids(x.shape[1:])[1:], layer_variances(stack)
    mixes = [mixing(grid, network.kernel_size, network.stride, network.padding) for grid in grids[:-1]]
    product = np.einsum("ayi,bzi->aybz", patches, patches)
    covariance, features, slopes, mixed = first * product, [], [], [product]
    for layer in range(network.depth):
        flat = covariance.reshape(math.prod(covariance.shape[:2]), -1)
        found = gaussian_averages(phi, flat, nodes=nodes)
        error = max(error, diagonal_error(phi, flat.diagonal(), nodes))
        feature, slope = (average.reshape(covariance.shape) for average in found)
        features.append(feature)
        slopes.append(slope)
        if layer < len(mixes):
            mixed.append(_mixed(mixes[layer], feature))
            covariance = variances[layer] * mixed[-1]
    gradients = [last * slopes[-1] / math.prod(grids[-1]) ** 2]
    for slope, mix, variance in zip(slopes[-2::-1], mixes[::-1], variances[::-1], strict=True):
        gradients.insert(0, variance * slope * _mixed(mix.transpose(0, 2, 1), gradients[0]))
    *inner, readout = trained_layers(stack)
    ntk = readout * features[-1].mean((1, 3))
    for trained, gradient, below in zip(inner, gradients, mixed, strict=True):
        ntk = ntk + trained * (gradient * below).sum((1, 3))
    return FrozenKernels(
        np.array([np.einsum("ayby->ab", feature) / feature.shape[1] for feature in features]),
        np.array([np.einsum("ayby->ab", gradient) for gradient in gradients]),
        ntk,
        error,
    )


def _mixed(mix: Array, kernel: Array) -> Array:
    """sum_k m_k A m_k^T of A (sample, position, sample_2, position_2) and m (place of the kernel, position, source)."""
    found = np.zeros((len(kernel), mix.shape[1]) * 2)
    for place in mix:
        found += np.einsum("yx,axbw,zw->aybz", place, kernel, place, optimize=True)
    return found
