"""What the command lines of the packages share: parsing, exit codes, errors and warnings for the user.

Exit codes: 0 success, 2 bad input, 3 `DivergenceError`, 4 `MemoryEstimateError`.  These print their message alone.  Any
other error, also a ValueError or TypeError that these packages do not raise by themselves, is a mistake of the library:
it shows its traceback and the exit code is 1.  Whose reader stops reading (`| head`) ends without a word, as a process
does that gets SIGPIPE: 141, with what it had still to do left undone.
"""

from __future__ import annotations

import json
import linecache
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro

from dmft.command.options import import_own, in_options
from dmft.errors import DivergenceError, MemoryEstimateError

EXIT_CODES = (
    "Exit codes: 0 success, 2 bad input, 3 training diverges, 4 not enough memory, 141 output is not read to its end."
)
PIPE_CLOSED = 141  # 128 and the number of SIGPIPE
PACKAGES = ("dmft", "finite_nets", "comparisons", "figures")
ROOT = Path(__file__).parents[2]
LONGEST = 6  # entries of a list that are printed


def run(
    commands: Mapping[str, Callable[..., Any]], *, prog: str, description: str, arguments: Sequence[str] | None
) -> int:
    """Run the command that `arguments` name, by default those of the process, and return the exit code.

    Args:
        commands: dataclasses with a method `run`, by name.

    Raises:
        SystemExit: after help (0), and for options that cannot be read (2).
    """
    with ending_with_its_reader():
        return _run(commands, prog, description, arguments)


def _run(
    commands: Mapping[str, Callable[..., Any]], prog: str, description: str, arguments: Sequence[str] | None
) -> int:
    """As `run`; BrokenPipeError where nobody reads what is printed."""
    try:
        with _plain_warnings():
            import_own(sys.argv[1:] if arguments is None else arguments)
            tyro.extras.subcommand_cli_from_dict(
                dict(commands),
                prog=prog,
                description=f"{description}\n\n{EXIT_CODES}",
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            ).run()
    except BrokenPipeError:
        raise
    except DivergenceError as error:
        return _failed(error, 3)
    except MemoryEstimateError as error:
        return _failed(error, 4)
    except (OSError, ImportError) as error:
        return _failed(error, 2)
    except (ValueError, TypeError) as error:
        if not _raised_by_us(error):
            raise
        return _failed(error, 2)
    return 0


@contextmanager
def ending_with_its_reader() -> Iterator[None]:
    """A command line whose output may be a pipe that is closed before its end.

    Raises:
        SystemExit: it is (141).
    """
    try:
        try:
            yield
        finally:  # after help, too
            sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # which Python flushes once more
            os.dup2(nowhere, stream.fileno())
        raise SystemExit(PIPE_CLOSED) from None


def _failed(error: Exception, code: int) -> int:
    """Print an error; the exit code."""
    print(f"error: {in_options(str(error))}", file=sys.stderr)
    return code


def _raised_by_us(error: Exception) -> bool:
    """Whether a `raise` of these packages made the error, rather than what it called."""
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    file = Path(frame.f_code.co_filename)
    # the line too: JAX takes its own frames out of tracebacks
    ours = any(file.is_relative_to(ROOT / package) for package in PACKAGES)
    return ours and linecache.getline(str(file), line).lstrip().startswith("raise")


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line of text on standard error."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


# ---- text ------------------------------------------------------------------------------------------------------------


def problem_lines(problem: Mapping[str, Any], problem_id: str) -> str:
    """A problem, from its JSON, as text."""
    task = problem["task"]
    shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in task["shapes"].items())
    source = {name: value for name, value in task["provenance"].items() if name not in ("origin", "source_sha256")}
    lines = {
        "problem_id": problem_id,
        "network": _call(problem["network"]),
        "training": _call(problem["training"]),
        "loss": problem["loss"],
        **({"task": _call({"kind": "", **source}).strip("()")} if source else {}),
        "data": f"{shapes}, sha256 {task['sha256'][:12]}...",
    }
    return aligned(lines)


def aligned(lines: Mapping[str, Any]) -> str:
    """Names and what they stand for, a line each."""
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def _call(fields: Mapping[str, Any]) -> str:
    """A spec, from its JSON, as the call that makes it."""
    arguments = [f"{name}={short(value)}" for name, value in fields.items() if name != "kind"]
    return f"{fields['kind']}({', '.join(arguments)})"


def short(value: Any) -> str:
    """A value of JSON or of an attribute on one line, long lists by their start."""
    if isinstance(value, Mapping):  # an activation
        return f"{value['name']}({value['gain']:g})" if set(value) == {"name", "gain"} else json.dumps(value)
    if isinstance(value, list) and value and isinstance(value[0], list):  # batches
        return f"{len(value)} x {len(value[0])} entries"
    if isinstance(value, list):
        shown = ", ".join(short(entry) for entry in value[:LONGEST])
        return f"[{shown}{f', ... {len(value)} in all' * (len(value) > LONGEST)}]"
    return str(value)
