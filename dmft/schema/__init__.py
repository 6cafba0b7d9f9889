"""The form of every result: names, dimensions, coordinates, attributes.

dims    step (0..T, observables before the update of that step); sample (training, then test); layer (1..L);
        sample_2 and step_2 for the second index of kernels; output, where targets have that axis, and output_2;
        ensembles lead with width, seed; moments with width, block
coords  time = sum of the learning rates before a step on `step` (never an index: float joins drop points silently);
        split ("train" or "test") and target on `sample`; of networks, blocks of them and particles entry_problem and
        entry_id, which tell them apart after Datasets were joined (`dmft.schema.identity`)
vars    prediction(step, sample)                               f, centered if the network is
        loss(step), test_loss(step)                            mean over training / test samples of ell(f, y)
        accuracy(step), test_accuracy(step)                    share classified correctly: with the losses for classes,
                                                               and on request where targets are classes
        sharpness(step), on request                            largest eigenvalue of the Hessian of the training loss
                                                               in the metric of its descent (`dmft.specs.curvature`)
        feature_kernel(layer, step, sample, sample_2)          Phi^l = <phi(h^l) phi(h^l)>
        gradient_kernel(layer, step, sample, sample_2)         G^l = <g^l g^l>,  g^l = gamma0 N df/dh^l
        ntk(step, sample, sample_2)                            K = sum_l G^{l+1} Phi^l
            with several outputs: prediction(step, sample, output), gradient_kernel(..., sample, output, sample_2,
            output_2), and ntk alike
        feature_kernel_two_time, gradient_kernel_two_time (layer, step, sample, step_2, sample_2), on request
        <name>_se                                              standard error of the limit's Monte-Carlo average
        ensembles: diverged(width, seed), where networks diverged: they are nan and count nowhere
        moments (networks that are not kept): of every block of networks their count(width, block), and of how many that
            diverged(width, block) and do not count; <name>_mean and <name>_m2, the sum of squared deviations from that
            mean; prediction_comoment(width, block, step, sample, step_2, sample_2), sums of products, on request
        fluctuations: <name>_variance = lim N Var, <name>_bias = lim N (E q_N - q_infinity), with the dimensions of
            <name>; <name>_variance_by_layer(source_layer, ...), prediction_covariance(step, sample, step_2, sample_2),
            on request; each with its _se
        statistics of an ensemble: the variables listed in `comparisons.statistics`, with the dimension width
        expansions at a width: the variables listed in `dmft.finite_width.expansion.at_width`, with the dimension width
        comparisons: the variables listed in `comparisons.compare`, with the dimension width
        single neurons: preactivation(layer, step, sample, neuron), h^l; of the limit those of its particles, with the
            coordinate scramble(neuron); of networks (width, ...), as many neurons of every width, with the coordinate
            member(width, neuron), the seed index of the network
attrs   schema, kind ("limit", "fluctuations", "expansion", "ensemble", "moments", "statistics", "comparison",
        "particles" or "neurons"), problem (JSON without the data), problem_id, producer, version, dtype, device, seed,
        result, created, and the numerical settings of the producer; of every variable and coordinate long_name and
        units (`dmft.schema.labels`)
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft.errors import SchemaError
from dmft.schema import identity
from dmft.schema.labels import labelled
from dmft.specs import Population, Problem, loss
from dmft.specs.problem import identity_of

SCHEMA = 1

MAKERS = {
    "limit": "dmft.solve",
    "fluctuations": "dmft.fluctuations",
    "expansion": "dmft.at_width",
    "ensemble": "finite_nets.train_ensemble",
    "moments": "finite_nets.train_ensemble(..., keep='moments')",
    "statistics": "comparisons.statistics",
    "comparison": "comparisons.compare",
    "particles": "dmft.neurons",
    "neurons": "finite_nets.neurons",
}

VARIABLES: dict[str, tuple[str, ...]] = {
    "prediction": ("step", "sample"),
    "loss": ("step",),
    "test_loss": ("step",),
    "accuracy": ("step",),
    "test_accuracy": ("step",),
    "sharpness": ("step",),
    "feature_kernel": ("layer", "step", "sample", "sample_2"),
    "gradient_kernel": ("layer", "step", "sample", "sample_2"),
    "ntk": ("step", "sample", "sample_2"),
    "feature_kernel_two_time": ("layer", "step", "sample", "step_2", "sample_2"),
    "gradient_kernel_two_time": ("layer", "step", "sample", "step_2", "sample_2"),
}
OBSERVABLES = ("prediction", "loss", "feature_kernel", "gradient_kernel", "ntk")  # what every producer can be asked for
PRODUCED = (*OBSERVABLES, "sharpness", "accuracy")  # what `solve` and `train_ensemble` can
WITH_OUTPUTS = ("prediction", "gradient_kernel", "gradient_kernel_two_time", "ntk")
PREDICTED = tuple(f"{kind}_limit{part}" for kind in ("variance", "bias") for part in ("", "_se"))
RATIOS = tuple(f"{kind}_ratio{part}" for kind in ("variance", "bias") for part in ("", "_se"))
OVERALL = tuple(f"{kind}_overall_ratio{part}" for kind in ("variance", "bias") for part in ("", "_se"))
WHOLE = (
    "limit",
    "limit_se",
    *PREDICTED,
)  # suffixes of a comparison's variables, by what is left of the quantity's dimensions
BY_WIDTH = ("mean", "mean_se", "variance", "variance_se", "deviation", "deviation_se", "z", "variance_z", "bias_z")
BY_WIDTH_LAYER_STEP = ("error", "error_se", "distance", "distance_se", *RATIOS)
TOTALS = ("raw_variance", "raw_variance_se", "raw_bias_square", "raw_bias_square_se", *OVERALL)
EXPONENTS = tuple(f"{kind}_exponent{part}" for kind in ("variance", "bias") for part in ("", "_se", "_chi2"))
FLUCTUATIONS: dict[str, tuple[str, ...]] = {"variance": (), "bias": (), "variance_by_layer": ("source_layer",)}
UNRESOLVED = EXPONENTS + RATIOS + OVERALL  # where the data say nothing: nan
EXPANSION = ("mean", "std", "excess", "excess_variance", "excess_bias")
LEADING: dict[str, tuple[str, ...]] = {"limit": (), "ensemble": ("width", "seed"), "moments": ("width", "block")}
MOMENTS = ("mean", "m2")
PLAIN = ("variance", "covariance")  # of statistics: over seeds, not times N
EACH_NEURON = ("layer", "step", "sample", "neuron")
NEURONS: dict[str, tuple[str, ...]] = {"particles": EACH_NEURON, "neurons": ("width", *EACH_NEURON)}
# relative rounding of numbers by the name of their dtype; of tf32 and bf16, that of the factors of products
ROUNDING = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-7}
LABELS = 6  # that a message shows
WITH_ERRORS = ("limit", "fluctuations", "expansion")
ATTRIBUTES = "result_attrs"  # coordinate of `dmft.stack`: the attributes of each result, as JSON
REQUIRED_ATTRS = ("problem", "problem_id", "producer", "version", "dtype", "device", "seed", "result", "created")


def saved_steps(problem: Problem, save_steps: Iterable[int] | None) -> NDArray[np.int64]:
    """The recorded steps: all of 0..T, or those asked for, sorted.

    Raises:
        ValueError, TypeError: steps outside 0..T, repeated, or none; not a list.
    """
    last = problem.training.steps
    if save_steps is None:
        return np.arange(last + 1)
    if not isinstance(save_steps, Iterable):
        raise TypeError(f"save_steps={save_steps!r} is not a list; give e.g. save_steps=[0, {last}].")
    given = list(save_steps)
    steps = np.sort(np.asarray(given))
    if len(steps) == 0 or not np.issubdtype(steps.dtype, np.integer) or len(np.unique(steps)) < len(steps):
        raise ValueError(f"save_steps={given} must be different whole numbers, at least one.")
    if steps[0] < 0 or steps[-1] > last:
        outside = steps[(steps < 0) | (steps > last)]
        raise ValueError(f"save_steps holds {outside[0]}; this problem has steps 0..{last}.")
    return steps


def observed_samples(problem: Problem, samples: Iterable[int] | None) -> NDArray[np.int64]:
    """Indices of the samples to record: all that are observed, or those asked for, sorted.

    Raises:
        ValueError, TypeError: samples that are not observed, repeated, or none; not a list.
    """
    observed = np.arange(problem.task.n_samples)[problem.observed]
    if samples is None:
        return observed
    if not isinstance(samples, Iterable):
        raise TypeError(f"samples={samples!r} is not a list; give e.g. samples=[{observed[0]}].")
    given = list(samples)
    found = np.sort(np.asarray(given))
    whole = found.ndim == 1 and np.issubdtype(found.dtype, np.integer)
    if len(found) == 0 or not whole or len(np.unique(found)) < len(found):
        raise ValueError(f"samples={given} must be different whole numbers, at least one.")
    outside = found[~np.isin(found, observed)]
    if len(outside):
        raise ValueError(f"samples holds {outside[0]}; this problem records samples {observed[0]}..{observed[-1]}.")
    return found


def observables(names: Any, problem: Problem, *, offered: Collection[str] = OBSERVABLES) -> tuple[str, ...]:
    """The argument `observables` of a producer, or the error that says what is wrong with it; by default everything
    for a single output, without the kernels between outputs for several, and nothing of what is only on request.

    `offered` are those that the producer has.
    """
    if names is None:
        return OBSERVABLES if not problem.task.outputs else ("prediction", "loss", "feature_kernel")
    known = not isinstance(names, str) and isinstance(names, Collection) and all(name in offered for name in names)
    if not known or not names:
        listed = not isinstance(names, str) and isinstance(names, Collection)
        elsewhere = [name for name in PRODUCED if name not in offered and name in names] if listed else []
        only = "".join(f" ({name} is recorded by dmft.solve and finite_nets.train_ensemble only)" for name in elsewhere)
        raise ValueError(f"observables={names!r}: give a list with any of {', '.join(offered)}{only}.")
    if "accuracy" in names and not loss.of_classes(problem.task.targets):
        raise ValueError(
            f"observables={names!r}: accuracy is for targets that are classes, signs of a single output or one-hot "
            "rows of several; these are none. Leave it out."
        )
    if "sharpness" in names and problem.training.observe == "test":
        raise ValueError(
            'sharpness is that of the loss over all training samples, which observe="test" never meets together; leave '
            "it out of the observables."
        )
    return tuple(name for name in offered if name in names)


def losses(problem: Problem, prediction: Any) -> dict[str, Any]:
    """loss and, where there are test samples, test_loss, from prediction (..., sample) or (..., sample, output)."""
    each = loss.values(prediction.__array_namespace__(), problem.loss, *_with_targets(problem, prediction))
    return {f"{prefix}loss": each[..., part].mean(-1) for prefix, part in splits(problem).items()}


def of_predictions(
    problem: Problem, prediction: NDArray[Any], observables: Collection[str] = ("loss",)
) -> dict[str, NDArray[Any]]:
    """What follows from predictions (..., sample[, output]), of what is asked for: losses, accuracies."""
    kinds = kinds_of_predictions(problem, observables)
    found = losses(problem, prediction) if "loss" in kinds else {}
    return found | (accuracies(problem, prediction) if "accuracy" in kinds else {})


def kinds_of_predictions(problem: Problem, observables: Collection[str]) -> tuple[str, ...]:
    """ "loss" and "accuracy", those asked for; a loss for classes brings the accuracy."""
    kinds = [name for name in ("loss", "accuracy") if name in observables]
    if kinds == ["loss"] and loss.LOSSES[problem.loss].for_classes:
        kinds.append("accuracy")
    return tuple(kinds)


def accuracies(problem: Problem, prediction: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """accuracy and, where there are test samples, test_accuracy, for targets that are classes."""
    each = loss.correct(np, *_with_targets(problem, prediction))
    return {f"{prefix}accuracy": each[..., part].mean(-1) for prefix, part in splits(problem).items()}


def losses_held(problem: Problem, observables: Collection[str]) -> tuple[str, ...]:
    """Names of the losses and accuracies that results hold where so much is asked for."""
    kinds = kinds_of_predictions(problem, observables)
    return tuple(f"{prefix}{kind}" for kind in kinds for prefix in splits(problem))


def splits(problem: Problem) -> dict[str, slice]:
    """Where training ("") and test ("test_") samples are among those that results hold."""
    n = max(problem.task.n_train - problem.observed.start, 0)
    parts = {"": slice(0, n)} | ({"test_": slice(n, None)} if problem.task.n_test else {})
    return {prefix: part for prefix, part in parts.items() if part != slice(0, 0)}


def _with_targets(problem: Problem, prediction: Any) -> tuple[Any, NDArray[np.float64]]:
    """Predictions with an axis of outputs, and their targets."""
    return prediction if problem.task.outputs else prediction[..., None], problem.task.targets[problem.observed]


def dims(kind: str, name: str, *, outputs: bool = False) -> tuple[str, ...]:
    """Dimensions of the variable `name` in a Dataset of this kind; SchemaError if there is no such variable.

    `outputs` says whether targets have an axis of outputs.
    """
    found = _dims(kind, name)
    if not (outputs and name.startswith(WITH_OUTPUTS)):
        return found
    after = {"sample": ("sample", "output"), "sample_2": ("sample_2", "output_2")}
    return tuple(itertools.chain.from_iterable(after.get(dim, (dim,)) for dim in found))


def _dims(kind: str, name: str) -> tuple[str, ...]:
    """Of problems with a single output."""
    if kind == "comparison":
        for quantity, whole in VARIABLES.items():
            if not name.startswith(f"{quantity}_"):
                continue
            suffix = name.removeprefix(f"{quantity}_")
            if suffix in WHOLE:
                return whole
            if suffix in BY_WIDTH:
                return ("width", *whole)
            if suffix in BY_WIDTH_LAYER_STEP:
                return ("width", *(dim for dim in whole if dim in ("layer", "step")))
            if suffix in TOTALS:
                return ("width",)
            if suffix in EXPONENTS:
                return ()
    elif kind in ("fluctuations", "expansion"):
        if kind == "fluctuations" and name.removesuffix("_se") == "prediction_covariance":
            return ("step", "sample", "step_2", "sample_2")
        leading = FLUCTUATIONS if kind == "fluctuations" else dict.fromkeys(EXPANSION, ("width",))
        for quantity, whole in VARIABLES.items():
            suffix = name.removesuffix("_se").removeprefix(f"{quantity}_")
            if name.startswith(f"{quantity}_") and suffix in leading:
                return leading[suffix] + whole
    elif kind == "moments":
        if name in ("count", "diverged"):
            return LEADING[kind]
        if name == "prediction_comoment":
            return (*LEADING[kind], "step", "sample", "step_2", "sample_2")
        quantity, _, suffix = name.rpartition("_")
        if quantity in VARIABLES and suffix in MOMENTS:
            return LEADING[kind] + VARIABLES[quantity]
    elif kind == "statistics":
        if name == "count":
            return ("width",)
        if name == "prediction_seed_covariance":
            return ("width", "step", "sample", "step_2", "sample_2")
        for suffix in ("mean", "seed_variance"):
            quantity = name.removesuffix("_se").removesuffix(f"_{suffix}")
            if quantity in VARIABLES and name.removesuffix("_se") != quantity:
                return ("width", *VARIABLES[quantity])
    elif kind in NEURONS:
        if name == "preactivation":
            return NEURONS[kind]
    elif kind == "ensemble" and name == "diverged":
        return LEADING[kind]
    elif name in VARIABLES:
        return LEADING[kind] + VARIABLES[name]
    elif kind == "limit" and name.removesuffix("_se") in VARIABLES:
        return VARIABLES[name.removesuffix("_se")]
    raise SchemaError(f"{name!r} is not a variable of a result of kind {kind!r}; quantities are {list(VARIABLES)}.")


def require_no_positions(problem: Problem, what: str) -> None:
    """ValueError if layers have positions, or other numbers of neurons or units than the network has, for which
    preactivations of single neurons have no dimension."""
    positions, name = [count for _, count in problem.sketch.layers], type(problem.network).__name__
    if any(positions):
        raise ValueError(
            f"{what} is for layers without positions, and those of {name} have them: the layers of {name} have "
            f"{positions} positions; kernels average over them."
        )
    other = [of for of, _ in problem.sketch.layers if isinstance(of, Population)]
    if other:
        raise ValueError(
            f"{what} is for layers of the width of the network whose neurons are units of their own; {name} has layers "
            f"of the population {other[0].name!r}, of width {other[0].width:g} and units of {other[0].components}."
        )


def build(
    kind: str,
    problem: Problem,
    values: Mapping[str, NDArray[Any]],
    *,
    steps: NDArray[np.int64],
    attrs: Mapping[str, Any],
    coords: Mapping[str, Any] | None = None,
    samples: NDArray[np.int64] | None = None,
) -> xr.Dataset:
    """A validated result Dataset.

    Args:
        kind: "limit", "fluctuations", "ensemble", "moments", "particles" or "neurons".
        values: arrays by variable name, with the dimensions that `dims` gives.
        steps: the recorded steps.
        attrs: what the producer says of itself (producer, dtype, device, seed, ...).
        coords: coordinates of the leading dimensions.
        samples: those in `values`; all that are observed by default.
    """
    task = problem.task
    samples = np.arange(task.n_samples)[problem.observed] if samples is None else samples
    outputs = bool(task.outputs)
    variables = {name: (dims(kind, name, outputs=outputs), value) for name, value in values.items()}
    used = {dim for names, _ in variables.values() for dim in names}
    labels: dict[str, Any] = {
        "step": steps,
        "sample": samples,
        "sample_2": samples,
        "layer": np.arange(1, problem.sketch.depth + 1),
        "step_2": steps,
        "source_layer": np.arange(1, problem.sketch.depth + 1),
        **{dim: np.arange(n) for n in task.outputs for dim in ("output", "output_2")},
    }
    ds = xr.Dataset(variables, coords={dim: label for dim, label in labels.items() if dim in used})
    by_step = {"time": ("step", problem.training.times[steps])}
    by_sample = {
        "split": ("sample", np.where(samples < task.n_train, "train", "test")),
        "target": ("sample", task.y[samples]) if not outputs else (("sample", "output"), task.y[samples]),
    }
    ds = ds.assign_coords(by_step | (by_sample if "sample" in used else {}) | dict(coords or {}))
    ds = ds.assign_coords(identity.coordinates(kind, ds, problem.problem_id, attrs))
    ds.attrs = {
        "schema": SCHEMA,
        "kind": kind,
        "problem": problem.to_json(arrays=False),
        "problem_id": problem.problem_id,
        "version": _version(),
        "result": "success",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **attrs,
    }
    return validate(labelled(ds), kind)


def check(ds: xr.Dataset) -> xr.Dataset:
    """What `dmft.save` writes and `dmft.load` reads.  Results, each of its kind, and stacks of them are checked;
    Datasets without a schema (analyses, the numbers of a figure) are taken as they are.

    Raises:
        SchemaError: naming the first difference.
    """
    if ATTRIBUTES in ds.coords and ds[ATTRIBUTES].ndim == 1:
        (dim,) = ds[ATTRIBUTES].dims
        for i in range(ds.sizes[dim]):
            check(ds.isel({dim: i}))
        return ds
    ds = restored(ds)
    if "schema" not in ds.attrs:
        return ds
    kind = ds.attrs.get("kind")
    if kind == "statistics":  # of the first versions
        old = {f"{q}_{name}{end}": f"{q}_seed_{name}{end}" for q in VARIABLES for name in PLAIN for end in ("", "_se")}
        ds = ds.rename_vars({before: now for before, now in old.items() if before in ds})
    if kind not in MAKERS:
        raise SchemaError(f"the Dataset is of kind {kind!r}, which is none of {', '.join(MAKERS)}.")
    return validate(ds, kind)


def restored(ds: xr.Dataset) -> xr.Dataset:
    """A result that was selected from a stack (`dmft.stack`), with its own attributes; any other Dataset as it is."""
    if ATTRIBUTES not in ds.coords:
        return ds
    if ds[ATTRIBUTES].ndim:
        (dim,) = ds[ATTRIBUTES].dims
        raise SchemaError(f"this is a stack of results over {dim}; select one, e.g. .sel({dim}={ds[dim].values[0]}).")
    attrs = json.loads(ds[ATTRIBUTES].item())
    ds = ds.drop_vars([ATTRIBUTES, "problem_id"])
    ds.attrs = attrs
    return ds


def validate(ds: xr.Dataset, kind: str) -> xr.Dataset:
    """`ds`, if it is a result of this kind in this schema; one that was selected from a stack has its attributes back.

    Raises:
        SchemaError: naming the first difference.
    """
    if not isinstance(ds, xr.Dataset):
        raise SchemaError(f"expected an xarray Dataset with a result of kind {kind!r}, got {type(ds).__name__}.")
    ds = restored(ds)
    if ds.attrs.get("schema") != SCHEMA:
        raise SchemaError(f"the Dataset has schema {ds.attrs.get('schema')}; this version reads schema {SCHEMA}.")
    if ds.attrs.get("kind") != kind:
        raise SchemaError(
            f"the Dataset is of kind {ds.attrs.get('kind')!r}; expected {kind!r}, from {MAKERS[kind]}; are the "
            "arguments in another order?"
        )
    missing = [name for name in REQUIRED_ATTRS if name not in ds.attrs]
    if missing:
        raise SchemaError(f"the Dataset lacks the attributes {missing}.")
    _require_own_problem(ds)
    if not ds.data_vars:
        raise SchemaError("the Dataset holds no variables.")
    empty = _empty(ds, kind)
    for name, variable in ds.data_vars.items():
        if kind in WITH_ERRORS and not str(name).endswith("_se") and f"{name}_se" not in ds:
            raise SchemaError(f"variable {name!r} has no standard error {name}_se, as a result of kind {kind!r} must.")
        expected = dims(kind, str(name), outputs="output" in ds.dims)
        if variable.dims != expected:
            lost = [dim for dim in expected if dim not in variable.dims]
            way_out = f" Select with a list, {lost[0]}=[...], which keeps the dimension." if lost else ""
            raise SchemaError(f"variable {name!r} has dimensions {variable.dims}; expected {expected}.{way_out}")
        for dim in expected:
            if dim not in ds.indexes:
                raise SchemaError(f"dimension {dim!r} of {name!r} has no coordinate labels.")
            index = ds.indexes[dim]
            if not index.is_unique:
                twice = index[index.duplicated()].unique().tolist()
                raise SchemaError(
                    f"the labels {dim}={twice[0]}{' and others' * (len(twice) > 1)} are there twice. Where Datasets "
                    "were joined that hold the same entries, leave one out; where they do not, give each labels of its "
                    f"own, by .assign_coords({dim}=[...])."
                )
        values = variable.values[~empty] if empty.any() else variable.values
        if not str(name).endswith(UNRESOLVED) and not np.isfinite(values).all():
            raise SchemaError(f"variable {name!r} holds non-finite numbers.")
    for coord, dim in (("time", "step"), ("split", "sample"), ("target", "sample")):
        if dim in ds.dims and (coord not in ds.coords or ds[coord].dims[:1] != (dim,)):
            raise SchemaError(f"coordinate {coord!r} on {dim!r} is missing.")
    identity.require_own_entries(kind, ds)
    return ds


def _require_own_problem(ds: xr.Dataset) -> None:
    """SchemaError unless the attribute problem is the description that problem_id is the digest of."""
    try:
        found = identity_of(ds.attrs["problem"])
    except (ValueError, TypeError) as error:
        raise SchemaError(f"the attribute 'problem' is not that of a result: {error}") from error
    if found != ds.attrs["problem_id"]:
        raise SchemaError(
            f"the attributes were changed: 'problem' describes {found}, and problem_id is {ds.attrs['problem_id']}. "
            "Take the result as it was made; another problem has other results."
        )


def _empty(ds: xr.Dataset, kind: str) -> NDArray[np.bool_]:
    """(width, seed) or (width, block): where there is nothing, and numbers are nan; () for others."""
    if kind == "ensemble" and "diverged" in ds:
        return np.asarray(ds["diverged"].values, bool)
    if kind == "moments":
        if not {"count", "diverged"} <= set(ds.data_vars):
            raise SchemaError("a result of kind 'moments' must hold count and diverged.")
        return np.asarray(ds["count"].values == 0)
    return np.zeros((), bool)


def require_same_problem(**results: xr.Dataset) -> None:
    """ValueError that names the differences, unless all results, given by what they are, belong to one problem."""
    (first, ours), *others = results.items()
    for second, theirs in others:
        if ours.attrs["problem_id"] != theirs.attrs["problem_id"]:
            left, right = (dict(_leaves(json.loads(ds.attrs["problem"]))) for ds in (ours, theirs))
            differences = [
                f"{path}: {left.get(path)} in the {first}, {right.get(path)} in the {second}"
                for path in dict.fromkeys([*left, *right])
                if left.get(path) != right.get(path)
            ]
            raise ValueError(f"{first} and {second} are of different problems; " + "; ".join(differences))


def theory_attrs(source: xr.Dataset) -> dict[str, Any]:
    """What a result says of the limit that it rests on, given that limit or what rests on it: who made it, and whether
    it is that of lazy networks."""
    prefix = "" if source.attrs.get("kind") == "limit" else "theory_"
    names = ("producer", "regime")
    return {f"theory_{n}": source.attrs[f"{prefix}{n}"] for n in names if f"{prefix}{n}" in source.attrs}


def require_same_labels(**results: xr.Dataset) -> None:
    """Compare the labels of two results, given by what they are, along what both have but width, seed and block.

    Raises:
        ValueError: other steps.  SchemaError: other labels of another dimension.
    """
    (first, ours), (second, theirs) = results.items()
    for dim, left in ours.indexes.items():
        right = theirs.indexes.get(dim)
        if right is None or dim in ("width", "seed", "block") or left.equals(right):
            continue
        labels = f"{_few(left)} and {_few(right)}"
        if dim == "step":
            raise ValueError(
                f"{first} has {len(left)} steps and the {second} {len(right)}, not the same: {labels}; select common "
                f"ones first, e.g. {first}.sel(step={second}.step)."
            )
        raise SchemaError(f"{first} and {second} are labelled differently along {dim}: {labels}.")


def _few(labels: Any) -> str:
    """Labels, by their start."""
    shown = ", ".join(str(label) for label in labels[:LABELS])
    return shown + ", ..." * (len(labels) > LABELS)


def _leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and values."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _version() -> str:
    from dmft import __version__

    return __version__
