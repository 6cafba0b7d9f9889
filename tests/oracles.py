"""Independent routes to the same numbers: closed forms, and the training of one network by automatic differentiation."""

import numpy as np
import torch

from dmft.specs import parameterization
from finite_nets.activations import functions


def gaussian_averages(activation, K):
    """(E phi phi', E phi' phi') for Gaussian fields of covariance K, in closed form.

    ReLU (with the factor sqrt 2): arc-cosine kernels (Cho & Saul 2009).  erf: arcsine kernel (Williams 1997).
    """
    variance = K.diagonal()
    if activation == "relu":
        norm = np.sqrt(np.outer(variance, variance))
        angle = np.arccos(np.clip(K / norm, -1, 1))
        return norm * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi, (np.pi - angle) / np.pi
    if activation == "erf":
        outer = np.outer(1 + 2 * variance, 1 + 2 * variance)
        return 2 / np.pi * np.arcsin(2 * K / np.sqrt(outer)), 4 / np.pi / np.sqrt(outer - 4 * K**2)
    raise ValueError(activation)


def lazy_limit(problem):
    """Feature kernels, gradient kernels (layer, sample, sample_2), NTK and predictions (step, sample) for gamma0 -> 0."""
    task, depth = problem.task, problem.network.depth
    features, slopes = [task.input_kernel], []
    for _ in range(depth):
        phi, dphi = gaussian_averages(problem.network.activation.name, features[-1])
        features.append(phi)
        slopes.append(dphi)
    gradients = [np.ones_like(task.input_kernel)]  # G^{L+1}
    for slope in reversed(slopes):
        gradients.insert(0, gradients[0] * slope)
    ntk = sum(g * phi for g, phi in zip(gradients, features, strict=True))
    f, predictions = np.zeros(task.n_samples), []
    for _ in range(problem.training.steps + 1):
        predictions.append(f)
        error = (task.y - f)[: task.n_train]
        f = f + problem.training.learning_rate / task.n_train * ntk[:, : task.n_train] @ error
    return np.array(features[1:]), np.array(gradients[:-1]), ntk, np.array(predictions)


def autograd_network(problem, first, hidden, readout):
    """Train one network by torch's automatic differentiation of the loss, with the rate eta gamma0^2 N for every parameter.

    Returns predictions (step, sample) and the NTK at initialisation (sample, sample_2), from the parameter Jacobian.
    """
    task, network, width = problem.task, problem.network, len(readout)
    phi, _ = functions(network.activation)
    parameters = [p.clone().requires_grad_() for p in (first, *hidden, readout)]
    x, y = torch.tensor(task.x), torch.tensor(task.y)
    n = task.n_train

    def output():
        h = x @ parameters[0].T * parameterization.input_scale(task.dimension)
        for w in parameters[1:-1]:
            h = phi(h) @ w.T * parameterization.hidden_scale(width)
        return phi(h) @ parameters[-1] * parameterization.output_scale(network.gamma0, width)

    with torch.no_grad():
        offset = output() * float(network.centered)
    # df/dt = (eta/P) K Delta with the rate above, hence K = gamma0^2 N J J^T
    jacobian = [
        torch.cat([g.flatten() for g in torch.autograd.grad(f, parameters, retain_graph=True)]) for f in output()
    ]
    jacobian = torch.stack(jacobian)
    ntk = parameterization.parameter_rate(1.0, network.gamma0, width) * jacobian @ jacobian.T

    predictions = []
    rate = parameterization.parameter_rate(problem.training.learning_rate, network.gamma0, width)
    for _ in range(problem.training.steps + 1):
        f = output() - offset
        predictions.append(f.detach().numpy())
        loss = ((f - y)[:n] ** 2).mean() / 2
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= rate * g
    return np.array(predictions), ntk.numpy()
