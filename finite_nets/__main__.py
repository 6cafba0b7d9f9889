"""The command line: `python -m finite_nets sweep | describe | check`.

    python -m finite_nets sweep --source mnist5k --classes 3 8 --n-train 30 --depth 2 --learning-rate 1 --steps 16
        --widths 64 128 256 --seeds 10000 --store runs/mnist --dry-run

Exit codes and errors: `dmft.command`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

import dmft
import finite_nets
from dmft import command
from dmft.command import problem_lines, short
from dmft.command.groups import Group, Option, Typed, declared, group
from dmft.command.options import (
    MACHINE,
    NetworkOptions,
    TaskOptions,
    TrainingOptions,
    build_problem,
    read_problem,
    refuse_descriptions,
)

DESCRIPTION = "Ensembles of real networks of finite width."


# ---- options of plan_sweep and sweep ---------------------------------------------------------------------------------


def _shard(_: Any, text: str) -> tuple[int, int]:
    """Of "i/n"."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise ValueError(f"--shard {text!r} is not I/N, such as 0/4.")
    return int(parts[0]), int(parts[1])


def _executor(_: Any, name: str) -> Any:
    """By name, or the Dask client of an address."""
    if "://" not in name:
        return name
    from distributed import Client

    return Client(name)  # type: ignore[no-untyped-call]


DASK = '"serial", here; "pool", one process a device; or a Dask scheduler at an address such as tcp://host:8786.'
DEVICES = (
    '"auto" (all GPUs, or the CPU), or names: --devices cuda:0 cuda:1.  A serial run takes the first of them; workers '
    "of Dask and of other executors choose by themselves."
)
EVERY = "instead of --save-steps: every so many steps, and the last."
SHARD = "for N jobs side by side: of all blocks every N-th, from the I-th (from 0) on."
EXCEPTIONS = {
    **MACHINE,
    **dict.fromkeys(("problems", "widths", "seeds", "store"), Typed()),  # of `Sweep`
    "devices": Typed((Option("devices", tuple[str, ...], "DEVICE ...", DEVICES),), lambda _, names: list(names)),
    "every": Typed((Option("every", text=EVERY),)),
    "executor": Typed((Option("executor", str, "{serial,pool,ADDRESS}", DASK),), _executor),  # an object
    "shard": Typed((Option("shard", str, "I/N", SHARD, "(default: 0/1)"),), _shard),  # a pair
}


def sweep_options() -> type[Group]:
    """Those of `plan_sweep`, and of `sweep`."""
    calls = {name: declared(finite_nets._LAZY[name], name) for name in ("plan_sweep", "sweep", "train_ensemble")}
    also = calls.pop("train_ensemble")
    return group("What is recorded, and how.", calls, exceptions=EXCEPTIONS, also=[also])


SweepOptions = Annotated[Group, tyro.conf.arg(constructor_factory=sweep_options)]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train networks of several widths, and store moments over blocks of them; what is there is not trained again.

    Example: python -m finite_nets sweep --problem problem.json --widths 64 128 --seeds 1000 --store runs
    """

    store: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """The store; made if it is not there."""
    widths: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")]
    """Widths of the networks."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")]
    """Networks of each width; or a number for each."""
    problem: Annotated[tuple[Path, ...] | None, tyro.conf.arg(metavar="FILE.json ...", help_behavior_hint="")] = None
    """Problems written before (`python -m dmft problem`), in place of the network, task and training options."""
    vary: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE,VALUE ...", help_behavior_hint="")] = ()
    """Fields of network or training to vary, in all combinations."""
    network: NetworkOptions
    task: TaskOptions
    training: TrainingOptions
    recording: SweepOptions
    dry_run: bool = False
    """Print what there is to do, with estimates of memory and time, and do nothing."""

    def run(self) -> None:
        """Plan; print the plan, or do it and print what was done."""
        varied = [_varied(text) for text in self.vary]
        if len({name for name, _ in varied}) < len(varied):
            raise ValueError(f"--vary {' '.join(self.vary)} names a field twice; give all of its values at once.")
        problems = [one for problem in self._problems() for one in dmft.vary(problem, **dict(varied))]
        counts: Any = self.seeds[0]
        if len(self.seeds) > 1:
            if len(self.seeds) != len(self.widths):
                raise ValueError(
                    f"--seeds has {len(self.seeds)} numbers for {len(self.widths)} widths; give one, or all."
                )
            counts = dict(zip(self.widths, self.seeds, strict=True))
        arguments = {"store": self.store, **self.recording.values("plan_sweep")}
        if self.dry_run:
            print(finite_nets.plan_sweep(problems, self.widths, counts, **arguments))
        else:
            print(finite_nets.sweep(problems, self.widths, counts, **arguments | self.recording.values("sweep")))

    def _problems(self) -> list[dmft.Problem]:
        described = (self.network, self.task, self.training)
        if self.problem is None:
            return [build_problem(*described)]
        refuse_descriptions(*described)
        return [read_problem(path) for path in self.problem]


@dataclass(frozen=True)
class Describe:
    """Print what a store holds: problems, widths, finished blocks, networks, and how many diverged."""

    store: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """A store."""

    def run(self) -> None:
        """Read, print."""
        from finite_nets.sweeps.store import Store

        store = Store(self.store)
        for problem_id, problem in finite_nets.problems(self.store).items():
            print(problem_lines(json.loads(problem.to_json(arrays=False)), problem_id))
            settings = store.settings(problem_id).as_json()
            print("settings    " + ", ".join(f"{name}={short(value)}" for name, value in settings.items()))
            for width in store.widths(problem_id):
                blocks, size = sorted(store.finished(problem_id, width)), store.block_size(problem_id, width)
                counts, diverged = (int(store.read(problem_id, width, n, blocks).sum()) for n in ("count", "diverged"))
                print(f"width {width:<6} {len(blocks)} blocks of {size}: {counts} networks, {diverged} diverged")
            print()


@dataclass(frozen=True)
class Check:
    """Read every chunk of a store against its checksum."""

    store: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """A store."""
    repair: bool = False
    """Take damaged blocks out, so that the next sweep makes them again."""

    def run(self) -> None:
        """Read, print what is wrong; ValueError if something is, and stays."""
        found = finite_nets.check_store(self.store, repair=self.repair)
        for problem in found:
            print(problem)
        if found and not self.repair:
            raise ValueError(f"{len(found)} damaged or left over; --repair takes these out.")
        print(f"{len(found)} taken out." if found else f"{self.store} is whole.")


COMMANDS: dict[str, Callable[..., Any]] = {"sweep": Sweep, "describe": Describe, "check": Check}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`, by default those of the process, and return the exit code.

    Raises:
        SystemExit: after help (0), and for options that cannot be read (2).
    """
    return command.run(COMMANDS, prog="python -m finite_nets", description=DESCRIPTION, arguments=arguments)


def _varied(text: str) -> tuple[str, list[Any]]:
    """Of "field=value,value"."""
    name, sign, values = text.partition("=")
    if not sign or not values:
        raise ValueError(f"--vary {text!r} is not FIELD=VALUE,VALUE, such as gamma0=0.5,1,2.")
    name, read = name.replace("-", "_"), dmft.Activation if name == "activation" else _value
    return name, [read(value) for value in values.split(",")]


def _value(text: str) -> Any:
    """A number, true or false, or text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())
