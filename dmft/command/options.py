"""Options of the command lines, and the specs they stand for.

Every argument of the architectures and trainings of `dmft.specs`, of `dmft.load_task` and of `dmft.solve` has an option
of its name (`dmft.command.groups`), and so have those of one's own, as MODULE:CLASS; the tables here say what is typed
in another way, and why.  This module loads neither JAX nor xarray, so that help and mistakes are answered at
once.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

import dmft
from dmft.command.groups import Call, Group, Option, Typed, arguments, as_typed, declared, group, naming, refuse
from dmft.running.paths import local
from dmft.specs import Activation, Problem, load_task, random_batches
from dmft.specs import descriptions as specs
from dmft.specs.activation import NAMES, WITH_GAIN
from dmft.specs.tasks.sources import NAMED

# names that are typed, where they are not those of the class in small letters
DEFAULTS = ("MLP", "GradientDescent")
SHORT = {
    "ResidualMLP": "residual",
    "ResidualCNN": "residual-cnn",
    "GradientDescent": "descent",
    "GradientFlow": "flow",
}
OWN: dict[str, dict[str, Call]] = {"network": {}, "training": {}}  # that command lines named
# options of the commands themselves
COMMANDS = (
    *("out", "overwrite", "dry_run", "loss", "network", "training", "every", "data_seed", "batch_size", "batch_seed"),
    *("store", "widths", "seeds", "vary", "block", "covariance", "members", "executor", "shard", "threads"),
)
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


# ---- exceptions, and how they are read -------------------------------------------------------------------------------


def _activation(made: Mapping[str, Any], name: str | None, gain: float | None, scale: float | None) -> Activation:
    given: dict[str, Any] = {part: value for part, value in (("gain", gain), ("scale", scale)) if value is not None}
    return replace(made["activation"], **given) if name is None else Activation(name, **given)


def _batches(made: Mapping[str, Any], size: int | None, seed: int | None) -> Any:
    if size is None:
        raise ValueError("--batch-seed does nothing without --batch-size; give both, or neither.")
    with naming({"size": "batch_size", "seed": "batch_seed"}):
        return random_batches(made["n_train"], size, made["steps"], seed=seed or 0)


def _labels(_: Any, texts: Iterable[str]) -> list[Any]:
    """Text, which `load_task` takes for numbers where they are; several, between commas, are one class."""
    return [tuple(part for part in text.split(",") if part) if "," in text else text for text in texts]


def _names(_: Any, texts: Iterable[str]) -> dict[str, str]:
    """Of "x=images", "y=labels"."""
    parts = {text: text.partition("=") for text in texts}
    if wrong := [text for text, part in parts.items() if not (part[0] and part[2])]:
        raise ValueError(f"--names {wrong[0]!r} is not PLACE=NAME, such as x=images.")
    return {place: name for place, _, name in parts.values()}


def _steps(made: Mapping[str, Any], steps: Any, every: int | None) -> Any:
    """0, every, 2 every ... and the last."""
    if every is None:
        return steps
    if steps is not None:
        raise ValueError("--every and --save-steps both choose the steps to record; give one of them.")
    if every < 1:
        raise ValueError(f"--every {every} must be at least 1; 1 records every step.")
    return tuple(sorted({*range(0, made["last"] + 1, every), made["last"]}))


def _size(_: Any, text: str) -> int:
    """Bytes from a number with or without unit: 4000000, "500 MiB", "1.5GiB"."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]iB|)\s*", text)
    if match is None:
        raise ValueError(f"--memory-limit {text!r} is not a size; give bytes, or a number with a unit, e.g. 8GiB.")
    return int(float(match[1]) * UNITS[match[2]])


def _progress(_: Any, when: str) -> bool | None:
    if when not in ("auto", "always", "never"):
        raise ValueError(f"--progress {when!r} is unknown; choose one of auto, always, never.")
    return None if when == "auto" else when == "always"


