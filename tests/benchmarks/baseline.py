"""The published way to the limit, to race against: `python tests/benchmarks/baseline.py [--scaling]`.

Our own implementation of the damped alternating Monte-Carlo iteration by which dynamical mean field theories of deep
nonlinear networks have been solved (Bordelon & Pehlevan 2022, appendix).  All order parameters of all times are guessed,
Phi^l, G^l as at initialisation, A = B = 0, and Delta of the lazy network; then, again and again,

    1. draw S paths u^l ~ GP(0, Phi^{l-1}), r^l ~ GP(0, G^{l+1}) for every layer
    2. solve every path forward in time with the current kernels, responses and Delta
    3. invert every path's linear response: with n = (T+1) P rows, M_h and M_z the matrices of the memory terms,

           dh = du + M_h dg     dz = dr + M_z phi' dh     dg = phi' dz + phi'' z dh
           W = phi' M_z phi' + phi'' z     X = 1 - M_h W     dphi/dr = phi' X^-1 M_h phi'     dg/du = W X^-1

    4. average:  Phi^l, G^l, A^l = <dphi/dr>, B^l = <dg/du>, damped: K <- (1 - beta) K + beta K_new
    5. Delta from f(t+1) = f(t) + (eta/P) K(t,t) Delta(t) + e(t), where e(t) is by how much the outputs of the last
       paths, f = <z phi>/gamma0, moved otherwise than this formula says for them.  (The published step has e = 0 and
       finds gradient flow; with e the fixed point is discrete gradient descent, which `dmft.solve` computes.)

X is unit lower triangular, so that step 3 is one triangular inverse and three products of matrices a path and layer,
n^3 operations each or twice that; products with M_h, M_z are done for all paths at once.  JAX, float64, compiled.

The first mode prints the iteration and the race: time and largest error of f over steps and samples, for the baseline
(its best iteration, and the time up to it) and for `dmft.solve`, in one process, and how many times longer the baseline
takes to an error as small.  Compile times stand apart: each measured call comes after one that compiled.  `--scaling`
times one iteration at several T, fits the exponent in the rows n, and extrapolates to T=100, P=10.
"""

import argparse
import os
import time
import warnings
from functools import partial
from typing import Any, NamedTuple

# compiled anew, so that the compile times printed are those of a first use
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import dmft
from dmft.engine.activations import functions
from dmft.specs.parameterization import batch_scale, output_scale

RACE = [(256, 2), (512, 2), (1024, 2), (1024, 4), (2048, 4), (4096, 4), (8192, 4)]  # particles, scrambles of dmft.solve
FAR = (100, 10)  # T, P to extrapolate to
CHUNK = 2**25  # bytes of one array (path, row, row_2) worked on at once


class Order(NamedTuple):
    """Order parameters: Phi, G, A, B (layer, row, row_2), row a step and a sample; delta (step, sample)."""

    Phi: jax.Array
    G: jax.Array
    A: jax.Array
    B: jax.Array
    delta: jax.Array


class Setting(NamedTuple):
    """What an iteration needs of a problem."""

    input_kernel: jax.Array
    targets: jax.Array
    rates: jax.Array
    gamma0: jax.Array
    damping: jax.Array
    jitter: jax.Array


def described(depth, samples, steps, rate, gamma0, dimension=20):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((samples, dimension)), np.where(np.arange(samples) % 2, 1.0, -1.0)
    return dmft.Problem(dmft.MLP(depth, dmft.tanh(), gamma0=gamma0), dmft.Task(x, y), dmft.GradientDescent(rate, steps))


def setting_of(problem, damping, jitter):
    rates = jnp.append(jnp.asarray(problem.training.rates), 0.0)
    numbers = (problem.task.input_kernel, problem.task.y, rates, problem.network.gamma0, damping, jitter)
    return Setting(*(jnp.asarray(number) for number in numbers))


