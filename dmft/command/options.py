"""Options of the command line (`python -m dmft`), and the specs they stand for.

Every field of `dmft.MLP`, `dmft.ResidualMLP`, `dmft.CNN`, `dmft.GradientDescent`, `dmft.GradientFlow` and every
argument of `dmft.load_task` has an option of its name, but for these:

    --network, --training        which of the networks, and of the two trainings
    --activation, --gain         the two fields of an activation
    --uncentered                 centered=False
    --unbalanced                 balanced=False
    --images                     flatten=False
    --data-seed                  seed of `load_task` (--seed is that of `dmft.solve`)
    --batch-size, --batch-seed   batches, by `dmft.random_batches`

An option that is left out leaves the decision to the spec, which holds the defaults and checks the values.  This module
loads neither JAX nor xarray, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from dmft.running.paths import local
from dmft.specs import (
    CNN,
    MLP,
    Activation,
    GradientDescent,
    GradientFlow,
    Problem,
    ResidualMLP,
    Task,
    load_task,
    random_batches,
)
from dmft.specs.activation import NAMES
from dmft.specs.loss import LOSSES
from dmft.specs.networks.convolution import PADDINGS, POOLINGS
from dmft.specs.parameterization import MEAN_FIELD, PARAMETERIZATIONS
from dmft.specs.tasks.sources import NAMED
from dmft.specs.training import OBSERVE, SCHEMES

NETWORKS: dict[str, type[MLP | ResidualMLP | CNN]] = {"mlp": MLP, "residual": ResidualMLP, "cnn": CNN}
ONLY_BIASED = ("bias", "bias_variance")
ONLY_CNN = ("kernel_size", "stride", "padding", "pooling")
ONLY_DESCENT = ("momentum", "weight_decay", "batch_size", "batch_seed", "observe")
ONLY_FLOW = ("step_size", "scheme")
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def _choice(names: Iterable[str]) -> str:
    return "{" + ",".join(names) + "}"


@dataclass(frozen=True)
class NetworkOptions:
    """The network; its width is infinite."""

    network: Annotated[
        Literal["mlp", "residual", "cnn"] | None, arg(metavar=_choice(NETWORKS), help_behavior_hint="(default: mlp)")
    ] = None
    """Perceptron, residual perceptron, or convolutional network (of --images)."""
    depth: Annotated[int | None, arg(metavar="L", help_behavior_hint="(required)")] = None
    """Number of hidden layers."""
    activation: Annotated[str | None, arg(metavar=_choice(NAMES), help_behavior_hint="(default: tanh)")] = None
    """Nonlinearity phi."""
    gain: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint=f"(default: {Activation.gain:g})")] = None
    """Of tanh, softplus, erf, gelu: phi(gain h) / gain."""
    scale: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: 1)")] = None
    """Factor of the activation."""
    gamma0: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint=f"(default: {MLP.gamma0:g})")] = None
    """Richness; towards 0 the network becomes lazy (NTK)."""
    branch_scale: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: 1/sqrt(L))")] = None
    """Of a residual network: factor of its branches."""
    kernel_size: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(required for cnn)")] = None
    """Of a convolutional network: places of a kernel along an axis, an odd number."""
    stride: Annotated[int | None, arg(metavar="INT", help_behavior_hint=f"(default: {CNN.stride})")] = None
    """Of a convolutional network: of every layer."""
    padding: Annotated[str | None, arg(metavar=_choice(PADDINGS), help_behavior_hint=f"(default: {CNN.padding})")] = (
        None
    )
    """Of a convolutional network: what lies outside."""
    pooling: Annotated[str | None, arg(metavar=_choice(POOLINGS), help_behavior_hint=f"(default: {CNN.pooling})")] = (
        None
    )
    """Of a convolutional network: what the readout takes of positions."""
    uncentered: bool = False
    """Do not subtract the output at initialisation."""
    bias: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: 0, none)")] = None
    """Scale of biases."""
    weight_variance: Annotated[
        tuple[float, ...] | None, arg(metavar="FLOAT ...", help_behavior_hint="(default: 1)")
    ] = None
    """Of initial weights; or one for each layer, the readout, which may start at 0, last."""
    bias_variance: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: 1)")] = None
    """Of initial biases; 0 for biases that start at zero."""
    frozen: Annotated[tuple[int, ...] | None, arg(metavar="LAYER ...", help_behavior_hint="")] = None
    """Layers that are not trained: 0 .. L-1, or L for the readout."""
    parameterization: Annotated[
        str | None, arg(metavar=_choice(PARAMETERIZATIONS), help_behavior_hint=f"(default: {MEAN_FIELD})")
    ] = None
    """Powers of the width; the theory is for the default."""

    def build(self) -> MLP | ResidualMLP | CNN:
        """The network; ValueError, TypeError as the specs raise them."""
        kind = self.network or "mlp"
        if kind != "residual":
            _refuse(self, ("branch_scale",), f"--network {kind}", "take --network residual")
        if kind != "cnn":
            _refuse(self, ONLY_CNN, f"--network {kind}", "take --network cnn")
        else:
            _refuse(self, ONLY_BIASED, "--network cnn", "take --network mlp")
        given = _given(self, ("depth", "gamma0", "branch_scale", "frozen", "parameterization", *ONLY_BIASED, *ONLY_CNN))
        if self.weight_variance is not None:
            given["weight_variance"] = _one_or_each(self.weight_variance)
        shape = _given(self, ("gain", "scale"))
        if self.activation is not None or shape:
            given["activation"] = Activation(self.activation or "tanh", **shape)
        return NETWORKS[kind](**given, centered=not self.uncentered)


@dataclass(frozen=True)
class TaskOptions:
    """The data; they are read from this machine, nothing is downloaded."""

    source: Annotated[str | None, arg(metavar=_choice([*sorted(NAMED), "PATH"]), help_behavior_hint="(required)")] = (
        None
    )
    """Data set by name; or an .npz file with x, y; or a folder of IDX or CIFAR-10 files."""
    classes: Annotated[tuple[str, ...] | None, arg(metavar="LABEL LABEL ...", help_behavior_hint="")] = None
    """Two labels (targets -1 and +1, in this order) or more (one-hot); 0,2,4 is one class of three labels. Needed where
    the data have more than two."""
    n_train: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(required)")] = None
    """Training samples to draw, evenly from the classes."""
    n_test: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 0)")] = None
    """Test samples to draw."""
    data_seed: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 0)")] = None
    """Of that draw."""
    normalize: Annotated[
        Literal["sphere", "standard", "none"] | None,
        arg(metavar="{sphere,standard,none}", help_behavior_hint="(default: sphere)"),
    ] = None
    """Inputs: centered and of norm sqrt(D); or every feature of unit variance; or as they are."""
    one_hot: bool = False
    """One-hot targets also for two classes."""
    unbalanced: bool = False
    """Draw classes as often as they occur, not evenly."""
    images: bool = False
    """Keep the positions of images, as convolutional networks need them."""
    regression: bool = False
    """Targets are numbers, whatever values they take."""
    names: Annotated[tuple[str, ...] | None, arg(metavar="PLACE=NAME ...", help_behavior_hint="")] = None
    """Which array of the .npz file, or file of the folder, is x, y (or x_train, y_train) and x_test, y_test."""
    allow_pickle: bool = False
    """Read CIFAR-10's pickled batches."""

    def build(self) -> Task:
        """The task; ValueError, ImportError, FileNotFoundError as `load_task` raises them."""
        given = _given(self, ("source", "n_train", "n_test"))
        if self.classes is not None:
            given["classes"] = [_label(text) for text in self.classes]
        if self.names is not None:
            given["names"] = _names(self.names)
        if self.data_seed is not None:
            given["seed"] = self.data_seed
        if self.normalize is not None:
            given["normalize"] = None if self.normalize == "none" else self.normalize
        if self.one_hot:
            given["one_hot"] = True
        flags: dict[str, Any] = {
            "balanced": not self.unbalanced,
            "regression": self.regression,
            "allow_pickle": self.allow_pickle,
            "flatten": not self.images,
        }
        return load_task(given.pop("source"), **given, **flags)