CLASSES = (
    "two labels (targets -1 and +1, in this order) or more (one-hot); 0,2,4 is one class of three labels.  Needed "
    "where the data have more than two."
)
FILES = "which array of the .npz file, or file of the folder, is x, y (or x_train, y_train) and x_test, y_test."
FROZEN = (
    "layers that stay at initialisation: 0 .. L-1 for W^0 .. W^{L-1} with their biases, L for the readout w.  "
    "0 1 ... L-1 leaves random features with a trained readout."
)
LAYOUT = '"image": keep the positions of images, as --images does; "flat": vectors, the default.'
NORMALIZE = (
    '"sphere": subtract the mean training input, scale every input to |x|^2 = D, so that K^x has a unit diagonal; '
    '"standard": zero mean and unit variance of every feature over the training inputs; "none": raw.'
)
LIMIT = "refuse to start above this: bytes, or a number with KiB, MiB, GiB or TiB."
NETWORK = {
    "activation": Typed(  # a spec of its own
        (
            Option("activation", str, "{" + ",".join(NAMES) + "}"),
            Option("gain", float, "FLOAT", f"of {', '.join(WITH_GAIN)}: phi(gain h) / gain.", "(default: 1)"),
            Option("scale", float, "FLOAT", "factor of the activation.", "(default: 1)"),
        ),
        _activation,
    ),
    "frozen": Typed((Option("frozen", text=FROZEN),)),  # numbers, where Python takes a range
    # a flag says what is not usual
    "centered": Typed((Option("uncentered", bool, "", "do not subtract the output at initialisation."),)),
}
TRAINING = {
    "nesterov": Typed((Option("plain_momentum", bool, "", "momentum that does not look ahead (not Nesterov's)."),)),
    "batches": Typed(  # a table of numbers; drawn here
        (
            Option("batch_size", int, "INT", "samples in a batch, of shuffled epochs.", "(default: all)"),
            Option("batch_seed", int, "INT", "of the shuffling.", "(default: 0)"),
        ),
        _batches,
    ),
}
TASK = {
    "classes": Typed((Option("classes", tuple[str, ...], "LABEL ...", CLASSES),), _labels),  # labels of any type
    "names": Typed((Option("names", tuple[str, ...], "PLACE=NAME ...", FILES),), _names),  # a mapping
    "normalize": Typed(  # text or None
        (Option("normalize", str, "{sphere,standard,none}", NORMALIZE),),
        lambda _, text: None if text == "none" else text,
    ),
    "layout": Typed((Option("layout", text=LAYOUT),)),
    "seed": Typed((Option("data_seed"),)),  # --seed is that of the computation
    "source": Typed((Option("source", str, "{" + ",".join([*sorted(NAMED), "PATH"]) + "}"),)),
    # flags say what is not usual
    "balanced": Typed((Option("unbalanced", bool, "", "draw classes as often as they occur, not evenly."),)),
    "flatten": Typed((Option("images", bool, "", "keep the positions of images, for convolutional networks."),)),
}
MACHINE = {
    "memory_limit": Typed(  # numbers with units
        (Option("memory_limit", str, "SIZE", LIMIT, "(default: what is free)"),), _size
    ),
    "progress": Typed((Option("progress", str, "{auto,always,never}", hint="(default: auto)"),), _progress),
}
NUMERICS = {
    **MACHINE,
    "problem": Typed(),  # described by the other groups
    "save_steps": Typed(
        (
            Option("save_steps", hint=""),
            Option("every", int, "N", "instead of --save-steps: every N-th step and the last.", ""),
        ),
        _steps,
    ),
}


def in_options(message: str) -> str:
    """A message, with the flags for arguments that it names and that are typed in another way."""
    flags = {f"{name}=False": typed.options[0] for name, typed in (NETWORK | TASK).items() if typed.options}
    found = [f"{name} is --{flag.name}" for name, flag in flags.items() if flag.type is bool and name in message]
    return f"{message} (On the command line {', '.join(found)}.)" if found else message


# ---- groups ----------------------------------------------------------------------------------------------------------