# ---- the first guess -----------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("depth", "size", "activation"))
def lazy_guess(s, key, *, depth, size, activation):
    """Kernels of the network at initialisation at all times, no responses, Delta of the lazy dynamics."""
    phi, dphi = functions(activation)
    steps, samples = len(s.rates), len(s.targets)
    Phi, slopes, below = [], [], s.input_kernel
    for k in jax.random.split(key, depth):
        h = _factor(below, s.jitter) @ jax.random.normal(k, (samples, size), dtype=float)
        below = phi(h) @ phi(h).T / size
        Phi.append(below)
        slopes.append(dphi(h) @ dphi(h).T / size)
    G, above = [], jnp.ones((samples, samples))
    for slope in reversed(slopes):
        above = above * slope
        G.insert(0, above)
    Phi, G = jnp.stack(Phi), jnp.stack(G)
    ntk = _tangent_kernel(s, Phi[:, None], G[:, None])[0]
    everywhere = [jnp.tile(a, (1, steps, steps)) for a in (Phi, G)]
    delta = _follow(s, jnp.broadcast_to(ntk, (steps, samples, samples)), jnp.zeros((steps, samples)))
    return Order(*everywhere, 0 * everywhere[0], 0 * everywhere[0], delta)


def _tangent_kernel(s, Phi, G):
    """K (step, sample, sample_2) from equal-time kernels (layer, step, sample, sample_2)."""
    below = jnp.concatenate([jnp.broadcast_to(s.input_kernel, Phi[:1].shape), Phi])
    return jnp.sum(below * jnp.concatenate([G, jnp.ones_like(G[:1])]), axis=0)


def _follow(s, ntk, extra):
    """Delta (step, sample) of the output that follows the NTK, with `extra` change at each step."""

    def step(f, now):
        rate, K, e = now
        delta = s.targets - f
        return f + rate / len(f) * K @ delta + e, delta

    return lax.scan(step, jnp.zeros_like(s.targets), (s.rates, ntk, extra))[1]


# ---- one iteration -------------------------------------------------------------------------------------------------


class Paths(NamedTuple):
    """Of a layer: phi, g, z, phi' and phi'' z (path, row), and the matrices of the memory terms."""

    phi: jax.Array
    g: jax.Array
    z: jax.Array
    slope: jax.Array
    bend: jax.Array
    M_h: jax.Array
    M_z: jax.Array


def iterate(order, s, key, *, size, activation):
    """One iteration from fresh normals of `key`; the new order parameters and f (step, sample) of the paths."""
    depth, found = len(order.Phi), []
    for i, k in enumerate(jax.random.split(key, depth)):
        averages = layer(order, s, k, i, first=i == 0, last=i == depth - 1, size=size, activation=activation)
        # one after the other: batched LAPACK calls of one program wait for each other for ever on few cores (jax 0.10)
        found.append(jax.block_until_ready(averages))
    return combine(order, s, found)


class Averages(NamedTuple):
    """Of the paths of a layer l: Phi^l, G^l, A^l, B^{l-1} (row, row_2), and <z phi> (row,)."""

    Phi: jax.Array
    G: jax.Array
    A: jax.Array
    B: jax.Array
    product: jax.Array


@partial(jax.jit, static_argnames=("first", "last", "size", "activation"))
def layer(order, s, key, i, *, first, last, size, activation):
    """Sample and solve the paths of layer l = i + 1."""
    steps, samples = order.delta.shape
    n = steps * samples
    pull = jnp.repeat(s.rates, samples) * batch_scale(s.gamma0, samples) * order.delta.ravel()
    time_of = jnp.arange(n) // samples
    past = time_of[:, None] > time_of
    cov_u = jnp.tile(s.input_kernel, (steps, steps)) if first else order.Phi[i - 1]
    cov_r = jnp.ones((n, n)) if last else order.G[i + 1]
    M_h = past * (cov_u * pull + (0 if first else order.A[i - 1]))
    M_z = past * cov_r * pull + (0 if last else order.B[i])
    k_u, k_r = jax.random.split(key)
    # sources without time have as many normals as samples, and one
    u = jnp.tile(_paths(s.input_kernel, s, k_u, size), (1, steps)) if first else _paths(cov_u, s, k_u, size)
    r = jnp.tile(jax.random.normal(k_r, (size, 1), dtype=float), (1, n)) if last else _paths(cov_r, s, k_r, size)
    paths = _solve_paths(u, r, M_h, M_z, samples, activation)
    kernels = (field.T @ field / size for field in (paths.phi, paths.g))
    responses = _responses(paths, forward=not last, backward=not first)
    return Averages(*kernels, *responses, jnp.mean(paths.z * paths.phi, axis=0))