@dataclass(frozen=True)
class TrainingOptions:
    """Loss and training."""

    loss: Annotated[str | None, arg(metavar=_choice(LOSSES), help_behavior_hint=f"(default: {Problem.loss})")] = None
    """Loss of one sample."""
    training: Annotated[
        Literal["descent", "flow"] | None,
        arg(metavar="{descent,flow}", help_behavior_hint="(default: descent)"),
    ] = None
    """Gradient descent in discrete steps, or gradient flow."""
    learning_rate: Annotated[tuple[float, ...] | None, arg(metavar="FLOAT ...", help_behavior_hint="(required)")] = None
    """Rate; or, for descent, one for each step."""
    steps: Annotated[int | None, arg(metavar="T", help_behavior_hint="(required)")] = None
    """Number of steps; results are at steps 0..T."""
    momentum: Annotated[
        float | None, arg(metavar="FLOAT", help_behavior_hint=f"(default: {GradientDescent.momentum:g})")
    ] = None
    """Of descent: heavy ball, from 0 to below 1."""
    weight_decay: Annotated[
        float | None, arg(metavar="FLOAT", help_behavior_hint=f"(default: {GradientDescent.weight_decay:g})")
    ] = None
    """Of descent: weights shrink by 1 - rate x this in each step."""
    batch_size: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all samples)")] = None
    """Of descent: samples in a batch; batches run through shuffled epochs."""
    batch_seed: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 0)")] = None
    """Of descent: seed of the shuffling."""
    observe: Annotated[
        str | None, arg(metavar=_choice(OBSERVE), help_behavior_hint=f"(default: {GradientDescent.observe})")
    ] = None
    """Of descent: results on all samples, or on test samples only (for streams of data)."""
    step_size: Annotated[
        tuple[float, ...] | None, arg(metavar="FLOAT ...", help_behavior_hint="(required for flow)")
    ] = None
    """Of flow: time of a step; or one for each step."""
    scheme: Annotated[
        str | None, arg(metavar=_choice(SCHEMES), help_behavior_hint=f"(default: {GradientFlow.scheme})")
    ] = None
    """Of flow: how steps are taken."""

    def build(self, n_train: int) -> GradientDescent | GradientFlow:
        """The training of `n_train` samples; ValueError, TypeError as the specs raise them."""
        rate = _one_or_each(self.learning_rate)
        if self.training == "flow":
            _refuse(self, ONLY_DESCENT, "--training flow", "take --training descent")
            if isinstance(rate, tuple):
                raise ValueError("--learning-rate takes one number with --training flow; vary --step-size instead.")
            given = _given(self, ("steps", "scheme"))
            return GradientFlow(learning_rate=rate, step_size=_one_or_each(self.step_size), **given)
        _refuse(self, ONLY_FLOW, "--training descent", "take --training flow")
        given = _given(self, ("steps", "momentum", "weight_decay", "observe"))
        if self.batch_size is not None:
            given["batches"] = random_batches(n_train, self.batch_size, given["steps"], seed=self.batch_seed or 0)
        elif self.batch_seed is not None:
            raise ValueError("--batch-seed does nothing without --batch-size; give both, or neither.")
        return GradientDescent(learning_rate=rate, **given)