def _known(chooser: str) -> dict[str, Call]:
    """What is registered, and what command lines named, by the names that are typed."""
    registered: Mapping[str, Any] = specs.NETWORKS if chooser == "network" else specs.TRAININGS
    names = sorted(registered, key=lambda name: name not in DEFAULTS)  # the first is the default
    return {SHORT.get(name, name.lower()): registered[name] for name in names} | OWN[chooser]


def _taken(chooser: str, others: Iterable[Call]) -> dict[str, Typed]:
    """How arguments are typed whose names are options of something else."""
    names = {name for call in (load_task, _solve(), *others) for name in arguments(call)} | {*COMMANDS}
    return {name: Typed((Option(f"{chooser}_{name}"),)) for name in names}


def _solve() -> Call:
    return declared(dmft._LAZY["solve"], "solve")


def _network_options() -> type[Group]:
    exceptions = _taken("network", _known("training").values()) | NETWORK
    return group("The network; its width is infinite.", _known("network"), chooser="network", exceptions=exceptions)


def _task_options() -> type[Group]:
    text = "The data; they are read from this machine, nothing is downloaded."
    return group(text, {"task": load_task}, exceptions=TASK)


def _training_options() -> type[Group]:
    loss = arguments(Problem)["loss"].option("loss")._replace(hint=f"(default: {Problem.loss})")
    trainings: Iterable[Call] = specs.TRAININGS.values()
    first = {name for call in trainings for name in arguments(call)}  # networks make way for these
    taken = {name: typed for name, typed in _taken("training", specs.NETWORKS.values()).items() if name not in first}
    return group(
        "Loss and training.", _known("training"), chooser="training", exceptions=taken | TRAINING, beside=[loss]
    )


def _numerics_options() -> type[Group]:
    return group("How it is computed.", {"solve": _solve()}, exceptions=NUMERICS)


NetworkOptions = Annotated[Group, arg(constructor_factory=_network_options)]
TaskOptions = Annotated[Group, arg(constructor_factory=_task_options)]
TrainingOptions = Annotated[Group, arg(constructor_factory=_training_options)]
NumericsOptions = Annotated[Group, arg(constructor_factory=_numerics_options)]


def import_own(typed: Sequence[str]) -> None:
    """Make the classes known that a command line names as MODULE:CLASS; ValueError for what is none."""
    for chooser, module, name in re.findall(r"--(network|training)[ =]([\w.]+):(\w+)", " ".join(typed)):
        what = f"--{chooser} {module}:{name}"
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            raise ValueError(
                f"{what} cannot be imported ({error}); start where `import {module}` works, or set PYTHONPATH."
            ) from error
        if not (inspect.isclass(found) and is_dataclass(found)):
            raise ValueError(f"{what}: {module} has no dataclass {name}; define it there.")
        OWN[chooser][f"{module}:{name}"] = found


# ---- problems --------------------------------------------------------------------------------------------------------


def build_problem(network: Group, task: Group, training: Group) -> Problem:
    """The problem that the options describe.

    Raises:
        ValueError, TypeError, ImportError, FileNotFoundError: required options that are missing, all named; else as
            the specs and `load_task` raise them.
    """
    groups = (network, task, training)
    missing = [name for one in groups for name in one.required if name not in one.typed]
    # the steps of a flow are counted where each has its size
    if "steps" not in {*training.typed, *missing} and len(training.typed.get("step_size", ())) == 1:
        missing.append("steps")
    if missing:
        what = "is" if len(missing) == 1 else "are"
        required = dict.fromkeys([*(name for one in groups for name in one.required), *missing])
        raise ValueError(f"{as_typed(missing)} {what} missing; a problem needs {as_typed(required)}.")
    built, loaded = network.make(), task.make()
    loss = training.typed.get("loss", Problem.loss)
    return Problem(built, loaded, training.make(n_train=loaded.n_train), loss)


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


def refuse_descriptions(*options: Group) -> None:
    """ValueError if any of these options is typed, for a problem that a file describes already; but MODULE:CLASS,
    whose module a description may need."""
    for one in options:
        typed = [name for name, value in one.typed.items() if name != one.chooser or ":" not in value]
        refuse(typed, "--problem", "describe the problem without a file")
