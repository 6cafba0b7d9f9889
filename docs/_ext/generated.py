"""Parts of pages that are made from the package, so that new names and figures appear by themselves.

A page says `%% gallery %%`, `%% api dmft %%`, `%% module dmft.schema %%` or `%% modules dmft %%` on a line of its own;
what is put there, in the language of the page:

    gallery          a section for each of `figures.names()`: title, picture, the docstring of its module
    api PACKAGE      a table of its public names, and the documentation of each
    module NAME      the docstring of a module, as it is
    modules PACKAGE  a section with the docstring of each module that says more than one line
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from docstrings import escaped
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"^%% (\w+)(?: ([\w.]+))? %%$", re.MULTILINE)


def public_names(package: str) -> list[str]:
    """What a package or module offers: its `__all__`, or what it defines without an underscore."""
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=lambda name: (not name[0].isupper(), name.lower()))
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == package
    ]


def api(package: str) -> str:
    """reStructuredText: a table of names, then every name."""
    module = importlib.import_module(package)
    names = public_names(package)
    lines = [".. list-table::", "   :widths: 30 70", "   :class: names", ""]
    parts = []
    for name in names:
        value = getattr(module, name)
        kind = "class" if inspect.isclass(value) else "module" if isinstance(value, types.ModuleType) else "function"
        role = {"class": "class", "module": "mod", "function": "func"}[kind]
        lines += [f"   * - :{role}:`~{package}.{name}`", f"     - {escaped(_first_sentence(value))}"]
        parts += ["", f".. auto{kind}:: {package}.{name}"]
        if kind != "function":
            parts += ["   :members:"]
    return "\n".join([*lines, *parts, ""])


def module(name: str) -> str:
    """MyST: the docstring of a module as text."""
    return f"```{{code-block}} text\n{inspect.getdoc(importlib.import_module(name))}\n```"


def modules(package: str) -> str:
    """MyST: a section a module, in the order of names."""
    return "\n\n".join(f"## {name}\n\n{module(name)}" for name in _documented(package))


def gallery(_: str | None = None) -> str:
    """MyST: a section a figure."""
    return "\n\n".join(map(_figure, importlib.import_module("figures").names()))


def _figure(name: str) -> str:
    doc = inspect.getdoc(importlib.import_module(f"figures.{name}")) or name
    first, _, rest = doc.partition("\n")
    title = first.rstrip(".").partition(":")
    lead = title[2].strip()
    lead = f"{lead[:1].upper()}{lead[1:]}." if lead else ""
    picture = ROOT / "figures" / "gallery" / f"{name}.png"
    shown = (
        f"```{{image}} /../figures/gallery/{name}.png\n:alt: {title[0]}\n:width: 100%\n```"
        if picture.exists()
        else "*This figure has no stored picture; the command below draws it.*"
    )
    text = re.sub(r"\n(?=\(\w\) )", "\n\n", rest.strip())
    parts = [f"## {title[0]}", lead, shown, _plain(text), f"```console\n$ python -m figures {name}\n```"]
    return "\n\n".join(part for part in parts if part)


def _plain(text: str) -> str:
    """Plain text as MyST: indented lines continue the one before, markup is escaped outside of backticks."""
    parts = re.split(r"(`[^`]+`)", re.sub(r"\n +", "\n", text))
    parts[::2] = [re.sub(r"([*_$<>\[\]|~])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _first_sentence(value: Any) -> str:
    lines = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[.]) ", lines)[0].rstrip(":.") + "."


def _documented(package: str) -> Iterator[str]:
    """Modules of a package with more than one line of docstring."""
    found = importlib.import_module(package)
    names = [package]
    names += [m.name for m in pkgutil.walk_packages(found.__path__, f"{package}.") if not m.name.endswith("__main__")]
    for name in names:
        try:
            doc = inspect.getdoc(importlib.import_module(name))
        except ImportError:  # an optional dependency that is not installed
            continue
        if doc and "\n" in doc:
            yield name


MAKERS: dict[str, Callable[[Any], str]] = {"api": api, "gallery": gallery, "module": module, "modules": modules}


def fill(app: Sphinx, docname: str, content: list[str]) -> None:
    """Put what is made in the place of its mark."""
    del app, docname
    if MARK.search(content[0]):
        content[0] = MARK.sub(lambda match: MAKERS[match[1]](match[2]), content[0])


def outdated(app: Sphinx, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Pages with such parts are made anew every time."""
    del app, added, changed, removed
    paths = {name: Path(env.doc2path(name)) for name in env.all_docs}
    return [name for name, path in paths.items() if path.exists() and MARK.search(path.read_text())]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", fill)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
