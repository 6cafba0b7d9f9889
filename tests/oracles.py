"""Independent routes to the same numbers: closed forms, and the training of one network by automatic differentiation;
and a process with devices that this machine lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from dmft.specs import parameterization
from finite_nets.device.activations import function


def on_virtual_devices(count, code, given=""):
    """What `code` prints, which is JSON, in a process of `count` devices; it reads `given`, and imports what tests do."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=given,
        env=os.environ
        | {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)]),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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


def parameter_rate(learning_rate, gamma0, width):
    """eta gamma0^2 N: what multiplies dloss/dtheta of every parameter in a step of gradient descent."""
    return learning_rate * gamma0**2 * width


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
    phi = function(network.activation)
    parameters = [p.clone().requires_grad_() for p in (first, *hidden, readout)]
    x, y = torch.tensor(task.x), torch.tensor(task.y)
    n = task.n_train

    def output():
        h = x @ parameters[0].T * parameterization.input_scale(task.dimension)
        for w in parameters[1:-1]:
            h = phi(h)[0] @ w.T * parameterization.hidden_scale(width)
        return phi(h)[0] @ parameters[-1] * parameterization.output_scale(network.gamma0, width)

    with torch.no_grad():
        offset = output() * float(network.centered)
    # df/dt = (eta/P) K Delta with the rate above, hence K = gamma0^2 N J J^T
    jacobian = [
        torch.cat([g.flatten() for g in torch.autograd.grad(f, parameters, retain_graph=True)]) for f in output()
    ]
    jacobian = torch.stack(jacobian)
    ntk = parameter_rate(1.0, network.gamma0, width) * jacobian @ jacobian.T

    predictions = []
    rate = parameter_rate(problem.training.learning_rate, network.gamma0, width)
    for _ in range(problem.training.steps + 1):
        f = output() - offset
        predictions.append(f.detach().numpy())
        loss = ((f - y)[:n] ** 2).mean() / 2
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= rate * g
    return np.array(predictions), ntk.numpy()