def build_problem(network: NetworkOptions, task: TaskOptions, training: TrainingOptions) -> Problem:
    """The problem that the options describe.

    Raises:
        ValueError, TypeError, ImportError, FileNotFoundError: required options that are missing, all named; else as
            the specs and `load_task` raise them.
    """
    required = {"depth": network, "source": task, "n_train": task, "learning_rate": training}
    if network.network == "cnn":
        required["kernel_size"] = network
    if training.training == "flow":
        required["step_size"] = training
    # the steps of a flow are counted where each has its size
    if training.step_size is None or len(training.step_size) == 1:
        required["steps"] = training
    if missing := [name for name, group in required.items() if getattr(group, name) is None]:
        raise ValueError(
            f"{_typed(missing)} {'is' if len(missing) == 1 else 'are'} missing; a problem needs {_typed(required)}."
        )
    built, loaded = network.build(), task.build()
    return Problem(built, loaded, training.build(loaded.n_train), **_given(training, ("loss",)))


def read_problem(path: Path) -> Problem:
    """The problem in a file of JSON text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not the text of a problem, with the reason.
    """
    path = local(path, "--problem")
    if not path.is_file():
        raise FileNotFoundError(f"--problem {path} is not a file; `python -m dmft problem` writes one.")
    try:
        return Problem.from_json(path.read_text())
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--problem {path} is not a problem as Problem.to_json() or `python -m dmft problem` write it: {error}"
        ) from error


def refuse_descriptions(*options: Any) -> None:
    """ValueError if any of these options is given: for a problem that a file describes already."""
    for group in options:
        _refuse(group, [part.name for part in fields(group)], "--problem", "describe the problem without a file")


