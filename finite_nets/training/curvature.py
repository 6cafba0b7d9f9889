"""Sharpness of a batch of networks (`dmft.specs.curvature` says what it is), and A of perceptrons; that of any other
architecture, by differentiating its program twice, is `finite_nets.training.hessian`.

A direction q in parameter space, in units of M^(1/2), is kept by fields.  All that the iteration meets has the form

    W^0: E^0 x^T / sqrt(D)      W^l: b (E^l phi^T + g F^T) / sqrt(N)      b^l: b sigma E^l 1      w: q^w

with sums over training samples; the fields phi(h^l), g^{l+1} are those of the network, g those that start from the
loss, z^L = sum_c Delta_c w_c.  It moves layer l by s_l q, s_l^2 = c of the layer over eta (update scales of
`dmft.specs.parameterization`, of all training samples).  With kernels Phi, G of the fields, < > averages over neurons,
a direction acts on fields by

    (E^0)^ = K^x E^0            (E^l)^ = b^2 ((Phi^l + sigma^2) E^l + <phi F^l> g)       its forward image of phi(h^l)
    (q^w)^ = q^w                (F^l)^ = b^2 (<g E^l> phi + G^{l+1} F^l)                 its backward image of g^{l+1}

and inner products are sums over parts, q . q' = sum_a <E_a (E'_a)^> + <F_a (F'_a)^> + <q^w q'^w>, times N.  A q by
the tangents of a pass, phi' and phi'' at h, H the curvature of the loss in outputs:

    forward    dh^1 = s_0 (E^0)^             dh^{l+1} = [dh^l +] s_l (E^l)^ + b W^l (phi' dh^l) / sqrt(N)
               df = o (s_L q^w . phi(h^L) + w . (phi' dh^L))                  o the scale of outputs
               dDelta = -H df
    backward   dz^L = w dDelta + s_L q^w Delta       dg^L = phi' dz^L + phi'' z^L dh^L
               dz^l = s_l (F^l)^ + b W^l^T dg^{l+1} / sqrt(N)       dg^l = [dg^{l+1} +] phi' dz^l + phi'' z^l dh^l
    A q        E^l = -s_l dg^{l+1}      F^l = -s_l phi' dh^l      q^w = -s_L (dDelta phi(h^L) + Delta phi' dh^L)

(z^l with its factor b; in brackets what a residual network adds.)  Every vector is orthogonalised twice to all before.

`finite_nets.training.hessian` has the same A.  This one is kept for its speed: a seventh to two thirds of the time at
widths 256 and 512 (tests/benchmarks/RESULTS.md), and directions of fields take less memory than those of weights.

Cost of a network and a step that records it: ITERATIONS + 2 forward and backward passes of the training samples, and
2 L + ITERATIONS (2 L - 1) more fields in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dmft.specs import Problem, curvature, loss
from dmft.specs.curvature import start_coefficients
from dmft.specs.parameterization import hidden_scale, scales
from finite_nets.device.activations import bend, function

if TYPE_CHECKING:
    from finite_nets.training.perceptrons import Parameters, Trainer
    from finite_nets.training.state import State


class Krylov(NamedTuple):
    """What the iteration has found: alpha (member, iteration) and beta; beta_j is the length of what leads out of the
    first j directions, 0 where nothing does."""

    alpha: Tensor
    beta: Tensor


class Direction(NamedTuple):
    """q, or its images: E^0 (member, sample, N); E^l and F^l of the hidden matrices; q^w (member, output, N)."""

    first: Tensor
    outputs: list[Tensor]
    inputs: list[Tensor]
    readout: Tensor


def eigenvalues(operator: Flat) -> Tensor:
    """(member, iteration): those of A that are found, ascending; nan where the network is not finite."""
    found = lanczos(operator)
    alpha, beta = (a.double().cpu().numpy() for a in found)
    return torch.from_numpy(curvature.eigenvalues(alpha, beta)[0]).to(found.alpha)


def lanczos(operator: Flat, iterations: int | None = None) -> Krylov:
    """The tridiagonal matrix of A in the directions that it makes of its start; ITERATIONS by default."""
    iterations = curvature.ITERATIONS if iterations is None else iterations
    q, image, _ = curvature.begun(torch, operator)
    operator.met = q.new_empty((len(q), iterations, q.shape[1]))
    alpha, beta = [], []
    for j in range(iterations):
        q, image, overlap, length = curvature.iterated(torch, operator, q, image, j)
        alpha.append(overlap)
        beta.append(length)
    return Krylov(torch.stack(alpha, 1), torch.stack(beta, 1))


class Flat(curvature.Operator):
    """A of a batch of networks, on directions (member, number).  met: room for those of the iteration, (member, j,
    number)."""

    met: Tensor

    def kept(self, q: Tensor, j: int) -> Tensor:
        """q_1 .. q_j, the last of which this is."""
        self.met[:, j] = q
        return self.met[:, : j + 1]

    def overlap(self, q: Tensor, image: Tensor) -> Tensor:
        """(member,), or (member, j) for q with such an axis."""
        several = q if q.ndim == 3 else q[:, None]
        found = (several @ image[..., None])[..., 0]
        return found if q.ndim == 3 else found[:, 0]

    def less(self, q: Tensor, met: Tensor, coefficients: Tensor) -> Tensor:
        """q - sum_i coefficients_i met_i."""
        return torch.baddbmm(q[:, None], coefficients[:, None], met, alpha=-1)[:, 0]

    def times(self, q: Tensor, factor: Tensor) -> Tensor:
        """Of a direction, or of an image."""
        return q * factor[:, None]


class Curvature(Flat):
    """A of a batch of networks: fields of one forward and backward pass over the training samples."""

    def __init__(self, trainer: Trainer, state: State[Parameters]) -> None:
        weights, activation, n = state.weights, trainer.perceptron.activation, trainer.n_train
        products, members = trainer.products, len(state.weights.first)
        self._trainer, self._state, self._n = trainer, state, n
        update = scales(trainer.perceptron, state.width, trainer.dimension, n).update
        self._steps = [c**0.5 for c in update]
        self._forward = trainer.branch * hidden_scale(state.width)
        x = trainer.x[:n].expand(members, -1, -1)
        h = [products.image(x, weights.first, scale=trainer.input_scale)]
        self._features, self._slopes, bends = [], [], []
        for i in range(trainer.depth):
            phi, slope = function(activation)(h[i])
            self._features.append(phi)
            self._slopes.append(slope)
            bends.append(bend(activation)(h[i]))
            if i < len(weights.hidden):
                above = weights.hidden[i].image(products, phi, scale=self._forward)
                add = trainer.added(weights, i, h[i])
                h.append(above if add is None else above.add_(add))
        rows = slice(0, n)
        output = products.image(self._features[-1], weights.readout, scale=state.scales.output)
        output = trainer.counted(state, output, rows)
        self._delta = loss.descent(torch, trainer.loss, output, trainer.targets[rows])
        self._hessian = loss.curvature(torch, trainer.loss, output, trainer.targets[rows])
        z, self._gradients = self._backward(self._delta)
        self._bends = [b * each for b, each in zip(bends, z, strict=True)]

        first = trainer.x[:n] * trainer.input_scale
        self._inputs = (first @ first.T).expand(members, -1, -1)
        b2 = trainer.branch**2
        self._features_kernels = [b2 * (self._average(phi, phi) + trainer.bias**2) for phi in self._features[:-1]]
        self._gradient_kernels = [b2 * self._average(g, g) for g in self._gradients[1:]]

    def _average(self, a: Tensor, b: Tensor) -> Tensor:
        """<a_a b_b>, (member, sample, sample_2)."""
        return self._trainer.products.image(a, b, scale=1 / self._state.width)

    def _backward(self, starts: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """z and g of every layer, from sum_c starts_c w_c for starts (member, sample, output)."""
        products, weights = self._trainer.products, self._state.weights
        z = [products.pullback(starts, weights.readout)]
        g = [self._slopes[-1] * z[0]]
        for matrix, slope in zip(reversed(weights.hidden), reversed(self._slopes[:-1]), strict=True):
            z.insert(0, matrix.pullback(products, g[0], scale=self._forward))
            below = slope * z[0]
            g.insert(0, g[0] + below if self._trainer.residual else below)
        return z, g

    def start(self) -> Tensor:
        """M^(1/2) J^T a."""
        a = torch.tensor(start_coefficients(self._n, self._trainer.outputs)).to(self._delta)
        a = a.expand(len(self._delta), -1, -1).contiguous()
        _, g = self._backward(a)
        return self._flat(
            Direction(
                first=self._steps[0] * g[0],
                outputs=[s * each for s, each in zip(self._steps[1:-1], g[1:], strict=True)],
                inputs=[torch.zeros_like(each) for each in g[:-1]],
                readout=self._steps[-1] * (a.mT @ self._features[-1]),
            )
        )

    def image(self, q: Tensor) -> Tensor:
        """What the inner product with q is a sum over; what q does to fields."""
        first, outputs, inputs, readout = self._parts(q)
        forward, backward, b2 = [], [], self._trainer.branch**2
        for i, (E, F) in enumerate(zip(outputs, inputs, strict=True)):
            phi, g = self._features[i], self._gradients[i + 1]
            forward.append(torch.baddbmm(self._features_kernels[i] @ E, self._average(phi, F), g, alpha=b2))
            backward.append(torch.baddbmm(self._gradient_kernels[i] @ F, self._average(g, E), phi, alpha=b2))
        return self._flat(Direction(self._inputs @ first, forward, backward, readout))

    def product(self, image: Tensor) -> Tensor:
        """A q, from the image of q."""
        trainer, weights, s = self._trainer, self._state.weights, self._steps
        products, residual = trainer.products, trainer.residual
        moved = self._parts(image)
        dh = [s[0] * moved.first]
        dphi = [self._slopes[0] * dh[0]]
        for i, matrix in enumerate(weights.hidden):
            above = matrix.image(products, dphi[i], scale=self._forward).add_(moved.outputs[i], alpha=s[i + 1])
            dh.append(above.add_(dh[i]) if residual else above)
            dphi.append(self._slopes[i + 1] * dh[-1])
        readout = s[-1] * moved.readout
        df = products.image(self._features[-1], readout) + products.image(dphi[-1], weights.readout)
        ddelta = -self._state.scales.output * (self._hessian @ df[..., None])[..., 0]
        dz = products.pullback(ddelta, weights.readout) + products.pullback(self._delta, readout)
        dg = [torch.addcmul(self._bends[-1] * dh[-1], self._slopes[-1], dz)]
        for i in reversed(range(len(weights.hidden))):
            dz = weights.hidden[i].pullback(products, dg[0], scale=self._forward).add_(moved.inputs[i], alpha=s[i + 1])
            below = torch.addcmul(self._bends[i] * dh[i], self._slopes[i], dz)
            dg.insert(0, below.add_(dg[0]) if residual else below)
        return self._flat(
            Direction(
                first=-s[0] * dg[0],
                outputs=[-c * each for c, each in zip(s[1:-1], dg[1:], strict=True)],
                inputs=[-c * each for c, each in zip(s[1:-1], dphi[:-1], strict=True)],
                readout=-s[-1] * (ddelta.mT @ self._features[-1] + self._delta.mT @ dphi[-1]),
            )
        )

    # ---- all numbers of a direction in one row -----------------------------------------------------------------------

    def _flat(self, q: Direction) -> Tensor:
        """(member, number)."""
        return torch.cat([part.flatten(1) for part in (q.first, *q.outputs, *q.inputs, q.readout)], dim=1)

    def _parts(self, q: Tensor) -> Direction:
        width, hidden = self._state.width, len(self._state.weights.hidden)
        by_row = q.view(len(q), -1, width)
        counts = [self._n] * (1 + 2 * hidden) + [self._trainer.outputs]
        first, *matrices, readout = torch.split(by_row, counts, dim=1)
        return Direction(first, matrices[:hidden], matrices[hidden:], readout)


def vectors_needed(problem: Problem) -> int:
    """Vectors of N numbers that a network takes: directions, and the fields of one pass."""
    samples, depth = problem.task.n_train, problem.sketch.depth
    outputs: int = problem.task.targets.shape[1]
    direction: int = samples * (2 * depth - 1) + outputs
    return (curvature.ITERATIONS + 5) * direction + 8 * depth * samples


def numbers_needed(problem: Problem, width: int) -> int:
    """Numbers that a network takes while its curvature is computed."""
    samples, depth = problem.task.n_train, problem.sketch.depth
    return width * vectors_needed(problem) + 2 * depth * samples**2
