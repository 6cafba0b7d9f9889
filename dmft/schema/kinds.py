"""Kinds of results: who makes them, and which variables with which dimensions they may hold.

A variable is named after a quantity (`dmft.schema.registry.quantities`) and what was found of it, a suffix; a kind says
what dimensions the quantity has with each suffix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dmft.errors import SchemaError
from dmft.schema.observable import Observable, with_outputs
from dmft.schema.registry import quantities, registered

Dims = tuple[str, ...]
Change = Callable[[Dims], Dims]
EACH_NEURON = ("layer", "step", "sample", "neuron")
PAIRS = ("step", "sample", "step_2", "sample_2")
MOMENTS = ("mean", "m2")
RATIOS, OVERALL = (
    tuple(f"{kind}_{ratio}{part}" for kind in ("variance", "bias") for part in ("", "_se"))
    for ratio in ("ratio", "overall_ratio")
)
PREDICTED = tuple(f"{kind}_limit{part}" for kind in ("variance", "bias") for part in ("", "_se"))
BY_WIDTH = ("mean", "mean_se", "variance", "variance_se", "deviation", "deviation_se", "z", "variance_z", "bias_z")
BY_WIDTH_LAYER_STEP = ("error", "error_se", "distance", "distance_se", *RATIOS)
TOTALS = ("raw_variance", "raw_variance_se", "raw_bias_square", "raw_bias_square_se", *OVERALL)
EXPONENTS = tuple(f"{kind}_exponent{part}" for kind in ("variance", "bias") for part in ("", "_se", "_chi2"))
OF_MODULES = {  # of networks that are any module, beside what all have
    "activation_size": ("width", "seed", "layer", "step"),
    "activation_change": ("width", "seed", "layer", "step"),
    "activation_density": ("width", "seed", "layer", "step", "bin"),
    "weight_change": ("width", "seed", "step", "parameter"),
    "measured": ("width", "seed", "step", "entry"),
}
OF_RANDOM_DATA: dict[str, Dims] = {  # limits of models of random data, beside losses
    **dict.fromkeys(
        (
            "error_correlation",
            "residual_correlation",
            "feature_correlation",
            "readout_correlation",
            "gradient_correlation",
            "data_response",
            "feature_response",
        ),
        ("step", "step_2"),
    ),
    **dict.fromkeys(
        ("forward_correlation", "backward_correlation", "forward_response", "backward_response"),
        ("layer", "step", "step_2"),
    ),
    **dict.fromkeys(
        ("ensemble_test_loss", "test_bias", "variance_of_features", "variance_of_data", "variance_of_both"), ("step",)
    ),
}
OF_QUADRATIC: dict[str, Dims] = dict.fromkeys(  # of quadratic perceptrons, beside losses
    ("offset_error", "misalignment", "linear_power", "target_alignment", "ntk_change"), ("step",)
)
DUALS: dict[str, Dims] = {"feature_dual": ("layer", "sample", "sample_2"), "action": ()}  # of adaptive kernels
OF_GRADIENTS: dict[str, Dims] = {"value": (), "gradient": ("parameter",)}
OF_OPTIMA: dict[str, Dims] = {  # of a search, by iteration
    "value": ("iteration",),
    "number": ("iteration", "parameter"),
    "gradient": ("iteration", "parameter"),
}
OF_CHAINS = ("r_hat", "effective_size")
UNRESOLVED = EXPONENTS + RATIOS + OVERALL  # where the data say nothing: nan


def _same(dims: Dims) -> Dims:
    return dims


def _no(dims: Dims) -> Dims:
    del dims
    return ()


def _after(*leading: str) -> Change:
    return lambda dims: (*leading, *dims)


def _layer_step(dims: Dims) -> Dims:
    return tuple(dim for dim in dims if dim in ("layer", "step"))


def _still(*leading: str) -> Change:
    """Of what does not change in time: without steps."""
    return lambda dims: (*leading, *(dim for dim in dims if not dim.startswith("step")))


def _by_width(dims: Dims) -> Dims:
    return ("width", *_layer_step(dims))


def _by_width_alone(dims: Dims) -> Dims:
    del dims
    return ("width",)


def _all(suffixes: Iterable[str], change: Change, *, errors: bool = False) -> dict[str, Change]:
    """The same change of dimensions for each suffix, and for those of standard errors."""
    return {f"_{suffix}{end}": change for suffix in suffixes for end in (("", "_se") if errors else ("",))}


def _with_errors(dims: dict[str, Dims]) -> dict[str, Dims]:
    """Dimensions of these, and of their standard errors."""
    return {f"{name}{end}": each for name, each in dims.items() for end in ("", "_se")}


@dataclass(frozen=True)
class Kind:
    """A kind of results.

    maker: what returns it.
    suffixes: what was found of quantities, and how their dimensions change; "" for the quantity itself.
    besides: dimensions of other variables, by name; of_predictions: of such that have outputs where predictions do.
    errors: whether every variable has a standard error.
    """

    maker: str
    suffixes: dict[str, Change] = field(default_factory=dict)
    besides: dict[str, Dims] = field(default_factory=dict)
    of_predictions: dict[str, Dims] = field(default_factory=dict)
    errors: bool = False

    def variables(self, *, outputs: bool) -> dict[str, Dims]:
        """Dimensions of all that it may hold, by name, where targets have an axis of outputs or not."""
        found = dict(self.besides)
        found |= {name: with_outputs(dims) if outputs else dims for name, dims in self.of_predictions.items()}
        for name, quantity in quantities().items():
            whole = quantity.dims_with(outputs)
            found |= {f"{name}{suffix}": change(whole) for suffix, change in self.suffixes.items()}
        return found


KINDS = {
    "limit": Kind(
        "dmft.solve",
        {"": _same, "_se": _same},
        besides=_with_errors(OF_RANDOM_DATA | OF_QUADRATIC),
        errors=True,
    ),
    "depth_limit": Kind("dmft.depth_limit", {"": _after("depth"), "_se": _after("depth")}, errors=True),
    "fluctuations": Kind(
        "dmft.fluctuations",
        _all(("variance", "bias"), _same, errors=True)
        | _all(("variance_by_layer",), _after("source_layer"), errors=True),
        of_predictions=_with_errors({"prediction_covariance": PAIRS}),
        errors=True,
    ),
    "expansion": Kind(
        "dmft.at_width",
        _all(("mean", "std", "excess", "excess_variance", "excess_bias"), _after("width"), errors=True),
        errors=True,
    ),
    "ensemble": Kind(
        "finite_nets.train_ensemble",
        {"": _after("width", "seed")},
        besides={"diverged": ("width", "seed"), **OF_MODULES}
        | {name: ("width", "seed", *dims) for name, dims in OF_QUADRATIC.items()},
    ),
    "moments": Kind(
        "finite_nets.train_ensemble(..., keep='moments')",
        _all(MOMENTS, _after("width", "block")),
        besides=dict.fromkeys(("count", "diverged"), ("width", "block")),
        of_predictions={"prediction_comoment": ("width", "block", *PAIRS)},
    ),
    "statistics": Kind(
        "comparisons.statistics",
        _all(("mean", "seed_variance"), _after("width"), errors=True),
        besides={"count": ("width",)},
        of_predictions={"prediction_seed_covariance": ("width", *PAIRS)},
    ),
    "comparison": Kind(
        "comparisons.compare",
        _all(("limit", "limit_se", *PREDICTED), _same)
        | _all(BY_WIDTH, _after("width"))
        | _all(BY_WIDTH_LAYER_STEP, _by_width)
        | _all(TOTALS, _by_width_alone)
        | _all(EXPONENTS, _no),
    ),
    "adaptive_kernel": Kind(
        "dmft.adaptive_kernel",
        {"": _still(), "_se": _still()},
        besides=_with_errors(DUALS),
        of_predictions=_with_errors({"prediction_dual": ("sample",)}),
        errors=True,
    ),
    "posterior": Kind(
        "finite_nets.sample_posterior",
        {"": _still("width", "seed"), **dict.fromkeys(("_se", *(f"_{each}" for each in OF_CHAINS)), _still("width"))},
        besides={"acceptance": ("width", "seed")},
    ),
    "gradient": Kind(
        "dmft.gradient",
        besides=_with_errors(OF_GRADIENTS),
        errors=True,
    ),
    "optimum": Kind("dmft.optimise", besides=OF_OPTIMA),
    "particles": Kind("dmft.neurons", besides={"preactivation": EACH_NEURON}),
    "neurons": Kind("finite_nets.neurons", besides={"preactivation": ("width", *EACH_NEURON)}),
}


@functools.lru_cache(maxsize=64)
def _variables(kind: str, outputs: bool, known: tuple[Observable, ...]) -> dict[str, Dims]:
    """Of a kind, while these observables are `known`."""
    del known
    return KINDS[kind].variables(outputs=outputs)


def dims(kind: str, name: str, *, outputs: bool = False) -> Dims:
    """Dimensions of the variable `name` in a Dataset of this kind; SchemaError if there is no such variable.

    `outputs` says whether targets have an axis of outputs.
    """
    found = _variables(kind, outputs, registered())
    if name not in found:
        raise SchemaError(
            f"{name!r} is not a variable of a result of kind {kind!r}; quantities are {list(quantities())}. (An "
            "observable of your own is known once its module is imported.)"
        )
    return found[name]