@dataclass(frozen=True)
class NumericsOptions:
    """How it is computed."""

    particles: Annotated[int, arg(metavar="S")] = 4096
    """Particles that stand for the neurons of a layer, a power of two; time and memory grow like S."""
    scrambles: int = 8
    """Independent repetitions, at least 2; their scatter gives the standard errors."""
    seed: int = 0
    """Of the scrambles."""
    tolerance: float = 3e-3
    """Relative size below which directions met by a weight matrix are dropped."""
    observables: Annotated[tuple[str, ...] | None, arg(metavar="NAME ...", help_behavior_hint="")] = None
    """What to record, of prediction, loss, feature_kernel, gradient_kernel, ntk, sharpness; else as dmft.solve does."""
    two_time: bool = False
    """Record kernels between all pairs of recorded steps too."""
    save_steps: Annotated[tuple[int, ...] | None, arg(metavar="STEP ...", help_behavior_hint="(default: all)")] = None
    """Steps to record."""
    every: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Instead of --save-steps: every N-th step and the last."""
    dtype: Annotated[str, arg(metavar="{float64,float32}")] = "float64"
    """Precision."""
    device: Annotated[str, arg(metavar="{auto,cpu,gpu}")] = "auto"
    """Where to compute; auto takes a GPU if JAX has one."""
    devices: int = 1
    """How many of these devices share the work."""
    checkpoint: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """A file that keeps the state; the same command goes on from it after it was killed."""
    memory_limit: Annotated[str | None, arg(metavar="SIZE", help_behavior_hint="(default: what is free)")] = None
    """Refuse to start above this: bytes, or a number with KiB, MiB, GiB or TiB."""
    progress: Literal["auto", "always", "never"] = "auto"
    """Progress bar on standard error; auto shows it on a terminal."""

    def arguments(self, last: int) -> dict[str, Any]:
        """Arguments of `dmft.solve` that differ from its defaults, for a problem with steps 0..last.

        Raises:
            ValueError: --every below 1 or together with --save-steps; a --memory-limit that is no size.
        """
        changed = {
            part.name: value
            for part in fields(self)
            if part.default is not MISSING and (value := getattr(self, part.name)) != part.default
        }
        if (every := changed.pop("every", None)) is not None:
            if self.save_steps is not None:
                raise ValueError("--every and --save-steps both choose the steps to record; give one of them.")
            changed["save_steps"] = every_nth(every, last)
        if self.memory_limit is not None:
            changed["memory_limit"] = parse_size(self.memory_limit)
        if "progress" in changed:
            changed["progress"] = self.progress == "always"
        return changed


def every_nth(every: int, last: int) -> tuple[int, ...]:
    """0, every, 2 every ... and last."""
    if every < 1:
        raise ValueError(f"--every {every} must be at least 1; 1 records every step.")
    return tuple(sorted({*range(0, last + 1, every), last}))


def parse_size(text: str) -> int:
    """Bytes from a number with or without unit: 4000000, "500 MiB", "1.5GiB"."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]iB|)\s*", text)
    if match is None:
        raise ValueError(f"--memory-limit {text!r} is not a size; give bytes, or a number with a unit, e.g. 8GiB.")
    return int(float(match[1]) * UNITS[match[2]])


# ---- what was given ------------------------------------------------------------------------------------------------


def _given(options: Any, names: Iterable[str]) -> dict[str, Any]:
    """The options of these names that are not left out."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _refuse(options: Any, names: Iterable[str], context: str, otherwise: str) -> None:
    """ValueError if any of these options, which mean nothing in this context, is given."""
    # by identity: 0 is a value
    given = [name for name in names if not any(getattr(options, name) is unset for unset in (None, False))]
    if given:
        what = "does not go" if len(given) == 1 else "do not go"
        raise ValueError(f"{_typed(given)} {what} with {context}; leave it out, or {otherwise}.")


def _typed(names: Iterable[str]) -> str:
    """Names of options as they are typed: "--depth, --n-train and --steps"."""
    *others, last = ["--" + name.replace("_", "-") for name in names]
    return f"{', '.join(others)} and {last}" if others else last


def _label(text: str) -> Any:
    """A label of a class, a whole number where it is one; or several, between commas."""
    if "," in text:
        return tuple(_label(part) for part in text.split(",") if part)
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else text


def _names(texts: Iterable[str]) -> dict[str, str]:
    """Of "x=images", "y=labels"."""
    parts = [text.partition("=") for text in texts]
    if wrong := [text for text, part in zip(texts, parts, strict=True) if not (part[0] and part[2])]:
        raise ValueError(f"--names {wrong[0]!r} is not PLACE=NAME, such as x=images.")
    return {place: name for place, _, name in parts}


def _one_or_each(values: tuple[float, ...] | None) -> Any:
    """A single number as itself."""
    return values[0] if values is not None and len(values) == 1 else values
