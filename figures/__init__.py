"""One file a figure: `figure(comparison)`, or `figure(theory, nets)`, draws results of the other packages.

    from figures import width_convergence
    width_convergence.figure(theory, nets)     # a matplotlib Figure of the caller's own, which pyplot does not know

Every figure has

    figure(*results)    the whole figure; of what, `NEEDS` says: one Dataset, or the results that it follows from
    drawn(*results)     the numbers that it shows, a Dataset; `style.save` keeps them beside the picture
    draw(ds, axes)      puts them on axes and computes nothing
    data(store)         what the figure of the gallery is drawn of; of a folder of results (`figures.needs`), or made

python -m figures --list
python -m figures width_convergence --store results/demo --out results/width_convergence.png
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """Names of all figures: files here that define `figure`."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if "\ndef figure(" in path.read_text("utf-8")
    )


def docstring(name: str) -> str:
    """What the file of a figure says of itself, read without loading it; `python -OO` drops it from what is loaded."""
    source = (Path(__file__).parent / f"{name}.py").read_text("utf-8")
    return ast.get_docstring(ast.parse(source), clean=False) or ""


def __getattr__(name: str) -> ModuleType:
    """A figure, which is loaded when it is asked for."""
    if name in names():
        return importlib.import_module(f"figures.{name}")
    raise AttributeError(f"figures has no {name!r}; choose among {', '.join(names())}.")


def __dir__() -> list[str]:
    return [*globals(), *names()]
