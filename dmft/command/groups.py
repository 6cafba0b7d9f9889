"""Groups of options, made from what they are for: dataclasses and functions, with their types, defaults and `Args`.

    --network mlp|residual|cnn|MODULE:CLASS      --depth, --gamma0 of all, --kernel-size of cnn alone

Where there are several calls, another option chooses among them.  An option that is left out leaves the decision to the
call, which holds the defaults and checks the values.  How an argument is typed, its type says (numbers, text, truth
values, paths, several of one kind), or a table of exceptions; others cannot be typed.  Choices are what the `Args` of
an argument quote: "a" or "b".  Functions whose modules load JAX or PyTorch are read from their source: help is answered
at once.
"""

from __future__ import annotations

import ast
import builtins
import collections.abc
import dataclasses
import importlib.util
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import docstring_parser
from tyro.conf import arg

METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
SEVERAL = (tuple, list, collections.abc.Sequence, collections.abc.Iterable)
OWN = "MODULE:CLASS: one of your own (also beside --problem, where its file needs it)."
Call = Callable[..., Any]


class Option(NamedTuple):
    """An option; of an exception, fields that are None are as usual for its argument."""

    name: str
    type: Any = None
    metavar: str | None = None
    text: str | None = None
    hint: str | None = None


class Typed(NamedTuple):
    """How an argument is typed, where its type does not say it.

    Attributes:
        options: those which it is typed as, of several the first is the one that counts; none: it cannot be typed.
        read: the argument, of those before it with its default, and of what was typed for each option (None: nothing).
    """

    options: tuple[Option, ...] = ()
    read: Callable[..., Any] | None = None


class Argument(NamedTuple):
    """An argument of a call: the members of its type, its default (MISSING: it is required), its text."""

    types: tuple[Any, ...]
    default: Any
    text: str

    @property
    def one(self) -> Any:
        """The type of a single value; None if it takes none that can be typed."""
        return next((kind for kind in (Path, float, int, str, bool) if kind in self.types), None)

    @property
    def several(self) -> Any:
        """The type of each of several values; None if it takes none that can be typed."""
        held = [typing.get_args(kind)[0] for kind in self.types if typing.get_origin(kind) in SEVERAL]
        return next((kind for one in held for kind in _members(one) if kind in METAVARS), None)

    def option(self, name: str) -> Option:
        """As it is typed by its type; without a type if it cannot be."""
        if self.one is bool and self.default is True:
            return Option(f"no_{name}", bool, "", f"Not: {self.text}")
        if self.one is bool or not (kind := self.several or self.one):
            return Option(name, self.one, "", self.text)
        choices = list(dict.fromkeys(re.findall(r'"(\w+(?: \w+)*)"', self.text))) if kind is str else []
        typed = [f'"{choice}"' if " " in choice else choice for choice in choices]  # as a shell wants it
        metavar = "{" + ",".join(typed) + "}" if choices else METAVARS[kind]
        if self.several:
            return Option(name, tuple[kind, ...], f"{metavar} ...", self.text)  # type: ignore[valid-type]
        return Option(name, kind, metavar, self.text)


# ---- what is called --------------------------------------------------------------------------------------------------


@cache
def arguments(call: Call) -> Mapping[str, Argument]:
    """The arguments of a dataclass or function."""
    parsed = docstring_parser.google.parse(_said(call)).params
    texts = {name: " ".join((one.description or "").split()) for one in parsed for name in one.arg_name.split(", ")}
    hints = typing.get_type_hints(call)
    fields: Any = getattr(call, "__dataclass_fields__", {})
    found = {}
    for name, parameter in inspect.signature(call).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            default = MISSING if parameter.default is parameter.empty else parameter.default
            if name in fields and fields[name].default_factory is not MISSING:
                default = fields[name].default_factory()
            text = texts.get(name, "")
            found[name] = Argument(_members(hints.get(name, str)), default, "" if text.startswith("as of `") else text)
    return found