def action_covariance(gamma0, learning_rate, steps, target, centered):
    """N Cov of a deep linear network of two hidden layers on one sample with K^x = 1, from the mean-field action.

    The action S of Bordelon & Pehlevan (2023) is a function of the order parameters q = (Phi^1, G^2, f, G^1, Phi^2), of
    the response A of h^1 to W^T g^2, and of their conjugates; exp(N S) is their joint density, so that N Cov is the
    inverse of minus its Hessian at the saddle point.  With u = xi + A g^2 and r = zeta + C h^1 (C conjugate to A) in

        h^1 = a 1 + D g^1,   g^1 = r + (c Delta G^2) h^1;       g^2 = w 1 + D h^2,   h^2 = u + (c Delta Phi^1) g^2

    D(t,s) = c Delta(s) [s < t], all fields are Gaussian and the single-site integrals are determinants.

    Returns a dictionary with "prediction" (step, step_2) and the variances "feature_kernel", "gradient_kernel" (layer,
    step).  Needs jax.enable_x64.
    """
    T, c = steps, learning_rate * gamma0
    upper = np.triu_indices(T)
    before = np.tril(np.ones((T, T)), -1)
    one, eye = jnp.ones(T), jnp.eye(T)
    shapes = {"Phi": len(upper[0]), "G": len(upper[0]), "f": T, "G1": T, "Phi2": T, "A": T * T}
    ends = np.cumsum(list(shapes.values()))
    size = ends[-1]

    def unpack(v):
        parts = dict(zip(shapes, jnp.split(v, ends[:-1]), strict=True))
        for name in ("Phi", "G"):
            full = jnp.zeros((T, T)).at[upper].set(parts[name])
            parts[name] = full + full.T - jnp.diag(full.diagonal())
        parts["A"] = parts["A"].reshape(T, T)
        return parts

    def site(noise, response, delta):
        """Covariance of (x, y), stacked, and the logarithm of the Jacobian, for x = a 1 + D y, y = v + (c Delta N) x,
        v = noise + response x, with a ~ N(0, 1) and noise ~ N(0, N)."""
        D = before * c * delta
        coupling = before * noise * c * delta
        E = jnp.linalg.inv(eye - D @ coupling)
        jacobian = eye - response @ E @ D
        v = jnp.linalg.inv(jacobian)
        x = E @ D @ v
        from_noise = jnp.concatenate([x, v + coupling @ x])
        v = jnp.linalg.solve(jacobian, response @ E @ one)
        x = E @ (one + D @ v)
        from_a = jnp.concatenate([x, v + coupling @ x])
        return from_noise @ noise @ from_noise.T + jnp.outer(from_a, from_a), jnp.linalg.slogdet(jacobian)[1]

    def sites(q):
        delta = target - q["f"] + (q["f"][0] if centered else 0.0)
        # layer 1: x = h^1, y = g^1, driven by G^2 and the response to W^T g^2; layer 2: x = g^2, y = h^2
        return site(q["G"], q["C"], delta), site(q["Phi"], q["A"], delta)

    def action(v):
        q, conjugate = unpack(v[:size]), unpack(v[size:])
        q["C"], conjugate["C"] = conjugate.pop("A"), None
        (first, log1), (second, log2) = sites(q)
        zero, f = jnp.zeros((T, T)), jnp.diag(conjugate["f"]) / gamma0
        source1 = jnp.block([[conjugate["Phi"], zero], [zero, jnp.diag(conjugate["G1"])]])
        source2 = jnp.block([[conjugate["G"], f], [f, jnp.diag(conjugate["Phi2"])]])
        total = -log1 - log2 - jnp.trace(q["C"] @ q["A"]) - conjugate["f"] @ q["f"]
        for covariance, source in ((first, source1), (second, source2)):
            total -= jnp.linalg.slogdet(jnp.eye(2 * T) - covariance @ source)[1] / 2
        for name in ("Phi", "G", "G1", "Phi2"):
            total -= jnp.sum(conjugate[name] * q[name]) / 2
        return total

    def saddle():
        """Conjugates of order parameters vanish; what is left is causal, and iterating T times solves it."""
        q = {
            "Phi": jnp.zeros((T, T)),
            "G": jnp.zeros((T, T)),
            "f": jnp.zeros(T),
            "A": jnp.zeros((T, T)),
            "C": jnp.zeros((T, T)),
        }

        def improved(q):
            (first, _), (second, _) = sites(q)
            logs = jax.grad(lambda r: sum(log for _, log in sites({**q, **r})))({"A": q["A"], "C": q["C"]})
            return {
                "Phi": first[:T, :T], "G": second[:T, :T], "f": second[:T, T:].diagonal() / gamma0,
                "A": -logs["C"].T, "C": -logs["A"].T,
                "G1": first[T:, T:].diagonal(), "Phi2": second[T:, T:].diagonal(),
            }  # fmt: skip

        improved = jax.jit(improved)
        for _ in range(2 * T + 2):
            q = improved({name: q[name] for name in ("Phi", "G", "f", "A", "C")})
        flat = [q["Phi"][upper], q["G"][upper], q["f"], q["G1"], q["Phi2"], q["A"].ravel()]
        return jnp.concatenate([*flat, jnp.zeros(ends[-2]), q["C"].ravel()])

    v = saddle()
    assert abs(jax.jit(jax.grad(action))(v)).max() < 1e-12
    covariance = np.asarray(-jnp.linalg.inv(jax.jit(jax.hessian(action))(v)))
    found = {
        name: covariance[end - n : end, end - n : end] for (name, n), end in zip(shapes.items(), ends, strict=True)
    }
    if centered:
        subtract = np.eye(T) - np.eye(T)[0]
        found["f"] = subtract @ found["f"] @ subtract.T
    diagonal = np.flatnonzero(upper[0] == upper[1])
    return {
        "prediction": found["f"],
        "feature_kernel": np.stack([found["Phi"].diagonal()[diagonal], found["Phi2"].diagonal()]),
        "gradient_kernel": np.stack([found["G1"].diagonal(), found["G"].diagonal()[diagonal]]),
    }


# ---- transformers (arXiv 2405.15712), in their own parameterization --------------------------------------------------


