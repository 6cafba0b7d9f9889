"""What an observable is: a name, its dimensions, and a formula of what a pass has shown, for all producers.

    formula(seen) -> (..., [layer,] [sample, sample_2])        of the state before the update of a step

`seen` is what a pass over the observed samples shows, to JAX and to PyTorch alike (`dmft.schema.seen`); `seen.xp` is
the module (jax.numpy or torch) whose functions the formula may use.  "..." are axes that a producer leads with:
networks side by side, or none.  With several outputs an observable that is `per_output` has events, samples with
outputs, in place of samples.

An observable that follows from predictions is an average over samples, and has a formula of a sample:

    formula(xp, loss, f, y) -> (..., sample)                   f, y (..., sample, output), loss its name

A file of `dmft.schema.observed` holds each of this library; those of a user's own are registered alike
(`dmft.schema.registry`).

One that needs the Hessian of the loss has a formula of the eigenvalues that are found of it, in the metric of gradient
descent, or, `preconditioned`, in that of an adaptive optimiser (`dmft.specs.curvature`):

    formula(eigenvalues) -> (...)                              (..., iteration), ascending
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dmft.specs import Problem

if TYPE_CHECKING:
    from dmft.schema.seen import Fields, Seen

OUTPUT = "output"  # the prediction itself
PREDICTIONS = "predictions"
HESSIAN = "hessian"  # of the loss: some twenty passes
FORWARD = "forward"
BACKWARD = "backward"  # from every output of every observed sample
NEEDS = (OUTPUT, PREDICTIONS, HESSIAN, FORWARD, BACKWARD)  # in the order in which results hold what needs them
DIMS = ("layer", "attention_layer", "step", "sample", "sample_2", "query", "key")


def _none(problem: Problem) -> str:
    del problem
    return ""


def _of_stream(problem: Problem) -> str:
    if problem.training.observe != "test":
        return ""
    return 'the curvature is that of the loss over all training samples, which observe="test" never meets together'


def _without_metric(problem: Problem) -> str:
    training: Any = problem.training
    if training.observe == "test":
        return 'the metric is that of the next step, of whose samples observe="test" shows none'
    if not training.stepping.by_entry:
        return f"{type(training).__name__} has no preconditioner: take the one of gradient descent (ntk, sharpness)"
    if not training.preconditions:
        return f"{type(training).__name__} divides no gradient by its size, entry by entry, as dmft.Adam does"
    return ""


def _never(problem: Problem, names: Collection[str]) -> bool:
    del problem, names
    return False


@dataclass(frozen=True)
class Observable:
    """A number, or array of numbers, of a network at a step.

    Args:
        name: in results, a word of Python.
        formula: see the top of this module; None for prediction.
        dims: of its variable for a single output, some of layer, step, sample, sample_2 in this order, step among them;
            attention_layer, query and key are those of attention matrices (`dmft.schema.observed.attention`).
        long_name, label, symbol: in words, as tables have it, and in TeX.
        units: of UDUNITS.
        needs: of a pass: "forward", "backward", "predictions", or "hessian".
        per_output: whether samples stand with their outputs, where there are several.
        on_request: whether it is recorded only if it is asked for.
        smooth: whether it is differentiable: `dmft.fluctuations` expands it in 1/N.
        preconditioned: whether it is one of the metric in which an adaptive optimiser descends.
        fields: of which fields it is the average product: then it is there between two steps, too.
        mean: whether that is a mean over positions, or their sum.
        refusal: (problem) -> why it has none, as the end of an error; "" if it has.
        brought: (problem, names) -> whether it comes with others that are asked for.
        split: "train" or "test", of what `of` makes.

    Example:
        >>> dmft.Observable("size", lambda layer: 0, dims=("layer", "step"), long_name="size").dims
        ('layer', 'step')
    """

    name: str
    formula: Callable[..., Any] | None
    dims: tuple[str, ...]
    long_name: str = ""
    label: str = ""
    symbol: str = ""
    units: str = "1"
    needs: str = FORWARD
    per_output: bool = False
    on_request: bool = True
    smooth: bool = True
    preconditioned: bool = False
    fields: Callable[[Seen], Fields] | None = None
    mean: bool = True
    refusal: Callable[[Problem], str] = _none
    brought: Callable[[Problem, Collection[str]], bool] = _never
    split: str = ""  # of its variables of training or of test samples, which `of` makes

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        if not (isinstance(self.name, str) and self.name.isidentifier()) or self.name.endswith("_se"):
            raise ValueError(f"name={self.name!r} must be a word such as 'participation_ratio', not ending in _se.")
        if self.dims[-2:] != ("step_2", "sample_2") and (
            "step" not in self.dims or self.dims != tuple(dim for dim in DIMS if dim in self.dims)
        ):
            raise ValueError(
                f"dims={self.dims} of {self.name} must be some of {DIMS} in this order, step among them; e.g. "
                "('layer', 'step')."
            )
        if self.needs not in NEEDS:
            raise ValueError(f"needs={self.needs!r} of {self.name} is unknown; choose one of {', '.join(NEEDS)}.")
        if not callable(self.formula) and self.needs != OUTPUT:
            raise TypeError(f"formula={self.formula!r} of {self.name} must be a function.")
        if self.formula is not None and self.needs == OUTPUT:
            raise ValueError(
                f"needs={self.needs!r} of {self.name}: no formula is called for what needs it; take 'forward', "
                "'backward', 'predictions' or 'hessian'."
            )
        if self.needs in (PREDICTIONS, HESSIAN) and self.dims != ("step",):
            raise ValueError(f"dims={self.dims} of {self.name}: what needs {self.needs!r} is ('step',), a number.")
        if self.preconditioned and self.refusal is _none:
            object.__setattr__(self, "refusal", _without_metric)
        if self.needs == HESSIAN and self.refusal is _none:
            object.__setattr__(self, "refusal", _of_stream)
        object.__setattr__(self, "long_name", self.long_name or self.name.replace("_", " "))
        object.__setattr__(self, "label", self.label or self.long_name)
        object.__setattr__(self, "symbol", self.symbol or rf"\mathrm{{{self.label}}}".replace(" ", r"\ "))

    @property
    def of_pass(self) -> bool:
        """Whether its formula is one of what a pass has shown."""
        return self.needs in (FORWARD, BACKWARD)

    @property
    def kernel(self) -> bool:
        """Whether it compares pairs of samples, symmetrically; distances are then relative to its size."""
        return "sample_2" in self.dims

    @property
    def producers(self) -> tuple[str, ...]:
        """The calls that record it: expansions in 1/N what is smooth, and no passes for the Hessian but training's."""
        in_law, expanded = self.needs != HESSIAN, self.needs != HESSIAN and self.smooth
        others = {"finite_nets.sample_in_law": in_law, "dmft.fluctuations": expanded}
        return ("dmft.solve", "finite_nets.train_ensemble", *(name for name, has in others.items() if has))

    def dims_with(self, outputs: bool) -> tuple[str, ...]:
        """Dimensions where targets have an axis of outputs, or not."""
        return with_outputs(self.dims) if outputs and self.per_output else self.dims

    def shape(self, sizes: dict[str, int], *, outputs: bool, step: bool = False) -> tuple[int, ...]:
        """At one step, or with those of all, from the sizes of layer, sample, output (and step)."""
        dims = self.dims_with(outputs)
        return tuple(sizes[dim.removesuffix("_2")] for dim in dims if step or dim != "step")

    def arranged(self, value: Any, sizes: dict[str, int], *, outputs: bool, leading: int = 0) -> Any:
        """What the formula has returned of a step, with the dimensions of results behind so many leading axes.

        Raises:
            ValueError: it has another shape.
        """
        shape = self.shape(sizes, outputs=outputs)
        events = sizes["sample"] * (sizes["output"] if outputs and self.per_output else 1)
        by_event = self.shape(sizes | {"sample": events}, outputs=False)
        found = tuple(value.shape)
        if found[leading:] not in (shape, by_event):
            dims = ", ".join(dim for dim in self.dims_with(outputs) if dim != "step")
            raise ValueError(
                f"the formula of {self.name} returns the shape {found}, not ({dims})={shape} behind {leading} axes."
            )
        return value.reshape(*found[:leading], *shape)

    def over_steps(self, values: Any) -> Any:
        """Values (step, dimensions of one step) of NumPy or JAX with the dimensions in the order of results."""
        at, axes = self.dims.index("step"), list(range(1, values.ndim))
        return values.transpose(*axes[:at], 0, *axes[at:])

    def of(self, split: str) -> Observable:
        """What follows from predictions, of training ("") or test ("test_") samples."""
        part, samples = {"": ("training", "train"), "test_": ("test", "test")}[split]
        long_name, label = (f"{part} {text}" for text in (self.long_name, self.label))
        return replace(self, name=f"{split}{self.name}", long_name=long_name, label=label, split=samples)

    def between_steps(self) -> Observable:
        """The average product of fields of two steps."""
        return replace(
            self,
            name=f"{self.name}_two_time",
            dims=("layer", "step", "sample", "step_2", "sample_2"),
            long_name=f"{self.long_name} between two steps",
            label=f"{self.label} between two steps",
        )


def with_outputs(dims: tuple[str, ...]) -> tuple[str, ...]:
    """Dimensions with those of outputs after samples."""
    after = {"sample": ("sample", "output"), "sample_2": ("sample_2", "output_2")}
    return tuple(each for dim in dims for each in after.get(dim, (dim,)))