@jax.jit
def combine(order, s, found):
    """Damped order parameters from the averages of all layers, and the f (step, sample) that they say."""
    steps, samples = order.delta.shape
    averaged = {name: jnp.stack([getattr(each, name) for each in found]) for name in ("Phi", "G", "A")}
    averaged["B"] = jnp.stack([each.B for each in found[1:]] + [jnp.zeros_like(found[0].B)])  # B^L = 0
    f = output_scale(s.gamma0) * found[-1].product.reshape(steps, samples)
    damped = {name: (1 - s.damping) * getattr(order, name) + s.damping * a for name, a in averaged.items()}

    def ntk(kernels):
        return _tangent_kernel(s, *(_equal_time(kernels[name], steps, samples) for name in ("Phi", "G")))

    moved = jnp.append(f[1:] - f[:-1], jnp.zeros_like(f[:1]), axis=0)
    said = s.rates[:, None] / samples * jnp.einsum("tij,tj->ti", ntk(averaged), order.delta)
    delta = _follow(s, ntk(damped), moved - said)
    delta = (1 - s.damping) * order.delta + s.damping * delta
    return Order(**damped, delta=delta), s.targets - delta


def _paths(kernel, s, key, size):
    """(path, row) of a Gaussian process."""
    return jax.random.normal(key, (size, len(kernel)), dtype=float) @ _factor(kernel, s.jitter).T


def _factor(kernel, jitter):
    return jnp.linalg.cholesky(kernel + jitter * jnp.trace(kernel) / len(kernel) * jnp.eye(len(kernel)))