def _said(call: Call) -> str:
    """The docstring; where Python has left it out (-OO), from the source."""
    if sys.flags.optimize > 1 and (file := inspect.getsourcefile(call)) is not None:
        for node in ast.walk(ast.parse(Path(file).read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == call.__name__:
                return ast.get_docstring(node) or ""
    return inspect.getdoc(call) or ""


def _members(hint: Any) -> tuple[Any, ...]:
    """Of a union; those of a Literal are text."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(member for one in typing.get_args(hint) for member in _members(one))
    return (str,) if typing.get_origin(hint) is typing.Literal else (hint,)


@cache
def declared(module: str, name: str) -> Call:
    """A function with the arguments and the docstring of another, whose module is not loaded."""
    origin = importlib.util.find_spec(module).origin  # type: ignore[union-attr]
    tree = ast.parse(Path(str(origin)).read_text("utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    function.body, function.decorator_list, function.returns = function.body[:1], [], None
    scope: dict[str, Any] = {}
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module([*future, function], []), str(origin), "exec", optimize=0), scope)
    made: Call = scope[name]
    made.__annotations__ = typing.get_type_hints(made, localns=_Names())
    return made


class _Unknown(type):
    """A type that cannot be typed, and whatever its module has."""

    def __getattr__(cls, name: str) -> Any:
        return cls


class _Names(dict[str, Any]):
    """Types by name."""

    def __missing__(self, name: str) -> Any:
        known = vars(builtins) | vars(collections.abc) | {"Path": Path, "os": os, "Any": Any}
        return known.get(name, _Unknown("Unknown", (), {}))


# ---- a group ---------------------------------------------------------------------------------------------------------


class Group:
    """What was typed of a group of options."""

    calls: ClassVar[Mapping[str, Call]]
    chooser: ClassVar[str]
    exceptions: ClassVar[Mapping[str, Typed]]
    owners: ClassVar[dict[str, list[str]]]  # the calls that an option is for
    kinds: ClassVar[dict[str, Any]]  # the types of options

    @property
    def typed(self) -> dict[str, Any]:
        """By option, what was typed; ValueError for text that is no number where one belongs."""
        found = {name: getattr(self, name) for name in self.kinds}
        return {name: _read(name, self.kinds[name], text) for name, text in found.items() if text not in (None, False)}

    @property
    def chosen(self) -> str:
        """The name of the call; ValueError if it is unknown."""
        name = getattr(self, self.chooser, None) or next(iter(self.calls))
        for known, call in self.calls.items():
            if name in (known, call.__name__):
                return known
        raise ValueError(
            f"--{self.chooser} {name!r} is unknown; choose one of {', '.join(self.calls)}, or a class of your own as "
            "MODULE:CLASS."
        )

    @property
    def required(self) -> list[str]:
        """Options without which the call cannot be made."""
        known = arguments(self.calls[self.chosen]).items()
        return [_options(name, one, self.exceptions)[0].name for name, one in known if one.default is MISSING]

    def make(self, **made: Any) -> Any:
        """What is called, of what was typed; `made`: what else readers of exceptions need.

        Raises:
            ValueError: options of another call; as the call raises it.
        """
        chosen = self.chosen
        if others := [name for name in self.typed if chosen not in self.owners.get(name, [chosen])]:
            ways = dict.fromkeys(f"--{self.chooser} {owner}" for name in others for owner in self.owners[name])
            refuse(others, f"--{self.chooser} {chosen}", f"take {' or '.join(ways)}")
        call, values = self.calls[chosen], self.values(chosen, **made)
        first = {name: _options(name, one, self.exceptions)[:1] for name, one in arguments(call).items()}
        # flags are named by their values (`dmft.command.options.in_options`)
        with naming({name: one.name for name, some in first.items() for one in some if one.type is not bool}):
            return call(**values)

    def values(self, call: str, **made: Any) -> dict[str, Any]:
        """The arguments of a call that were typed; ValueError for several where it takes one."""
        found: dict[str, Any] = {}
        for name, argument in arguments(self.calls[call]).items():
            options = _options(name, argument, self.exceptions)
            values = [self.typed.get(option.name) for option in options]
            if all(value is None for value in values):
                continue
            if read := self.exceptions.get(name, Typed()).read:
                found[name] = read({**made, **found, name: argument.default}, *values)
            else:
                found[name] = self._value(call, options[0].name, argument, *values)
        return found

    def _value(self, call: str, name: str, argument: Argument, value: Any) -> Any:
        if argument.one is bool:
            return argument.default is not True
        if not isinstance(value, tuple) or (argument.several and not (argument.one and len(value) == 1)):
            return value
        if len(value) > 1:
            many = [other for other, one in arguments(self.calls[call]).items() if one.one and one.several]
            otherwise = f"; vary {as_typed(many)} instead" if many else ""
            raise ValueError(f"{as_typed([name])} takes one number with --{self.chooser} {call}{otherwise}.")
        return value[0]


def group(
    text: str,
    calls: Mapping[str, Call],
    *,
    chooser: str = "",
    exceptions: Mapping[str, Typed] | None = None,
    beside: Iterable[Option] = (),
    also: Iterable[Call] = (),
) -> type[Group]:
    """A group of options, a dataclass for tyro.

    Args:
        text: of its help.
        calls: what they are for, by name.
        chooser: the option that chooses among them, the first by default.
        exceptions: how arguments are typed whose types do not say it.
        beside: options before these that are no arguments.
        also: calls whose `Args` tell of arguments "as of" them.
    """
    held: dict[str, dict[str, Argument]] = {}
    for call, known in calls.items():
        for name, argument in arguments(known).items():
            held.setdefault(name, {})[call] = argument
    elsewhere = {name: one.text for call in also for name, one in arguments(call).items()}
    exceptions, owners = exceptions or {}, {}
    options = [*beside]
    if chooser:
        kinds = "; ".join(f"{name}: {_opening(call)}" for name, call in calls.items())
        hint = f"(default: {next(iter(calls))})"
        options.append(Option(chooser, str, "{" + ",".join([*calls, "MODULE:CLASS"]) + "}", f"{kinds}; {OWN}", hint))
    for name, of in held.items():
        told = next((one.text for one in of.values() if one.text), elsewhere.get(name, ""))
        merged = Argument(sum((one.types for one in of.values()), ()), next(iter(of.values())).default, told)
        for option in _options(name, merged, exceptions):
            owners[option.name] = list(of)
            told = re.sub(r"\bNone\b", "left out", option.text or "")  # which nobody types
            told = f"Of {', '.join(of)}: {told}" if chooser and len(of) < len(calls) else told[:1].upper() + told[1:]
            hint = _hint(of, len(calls)) if option.hint is None else option.hint
            options.append(option._replace(text=told, hint=hint))
    space = {"__doc__": text, "calls": calls, "chooser": chooser, "exceptions": exceptions, "owners": owners}
    space["kinds"] = {option.name: option.type for option in options}
    return dataclasses.make_dataclass("Options", map(_field, options), bases=(Group,), frozen=True, namespace=space)


def _options(name: str, argument: Argument, exceptions: Mapping[str, Typed]) -> tuple[Option, ...]:
    """Those which an argument is typed as."""
    usual = argument.option(name)
    if name not in exceptions:
        return (usual,) if usual.type else ()
    given = exceptions[name].options
    return tuple(Option(*(b if a is None else a for a, b in zip(one, usual, strict=True))) for one in given)


@contextmanager
def naming(options: Mapping[str, str]) -> Iterator[None]:
    """Errors that open with an argument say which option it is, by these names, if that has another one."""
    try:
        yield
    except (ValueError, TypeError) as error:
        name = str(error).partition("=")[0]
        if options.get(name, name) != name:
            error.args = (f"{error} (On the command line {name} is {as_typed([options[name]])}.)",)
        raise


def _field(option: Option) -> tuple[str, Any, Any]:
    """Text for tyro, which `_read` reads: of optional numbers it says what is wrong in words of its own types."""
    about = arg(metavar=option.metavar or None, help=option.text, help_behavior_hint=option.hint)
    if option.type is bool:
        return option.name, Annotated[bool, about], field(default=False)
    text = tuple[str, ...] if typing.get_origin(option.type) else str
    return option.name, Annotated[text | None, about], field(default=None)


def _read(name: str, kind: Any, text: Any) -> Any:
    """A value of a type, or a tuple of them, from text."""
    if isinstance(text, tuple):
        return tuple(_read(name, typing.get_args(kind)[0], one) for one in text)
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{as_typed([name])} {text!r} is not {what}.") from None


def _hint(of: Mapping[str, Argument], calls: int) -> str:
    """The default, or that there is none, of the calls that have an argument."""
    if required := [call for call, one in of.items() if one.default is MISSING]:
        return "(required)" if len(required) == calls else f"(required for {', '.join(required)})"
    calls_of: dict[str, list[str]] = {}
    for call, one in of.items():
        calls_of.setdefault(_shown(one.default), []).append(call)
    if len(calls_of) == 1:
        return f"(default: {value})" if (value := next(iter(calls_of))) else ""
    each = [f"{value} for {', '.join(names)}" for value, names in calls_of.items() if value]
    return f"(default: {'; '.join(each)})"


def _shown(default: Any) -> str:
    """A default as it is typed; empty if it is nothing that is."""
    if default is None or isinstance(default, bool) or default == ():
        return ""
    return f"{default:g}" if isinstance(default, float) else str(getattr(default, "name", default))


def _opening(call: Call) -> str:
    """What a docstring opens with, without asides in brackets; those of arguments, as in sign(G), stay."""
    opening = (_said(call) or call.__name__).split("\n\n")[0].split(": ")[0]
    return re.sub(r"\s+\([^()]*\)", "", " ".join(opening.split())).rstrip(".:")


def refuse(options: Iterable[str], context: str, otherwise: str) -> None:
    """ValueError if there are any of these options, which mean nothing in this context."""
    if given := list(options):
        what = "does not go" if len(given) == 1 else "do not go"
        raise ValueError(f"{as_typed(given)} {what} with {context}; leave it out, or {otherwise}.")


def as_typed(names: Iterable[str]) -> str:
    """Names of options as they are typed: "--depth, --n-train and --steps"."""
    *others, last = ["--" + name.replace("_", "-") for name in names]
    return f"{', '.join(others)} and {last}" if others else last
