"""Draw figures of the gallery: `python -m figures NAME`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from dmft.command import ending_with_its_reader
from dmft.running.paths import local
from figures import docstring, names, needs


def main(arguments: list[str] | None = None) -> None:
    """Run the command line `arguments`, by default those of the process; exit codes as of `dmft.command`."""
    with ending_with_its_reader():
        _main(arguments)


def _main(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m figures",
        description="Draw a figure from stored results, or from results made for it at a size that fits two cores.",
        epilog="Every figure is written as PNG and PDF, with the numbers it shows as NetCDF beside it.\n\n"
        f"A folder for --store holds any of these files of dmft.save:\n\n{needs.LAYOUT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=(*names(), "all"), metavar="NAME", help="of --list, or all")
    parser.add_argument("--list", action="store_true", help="list the figures")
    parser.add_argument(
        "--store",
        type=Path,
        help="folder with results, such as `make demo` writes (below; with all: figures whose results it lacks are "
        "left out); without it, they are computed now",
    )
    parser.add_argument("--out", type=Path, help="file (one figure) or folder (all); default results/NAME.png")
    given = parser.parse_args(arguments)
    try:
        for name in ("store", "out"):
            setattr(given, name, getattr(given, name) and local(getattr(given, name), f"--{name}"))
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    if given.list:
        for name in names():
            print(f"{name:<24} {docstring(name).splitlines()[0]}")
        return
    if given.name is None:
        parser.error("name a figure, or use --list")
    from figures import style  # and Matplotlib with it

    every = given.name == "all"
    drawn = 0
    for name in names() if every else (given.name,):
        try:
            ds = _module(name).data(given.store)
            figure, shown = _module(name).figure(ds), _module(name).drawn(ds)
        except (FileNotFoundError, ValueError) as error:
            if not (every and given.store):
                parser.exit(2, f"{name}: {error}\n")
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        out = given.out / name if every and given.out else given.out or Path("results") / name
        for path in style.save(figure, shown, out):
            print(path)
        drawn += 1
    if not drawn:
        parser.exit(2, f"{given.store} has the numbers of no figure.\n")


def _module(name: str) -> Any:
    return importlib.import_module(f"figures.{name}")


if __name__ == "__main__":
    main()