def _solve_paths(u, r, M_h, M_z, samples, activation):
    """All paths, forward in time; u, r: (path, row)."""
    phi, dphi = functions(activation)
    zeros = jnp.zeros_like(u)

    def step(t, paths):
        def block(a, axis):
            return lax.dynamic_slice_in_dim(a, t * samples, samples, axis)

        def put(a, values):
            return lax.dynamic_update_slice_in_dim(a, values, t * samples, 1)

        h = block(u, 1) + paths.g @ block(M_h, 0).T
        slope, bend = jax.jvp(dphi, (h,), (jnp.ones_like(h),))
        now = put(paths.phi, phi(h))
        z = block(r, 1) + now @ block(M_z, 0).T
        return paths._replace(
            phi=now,
            g=put(paths.g, slope * z),
            z=put(paths.z, z),
            slope=put(paths.slope, slope),
            bend=put(paths.bend, bend * z),
        )

    return lax.fori_loop(0, u.shape[1] // samples, step, Paths(zeros, zeros, zeros, zeros, zeros, M_h, M_z))


def _responses(paths, *, forward, backward):
    """(<dphi/dr>, <dg/du>), (row, row_2); zero where nobody asks for it."""
    size, n = paths.phi.shape
    if not (forward or backward):
        return jnp.zeros((n, n)), jnp.zeros((n, n))
    chunks = -(-size * 8 * n * n // CHUNK)
    chunk = -(-size // chunks)
    M_h, M_z, unit = paths.M_h, paths.M_z, jnp.eye(n)

    def total(slope, bend):
        """Sums over the paths of a chunk, (path, row)."""
        # (M_h phi') M_z and the like: the matrices are common, one product for all paths
        M_h_W = ((M_h * slope[:, None, :]).reshape(-1, n) @ M_z).reshape(-1, n, n) * slope[:, None, :]
        X = unit - M_h_W - M_h * bend[:, None, :]
        inverse = lax.linalg.triangular_solve(
            X, jnp.broadcast_to(unit, X.shape), left_side=True, lower=True, unit_diagonal=True
        )
        A = B = jnp.zeros((n, n))
        if forward:
            by_r = (inverse.reshape(-1, n) @ M_h).reshape(-1, n, n)
            A = jnp.einsum("st,stk,sk->tk", slope, by_r, slope)
        if backward:
            sloped = jnp.einsum("ij,sjk->sik", M_z, slope[:, :, None] * inverse)
            B = jnp.einsum("st,stk->tk", slope, sloped) + jnp.einsum("st,stk->tk", bend, inverse)
        return A, B

    # paths added to fill the last chunk have phi' = phi'' z = 0, hence no responses
    slopes, bends = (
        jnp.pad(a, [(0, chunks * chunk - size), (0, 0)]).reshape(chunks, chunk, n) for a in (paths.slope, paths.bend)
    )
    sums = lax.fori_loop(
        0,
        chunks,
        lambda i, sums: tuple(a + b for a, b in zip(sums, total(slopes[i], bends[i]), strict=True)),
        (jnp.zeros((n, n)), jnp.zeros((n, n))),
    )
    return tuple(a / size for a in sums)


def _equal_time(kernels, steps, samples):
    """(layer, step, sample, sample_2) of kernels (layer, row, row_2)."""
    blocks = kernels.reshape(len(kernels), steps, samples, steps, samples)
    return jnp.moveaxis(jnp.diagonal(blocks, axis1=1, axis2=3), -1, 1)


# ---- the race ------------------------------------------------------------------------------------------------------


class Baseline:
    """The iteration, from its first guess."""

    def __init__(self, problem, args):
        self.setting = setting_of(problem, args.damping, args.jitter)
        self.fixed = {"size": args.particles, "activation": problem.network.activation}
        self.key, self.common = jax.random.key(args.seed), args.common_noise
        self.order = lazy_guess(self.setting, self.key, depth=problem.network.depth, **self.fixed)
        self.count = 0

    def advance(self) -> tuple[Any, float]:
        """f after one more iteration, and its seconds."""
        key = jax.random.fold_in(self.key, 0 if self.common else self.count)
        start = time.perf_counter()
        self.order, f = jax.block_until_ready(iterate(self.order, self.setting, key, **self.fixed))
        self.count += 1
        return np.asarray(f), time.perf_counter() - start


def timed(work):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def race(args):
    problem = described(args.depth, args.samples, args.steps, args.rate, args.gamma0)
    quiet = {"progress": False, "device": args.device}
    reference, spent = timed(lambda: dmft.solve(problem, particles=args.reference, scrambles=8, seed=1, **quiet))
    truth = reference.prediction.values
    print(
        f"reference: dmft.solve, {args.reference} particles, 8 scrambles, {spent:.1f} s, largest standard error of f "
        f"{reference.prediction_se.values.max():.1e}\n"
    )

    _, compiling = timed(lambda: Baseline(problem, args).advance())
    baseline, total = timed(lambda: Baseline(problem, args))
    print("| iteration | s | total s | max error of f |\n|---|---|---|---|")
    seen = []
    for i in range(args.iterations):
        f, spent = baseline.advance()
        total += spent
        seen.append((float(np.abs(f - truth).max()), total))
        print(f"| {i + 1} | {spent:.3f} | {total:.2f} | {seen[-1][0]:.4f} |", flush=True)

    error, needed = min(seen)
    count = seen.index((error, needed)) + 1
    noise = "common" if args.common_noise else "fresh"
    print("\n| method | compiles s | time s | max error of f | baseline's time to this error, over this |")
    print("|---|---|---|---|---|")
    name = (
        f"baseline, S={args.particles}, damping {args.damping:g}, {noise} normals, best of {args.iterations}: {count}"
    )
    print(f"| {name} iterations | {compiling:.1f} | {needed:.3f} | {error:.4f} | 1 |")
    for particles, scrambles in RACE:
        solve_row(problem, particles, scrambles, truth, seen, quiet)
    print("\n>: the baseline does not reach that error; all its iterations took so many times longer.")


def solve_row(problem, particles, scrambles, truth, seen, quiet):
    """One row of the race; seen: error and total time of the baseline's iterations."""
    numerics = {"particles": particles, "scrambles": scrambles, "seed": 0}

    def solve():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of few particles: the error stands in the table
            return dmft.solve(problem, **numerics, **quiet)

    _, first = timed(solve)
    runs = [timed(solve) for _ in range(3)]
    again = min(spent for _, spent in runs)
    error = float(np.abs(runs[0][0].prediction.values - truth).max())
    reached = [total for e, total in seen if e <= error]
    ratio = f"{reached[0] / again:.0f}" if reached else f"> {seen[-1][1] / again:.0f}"
    name = f"dmft.solve, S={particles}, {scrambles} scrambles"
    print(f"| {name} | {max(first - again, 0):.1f} | {again:.3f} | {error:.4f} | {ratio} |", flush=True)


def scaling(args):
    print("| T | rows n = (T+1) P | one iteration s |\n|---|---|---|")
    sizes, times = [], []
    for steps in args.scaling_steps:
        problem = described(args.depth, args.samples, steps, args.rate, args.gamma0)
        baseline = Baseline(problem, args)
        baseline.advance()
        sizes.append((steps + 1) * args.samples)
        times.append(min(baseline.advance()[1] for _ in range(2)))
        print(f"| {steps} | {sizes[-1]} | {times[-1]:.3f} |", flush=True)
    exponent, intercept = np.polyfit(np.log(sizes), np.log(times), 1)
    last = np.log(times[-1] / times[-2]) / np.log(sizes[-1] / sizes[-2])
    rows = (FAR[0] + 1) * FAR[1]
    fitted, carried = np.exp(intercept) * rows**exponent, times[-1] * (rows / sizes[-1]) ** last
    print(f"\nexponent of the time in n: {exponent:.2f} over all, {last:.2f} between the last two (n^3 is counted)")
    print(
        f"by measured scaling, T={FAR[0]} and P={FAR[1]} (n={rows}), S={args.particles}, L={args.depth}: one iteration "
        f"takes {fitted:.0f} s by the fit, {carried:.0f} s by the last two; {args.iterations} iterations "
        f"{fitted * args.iterations:.0f} and {carried * args.iterations:.0f} s"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--depth", type=int, default=3, help="hidden layers L")
    add("--samples", type=int, default=4, help="training samples P")
    add("--steps", type=int, default=20, help="steps T")
    add("--rate", type=float, default=0.3, help="learning rate eta")
    add("--gamma0", type=float, default=1.0, help="richness")
    add("--particles", type=int, default=1000, help="S of the baseline")
    add("--iterations", type=int, default=20)
    add("--damping", type=float, default=0.5, help="beta, the weight of the new estimate: 1 is undamped")
    add("--jitter", type=float, default=1e-8, help="added to kernels, relative to their mean diagonal")
    add("--common-noise", action="store_true", help="the same normals at every iteration, not fresh ones")
    add("--seed", type=int, default=0)
    add("--reference", type=int, default=16384, help="particles of the reference")
    add("--device", choices=("cpu", "gpu"), default="cpu")
    add("--scaling", action="store_true", help="time against T in place of the race")
    add("--scaling-steps", type=int, nargs="+", default=[5, 10, 20, 40])
    args = parser.parse_args()
    where = jax.devices(args.device)[0]
    print(f"{where.platform}: {where.device_kind}, {os.cpu_count()} cores, jax {jax.__version__}, float64")
    with jax.enable_x64(True), jax.default_device(where):
        (scaling if args.scaling else race)(args)


if __name__ == "__main__":
    main()
