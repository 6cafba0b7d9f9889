"""The adaptive NTK: gradient flow with weight decay, t -> infinity, features having adapted.

    d theta/dt = -gamma0^2 N d(P loss)/d theta - lambda theta,      P loss = sum_a (y_a - f_a)^2 / 2

comes to rest with kernels Phi^l, G^l that know the targets; where layers are homogeneous
(`dmft.adaptive_kernels.homogeneous`) its predictions are regression with its own NTK, whatever the width:

    f(x) = k(x)^T [K + (L+1) lambda]^{-1} y          K = sum_{l=0}^L G^{l+1} o Phi^l,  Phi^0 = K^x, G^{L+1} = 1      (1)

since df/dt = K Delta - (L+1) lambda f.  (lambda is P times the weight decay of the problem, whose loss is a mean.)

    "closed form"   linear activation         one equation in a number            `dmft.adaptive_kernels.linear_flow`
    "convex"        one hidden layer          a convex problem over directions    `dmft.adaptive_kernels.two_layer_flow`
    "training"      all                       the limit, trained to rest          `dmft.solve`, then `at_rest`

Assumptions and approximations
    For lambda > 0 the limit gamma0 -> 0 is f = 0, not regression with the initial NTK: initial weights decay, and
    what there is to be learned must outgrow that.  Two-layer networks have one state of rest.  Deeper ones have
    several, f = 0 among them, and what they start from decides; "training" starts from the initial weights of the
    problem, "closed form" takes the largest stable root unless it is told otherwise.

Source: Lauditi, Bordelon & Pehlevan 2025; averages over kinks and the convex problem are this library's.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft.adaptive_kernels import linear_flow, two_layer_flow
from dmft.adaptive_kernels.homogeneous import decay_of, require_one_output, slopes, slopes_at
from dmft.adaptive_kernels.rest import FEWEST, at_rest, late_steps, regression, tangent_kernel
from dmft.adaptive_kernels.result import of_sets
from dmft.errors import NotConvergedError
from dmft.running.progress import Bar, progress_bar
from dmft.specs import Problem, _check
from dmft.specs.adaptable import adaptable
from dmft.specs.parameterization import layer_variances

Array = NDArray[np.float64]
CLOSED, CONVEX, TRAINING = METHODS = ("closed form", "convex", "training")
TOLERANCES = {CONVEX: 1e-10, TRAINING: 2e-2}
SETTINGS = {  # by the methods that have them
    "collapsed": (CLOSED,),
    "tolerance": (CONVEX, TRAINING),
    "iterations": (CONVEX,),
    "particles": (TRAINING,),
    "sets": (TRAINING,),
    "looks": (TRAINING,),
    "seed": (CONVEX, TRAINING),
    "device": (TRAINING,),
    "progress": (CONVEX, TRAINING),
}
SAMPLED = ("particles", "sets", "seed")  # that the limit of linear networks lacks, which is exact
SCRAMBLES = 2  # of a set, the fewest that `dmft.solve` takes


def flow_kernel(
    problem: Problem,
    *,
    method: str = "auto",
    collapsed: bool = False,
    tolerance: float | None = None,
    iterations: int = 500,
    particles: int = 2048,
    sets: int = 4,
    looks: int = 32,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = None,
) -> xr.Dataset:
    """Kernels and predictions of networks at rest under gradient flow with weight decay.

    Args:
        problem: as of `dmft.adaptive_kernel`, of one output and of a homogeneous activation, trained on all samples
            with weight decay.  Its learning rate and steps matter to "training" alone, which runs them.
        method: see above; "auto" takes the first that there is.
        collapsed: of the closed form, f = 0 in place of the largest stable root.  (This and what follows is of the
            methods that are named, and refused with others.)
        tolerance: of "convex", the duality gap over the sum of squares of the targets (1e-10): half the squared error
            of f is below the gap.  Of "training" (2e-2), relative to the root mean square of the targets, by how much
            predictions still have to move, as their change over the last fifth of the time says (`at_rest`), and the
            error of (1); and the share of the initial weights that is left.
        iterations: of "convex", at most.
        particles, sets, device: of "training": of so many independent pairs of scrambles.  The limit of linear
            networks needs none: there is one set, without errors.
        looks: of "training", successive steps that are averaged over.
        seed: of "training" and of the starts of "convex".
        progress: show a bar; by default in terminals and notebooks, elsewhere a line now and then of long work.

    Returns:
        Dataset of kind "adaptive_kernel" (`dmft.schema`): prediction, losses, feature_kernel, gradient_kernel, ntk,
        standard errors of zero but of "training" of networks with kinks.  Attributes: method, decay (lambda),
        identity_error (of (1)); of the closed form rho, its roots, which of them are stable, their energies and that of
        f = 0; of "convex" gap, certified (1 where all patterns were tried), neurons; of "training" remaining and
        initial_weights.

    Raises:
        NotConvergedError: a gap, distance or error above the tolerance; `estimate` is the Dataset.
        ValueError, TypeError: no such problem; arguments out of range.
    """
    given = locals()
    network = adaptable(problem)
    bounds, decay = slopes(network.activation), decay_of(problem)
    require_one_output(problem)
    linear, shallow = bounds[0] == bounds[1], network.depth == 1
    offered = [CLOSED] * linear + [CONVEX] * shallow + [TRAINING]
    method = offered[0] if method == "auto" else method
    if method not in offered:
        raise ValueError(f"method={method!r} is not for {network}; it has {', '.join(offered)}.")
    others = {name: given[name] for name, methods in SETTINGS.items() if method not in methods}
    _check.without_effect(flow_kernel, others, f"method={method!r}")
    exact = network.activation.name == "linear"
    if method == TRAINING and exact:
        _check.without_effect(flow_kernel, {name: given[name] for name in SAMPLED}, "linear networks, trained exactly")
    tolerance = TOLERANCES.get(method, 0.0) if tolerance is None else _check.positive("tolerance", tolerance)
    seed = _check.integer("seed", seed, minimum=0)
    if method == CLOSED:
        values, attrs, trouble = _closed(problem, decay, bounds[1], collapsed)
    elif method == CONVEX:
        iterations = _check.integer("iterations", iterations, minimum=1)
        with progress_bar(iterations, "directions of neurons", "iteration", progress) as bar:
            values, attrs, trouble = _convex(problem, decay, bounds, tolerance, iterations, seed, bar)
    else:
        numerics = {"particles": particles, "device": device, "progress": progress}
        sets = 1 if exact else _check.integer("sets", sets, minimum=2)  # errors are those over sets
        looks = _check.integer("looks", looks, minimum=FEWEST)
        values, attrs, trouble = _trained(problem, tolerance, sets, looks, seed, numerics)
    found = of_sets(problem, values, {"method": method, "decay": decay} | attrs)
    if trouble:
        raise NotConvergedError(trouble, estimate=found)
    return found


def _one(problem: Problem, decay: float, prediction: Array, **kernels: Array) -> tuple[dict[str, Array], float]:
    """A set of one, and its error of (1)."""
    y, layers = problem.task.y_train, problem.sketch.readout_layer + 1
    off = abs(regression(kernels["ntk"], y, layers * decay) - prediction).max()
    values = {"prediction": prediction[None, :, None], **{name: kernel[None] for name, kernel in kernels.items()}}
    return values, float(off / (np.sqrt(np.mean(y**2)) or 1.0))


Found = tuple[dict[str, Array], dict[str, Any], str]  # values, attributes, why it has not converged


def _closed(problem: Problem, decay: float, scale: float, collapsed: bool) -> Found:
    task, depth = problem.task, problem.sketch.depth
    y, kernel = task.y_train, task.input_kernel
    roots = linear_flow.roots(
        kernel[: len(y), : len(y)], y, depth=depth, gamma0=problem.network.gamma0, decay=decay, scale=scale
    )
    stable = roots.rho[roots.stable]
    rho = float(stable[-1]) if len(stable) and not collapsed else 0.0
    state = linear_flow.state(kernel, y, rho, depth=depth, decay=decay, scale=scale)
    values, error = _one(
        problem, decay, state.prediction, feature_kernel=state.feature, gradient_kernel=state.gradient, ntk=state.ntk
    )
    attrs = {
        "rho": rho,
        "roots": roots.rho.tolist(),
        "roots_stable": roots.stable.astype(int).tolist(),
        "energies": roots.energy.tolist(),
        "energy_of_zero": roots.energy_of_zero,
        "identity_error": error,
    }
    return values, attrs, ""


def _convex(
    problem: Problem, decay: float, bounds: tuple[float, float], tolerance: float, iterations: int, seed: int, bar: Bar
) -> Found:
    task, gamma0 = problem.task, problem.network.gamma0
    if not layer_variances(problem.network, 2)[0]:
        raise ValueError("weight_variance: neurons that start at zero have no directions; give a positive one for W^0.")
    y, n = task.y_train, task.n_train
    x = task.x.reshape(task.n_samples, -1) / np.sqrt(task.x[0].size)
    _, sizes, rotation = np.linalg.svd(x[:n], full_matrices=False)
    X = x @ rotation[sizes > np.finfo(float).eps * max(x.shape) * sizes[0]].T
    numerics: dict[str, Any] = {"tolerance": tolerance, "most": iterations, "seed": seed, "finished": bar.update}
    found = two_layer_flow.minimum(X[:n], y, bounds, decay / gamma0, **numerics)
    neurons = found.neurons
    h = neurons.directions @ X.T
    inclines = slopes_at(h, bounds)
    features, inclines[:, :n] = inclines * h, neurons.slopes
    weights = gamma0 * abs(neurons.weights)
    feature, gradient = ((each.T * weights) @ each for each in (features, inclines))
    feature, gradient = feature[None], gradient[None]
    ntk = tangent_kernel(task.input_kernel, feature, gradient)
    values, error = _one(
        problem,
        decay,
        neurons.weights @ features,
        feature_kernel=feature,
        gradient_kernel=gradient,
        ntk=ntk,
    )
    attrs = {
        "tolerance": tolerance,
        "gap": found.gap,
        "certified": int(found.certified),
        "neurons": len(neurons.weights),
        "iterations": found.iterations,
        "identity_error": error,
        "seed": seed,
    }
    trouble = ""
    if not found.gap <= tolerance:  # nor a number
        trouble = (
            f"after iterations={iterations} the duality gap is {found.gap:.2g} of |y|^2, above "
            f"tolerance={tolerance:g}; raise one of them."
        )
    return values, attrs, trouble


def _trained(problem: Problem, tolerance: float, sets: int, looks: int, seed: int, numerics: dict[str, Any]) -> Found:
    from dmft.drivers.solve import solve  # JAX

    training = problem.training
    steps = late_steps(training, looks)
    asked: dict[str, Any] = {"observables": ("prediction", "feature_kernel", "gradient_kernel"), "two_time": True}
    with warnings.catch_warnings():  # of errors of kernels between steps, where slopes jump: means over these are used
        warnings.simplefilter("ignore", UserWarning)
        rests = [
            at_rest(problem, solve(problem, save_steps=steps, scrambles=SCRAMBLES, seed=seed + i, **asked, **numerics))
            for i in range(sets)
        ]
    rest = xr.concat(rests, "set")
    values = {name: rest[name].values for name in ("feature_kernel", "gradient_kernel", "ntk")}
    values["prediction"] = rest["prediction"].values[..., None]
    left = float(abs(training.recurrences.initial()[-1]))
    errors = {"remaining": float(rest["remaining"].max()), "identity_error": float(rest["identity_error"].max())}
    errors["initial_weights"] = left
    attrs = errors | {"instant_error": float(rest["instant_error"].max()), "particles": numerics["particles"]}
    attrs |= {"sets": sets, "looks": looks, "seed": seed, "tolerance": tolerance}
    above = [f"{name} {error:.2g}" for name, error in errors.items() if not error <= tolerance]
    trouble = ""
    if above:
        trouble = (
            f"training has not come to rest: {', '.join(above)} above tolerance={tolerance:g} after steps="
            f"{training.steps}, time {training.times[-1]:.3g}; raise steps of its training, or the tolerance."
        )
    return values, attrs, trouble