def softmax(A):
    weights = np.exp(A - A.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def transformer(
    x, weights, *, heads, alpha_A=1.0, alpha_L=1.0, beta0=1.0, causal=False, mlp=None, norm=None, last=False
):
    """Residual streams h^1 .. h^{L+1}, attention (block, sample, head, s, t), and the sum w . h of the readout.

    weights, torch tensors by name: W0 (d, D), w (d,), K1, Q1, V1, O1 (d, d) with a head's rows, or columns of O, side
    by side, U1, D1 of `mlp`, its function; of standard deviations N^(1 - alpha_A) of K and Q, 1/eps of W0 and w, else 1.
    """
    blocks = sum(name.startswith("K") for name in weights)
    d = len(weights["W0"])
    N = d // heads
    eps = blocks ** (0.5 - alpha_L)
    h, streams, attention = eps * x @ weights["W0"].T, [], []
    norm = norm or (lambda h: h)
    streams.append(h)
    for block in range(1, blocks + 1):
        W = {kind: weights[f"{kind}{block}"] for kind in "KQVO"}

        def by_head(a):
            return a.unflatten(-1, (heads, N)).transpose(-2, -3)

        shown = norm(h)
        k, q = (by_head(shown @ W[name].T) * N ** (alpha_A - 1.5) * heads**-0.5 for name in "KQ")
        v = by_head(shown @ W["V"].T) / d**0.5
        A = k @ q.mT / N**alpha_A
        if causal:
            A = A.masked_fill(torch.ones_like(A).triu(1) > 0, -torch.inf)
        attention.append(torch.softmax(A, -1))
        m = (attention[-1] @ v).transpose(-2, -3).flatten(-2)
        h = h + beta0 * blocks**-alpha_L * m @ W["O"].T / d**0.5
        if mlp is not None:
            up, down = weights[f"U{block}"], weights[f"D{block}"]
            h = h + beta0 * blocks**-alpha_L * mlp(norm(h) @ up.T / d**0.5) @ down.T / down.shape[1] ** 0.5
        streams.append(h)
    read = h[:, -1] if last else h.mean(1)
    return streams, torch.stack(attention), eps * read @ weights["w"]


def one_block(grams, Kx, y, steps, *, N, eta, beta0=1.0, gamma0=1.0, alpha_A=1.0, w2=1.0):
    """One attention block with W^0 and w frozen: exact for any N and number of heads, by the order parameters of each
    head.

    grams: V, K, Q, A (head, a, b), F (head, a), Z (head,) at initialisation, a = (sample, position).
    Kx: h_a . h_b / d; y (sample,), without what f has of the stream itself; eta: of a loss that is half a sum of squares;
    w2: |w|^2 / d.  N may be infinite.

    Returns: f (step, sample), and attention (step, head, sample, s, t).
    """
    V, K, Q, A, F, Z = (np.array(grams[name]) for name in "VKQAFZ")
    P, n = len(y), len(Kx)
    S, e, tau = n // P, eta * gamma0, N ** (2 * alpha_A - 2.0)
    outputs, attention = [], []
    for _ in range(steps):
        sigma = np.stack([softmax(A[:, i : i + S, i : i + S]) for i in range(0, n, S)], axis=1)
        sbar, Fs = sigma.mean(-2), F.reshape(-1, P, S)
        f = beta0 / gamma0 * (sbar * Fs).sum(-1).mean(0)
        outputs.append(f)
        attention.append(sigma)
        delta = y - f
        c = e * beta0 * (delta[:, None] * sbar).reshape(-1, n)
        D = beta0 / S * sigma * (Fs[:, :, None] - (sigma * Fs[:, :, None]).sum(-1, keepdims=True))
        E = np.einsum("hpst,pq->hpsqt", delta[:, None, None] * D, np.eye(P)).reshape(-1, n, n)
        kappa, cF, Vc = c @ Kx, (c * F).sum(-1), np.einsum("hab,hb->ha", V, c)
        cross = kappa[:, :, None] * F[:, None]
        V = V + cross + cross.mT + Z[:, None, None] * kappa[:, :, None] * kappa[:, None]
        F = F + w2 * Vc + kappa * (Z + w2 * cF)[:, None]
        Z = Z + 2 * w2 * cF + w2**2 * (c * Vc).sum(-1)
        M, M2 = e * Kx @ E, e * Kx @ E.mT
        X, X2 = M @ A.mT, M2 @ A
        A, K, Q = (
            A + K @ M2.mT + M @ Q + tau * X @ M2.mT,
            K + tau * (X + X.mT + M @ Q @ M.mT),
            Q + tau * (X2 + X2.mT + M2 @ K @ M2.mT),
        )
    return np.array(outputs), np.array(attention)


def initial_attention(Phi, samples, N, *, alpha_A=1.0, heads=20_000, seed=0):
    """Attention (head, a, b) of heads at initialisation, zero between samples, over a stream of kernel Phi (a, b)."""
    rng, n = np.random.default_rng(seed), len(Phi)
    root = np.linalg.cholesky(Phi + 1e-12 * np.eye(n))
    k, q = (np.einsum("ab,hbn->han", root, rng.standard_normal((heads, n, N))) for _ in range(2))
    A, S, found = np.einsum("han,hbn->hab", k, q) / N**alpha_A, n // samples, np.zeros((heads, n, n))
    for i in range(0, n, S):
        found[:, i : i + S, i : i + S] = softmax(A[:, i : i + S, i : i + S])
    return found
