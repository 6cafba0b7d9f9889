"""The command line: `python -m dmft solve | describe | problem`.

    python -m dmft solve --source digits --classes 3 8 --n-train 8 --depth 2 --learning-rate 1 --steps 20 --out limit.nc
    python -m dmft describe limit.nc

Exit codes and errors: `dmft.command`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import dmft
from dmft import command
from dmft.command import aligned, problem_lines, short
from dmft.command.options import (
    NetworkOptions,
    NumericsOptions,
    TaskOptions,
    TrainingOptions,
    build_problem,
    read_problem,
    refuse_descriptions,
)
from dmft.running.paths import local
from dmft.text import table, with_error

if TYPE_CHECKING:
    import xarray as xr

DESCRIPTION = "The infinite-width feature-learning limit of neural networks."
ROWS = 6  # of the table over steps
# attributes that are printed in their own way, or not
FORMATTED = ("schema", "problem", "problem_id", "result", "memory_estimate")


@dataclass(frozen=True, kw_only=True)
class Solve:
    """Compute the limit of a problem, write it to a NetCDF file, print a summary.

    Example: python -m dmft solve --source digits --classes 3 8 --n-train 8 --depth 2 --learning-rate 1 --steps 9
    --out limit.nc
    """

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.nc")]
    """The result; read it with dmft.load or `python -m dmft describe`."""
    overwrite: bool = False
    """Replace this file if it exists."""
    dry_run: bool = False
    """Print what it would take, in memory and time, and write nothing."""
    problem: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json", help_behavior_hint="")] = None
    """A problem written before (`python -m dmft problem`), in place of the network, task and training options."""
    network: NetworkOptions
    task: TaskOptions
    training: TrainingOptions
    numerics: NumericsOptions

    def run(self) -> None:
        """Solve, save, print."""
        out = None if self.dry_run else _writable(self.out, self.overwrite)
        described = (self.network, self.task, self.training)
        if self.problem is None:
            problem = build_problem(*described)
        else:
            refuse_descriptions(*described)
            problem = read_problem(self.problem)
        arguments = self.numerics.values("solve", last=problem.training.steps)
        # before the work: the log of a job that is killed says what it was
        print(problem_lines(json.loads(problem.to_json(arrays=False)), problem.problem_id), flush=True)
        if out is None:
            print(f"\n{dmft.plan(problem, **arguments)}")
            return
        started = time.perf_counter()
        result = dmft.solve(problem, **arguments)
        taken = time.perf_counter() - started
        dmft.save(result, out)
        print(f"\n{result_lines(result)}\n\n{taken:.1f} s; written to {out}")


@dataclass(frozen=True)
class Describe:
    """Print what a stored result holds: problem, settings, variables, losses with their standard errors."""

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE.nc")]
    """A file that dmft.save or `python -m dmft solve` wrote."""

    def run(self) -> None:
        """Load, print."""
        stored = dmft.load(self.file)
        if "problem" not in stored.attrs:
            raise ValueError(f"{self.file} is not a result of this library: it does not name its problem.")
        print(problem_lines(json.loads(stored.attrs["problem"]), stored.attrs["problem_id"]))
        print(f"\n{result_lines(stored)}")


@dataclass(frozen=True, kw_only=True)
class WriteProblem:
    """Write a problem, data included, as JSON: for `solve --problem`, or Problem.from_json()."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.json")]
    """The file to write."""
    overwrite: bool = False
    """Replace this file if it exists."""
    network: NetworkOptions
    task: TaskOptions
    training: TrainingOptions

    def run(self) -> None:
        """Build, write, print."""
        out = _writable(self.out, self.overwrite)
        problem = build_problem(self.network, self.task, self.training)
        out.write_text(problem.to_json())
        print(problem_lines(json.loads(problem.to_json(arrays=False)), problem.problem_id))
        print(f"\nwritten to {out}")


COMMANDS: dict[str, Callable[..., Any]] = {"solve": Solve, "describe": Describe, "problem": WriteProblem}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`, by default those of the process, and return the exit code.

    Raises:
        SystemExit: after help (0), and for options that cannot be read (2).
    """
    return command.run(COMMANDS, prog="python -m dmft", description=DESCRIPTION, arguments=arguments)


def _writable(out: Path, overwrite: bool) -> Path:
    """The file to write; FileExistsError, IsADirectoryError, PermissionError before any work, rather than after it."""
    path = local(out, "--out")
    if path.is_dir():
        raise IsADirectoryError(f"--out {path} is a folder; give the name of a file.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"--out {path} exists; give --overwrite to replace it, or another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"--out {path}: its folder cannot be written to; give another one.")
    return path


# ---- what is printed -------------------------------------------------------------------------------------------------


def result_lines(result: xr.Dataset) -> str:
    """A result's settings, variables, values at some steps and precision, as text."""
    lines = {name: short(value) for name, value in result.attrs.items() if name not in FORMATTED}
    if "memory_estimate" in result.attrs:
        from dmft.running.memory import readable

        lines["memory_estimate"] = readable(int(result.attrs["memory_estimate"]))
    lines["sizes"] = ", ".join(f"{name} {size}" for name, size in result.sizes.items())
    lines["variables"] = ", ".join(str(name) for name in result.data_vars if not str(name).endswith("_se"))
    return "\n\n".join([aligned(lines), *table_lines(result), *error_lines(result)])


def table_lines(result: xr.Dataset) -> list[str]:
    """The variables that depend on the step alone, at a handful of steps, with their standard errors."""
    names = [str(name) for name, variable in result.data_vars.items() if variable.dims == ("step",)]
    shown = [name for name in names if not name.endswith("_se")]
    if not shown:
        return []
    last = result.sizes["step"] - 1
    rows = sorted({round(i * last / (ROWS - 1)) for i in range(ROWS)})
    columns = [["step", *(str(result["step"].values[i]) for i in rows)]]
    columns.append(["time", *(f"{result['time'].values[i]:.4g}" for i in rows)])
    for name in shown:
        errors = result[f"{name}_se"].values if f"{name}_se" in result else [math.nan] * (last + 1)
        columns.append([name, *(with_error(result[name].values[i], errors[i]) for i in rows)])
    return [table(columns)]


def error_lines(result: xr.Dataset) -> list[str]:
    """The largest standard error of predictions, and their error by finite steps, also relative to the largest."""
    if not {"prediction", "prediction_se"} <= set(result.data_vars):
        return []
    error, scale = (float(abs(result[name]).max()) for name in ("prediction_se", "prediction"))
    errors = {"largest standard error of a prediction": error}
    if "step_error" in result.attrs:
        errors["besides, by the finite steps of the flow"] = result.attrs["step_error"]
    relative = {name: f", {100 * e / scale:.2g} % of the largest prediction {scale:.3g}" for name, e in errors.items()}
    return ["\n".join(f"{name}: {e:.2g}{relative[name] if scale > 0 else ''}" for name, e in errors.items())]


if __name__ == "__main__":
    sys.exit(main())
