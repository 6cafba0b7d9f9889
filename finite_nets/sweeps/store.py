"""A store: a folder in the format Zarr version 3 with moments of ensembles, block by block, and members on request.

    STORE/                            attributes: format of the store, schema of results, version
    STORE/<problem_id>/               attributes: the problem, and the settings that all its networks share
    STORE/<problem_id>/task/          x_train, y_train, x_test, y_test
    STORE/<problem_id>/width_<N>/     attributes: the width, the size of a block
        count, diverged, <quantity>_mean, <quantity>_m2, prediction_comoment        (block, ...)
        member_<quantity>, member_diverged                                          (seed, ...)

Block b holds the networks with seed indices b size .. (b + 1) size - 1, all of them, and is a function of its address
alone: whoever computes it writes the same.  Every array keeps a block in one chunk, with a checksum; a chunk is written
to a temporary file that is then renamed.  The chunk of `count` comes last: a block is there once its count is.
Groups, too, are made under another name and renamed.  The length of an array is that of the sweep that was planned, and
grows when blocks beyond it are planned or written (`Store._declare`): so other readers of Zarr find fill values, nan
and a count of 0, where a block is not there yet, and nothing beyond.  A writer may be killed at any time, and any
number of writers may work side by side.

Nothing in a store is code: it is read as numbers and JSON, with the codecs that are named here and no others.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft import __version__, schema
from dmft.errors import DamagedBlockError, StoreError
from dmft.running.paths import local
from dmft.specs import Problem, Task
from dmft.specs.tasks.given import ARRAYS
from finite_nets.device.precision import precision
from finite_nets.device.random import MEMBER_BITS
from finite_nets.ensembles.recording import Plan
from finite_nets.sweeps.arrays import (
    UNFINISHED,
    attribute_of,
    attributes_of,
    create_array,
    create_group,
    created,
    first_axis,
    is_unfinished,
    last_chunk,
    make_whole,
    metadata_of,
    open_array,
    remove,
    write_whole,
    zarr_module,
)
from finite_nets.sweeps.settings import Settings

FORMAT = 1
KIND = "finite_nets.sweep"
COUNT = "count"


class Store:
    """A store on disk.

    Args:
        path: its folder.

    Raises:
        ImportError: Zarr is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        zarr_module()
        self.path = local(path, "store").absolute()
        self._opened: dict[Path, Any] = {}

    def prepare(self) -> None:
        """Make the store if there is none.

        Raises:
            StoreError: something else is there, or a store of another format.
            OSError: it cannot be written to.
        """
        if not self.exists():
            with self._explained("a store"):
                self.path.mkdir(parents=True, exist_ok=True)
                # somebody who makes it at the same time writes the same
                create_group(
                    self.path, {"kind": KIND, "format": FORMAT, "schema": schema.SCHEMA, "version": __version__}
                )
        self.check()
        with self._explained("the store"):
            probe = self.path / f"{UNFINISHED}{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()

    def exists(self) -> bool:
        """Whether something is there, a store or not.

        Raises:
            StoreError: a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"{self.path} is a file; a store is a folder.")
        return self.path.exists() and any(not is_unfinished(path) for path in self.path.iterdir())

    def check(self) -> None:
        """StoreError, FileNotFoundError unless this is a store that this version reads."""
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path} does not exist; expected a store written by finite_nets.sweep.")
        self.exists()  # a file is none
        attributes = attributes_of(self.path)
        for name, expected in (("kind", KIND), ("format", FORMAT), ("schema", schema.SCHEMA)):
            if attributes.get(name) != expected:
                raise StoreError(
                    f"{self.path} has {name} {attributes.get(name)!r}; this version reads {name} {expected!r}. Use the "
                    f"version that wrote it (it says {attributes.get('version')!r}; this is {__version__})."
                )

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Errors of writing, with what was being written."""
        try:
            yield
        except OSError as error:
            raise type(error)(
                error.errno,
                f"{what} cannot be written to {self.path} ({error.strerror}). What was there is kept; mend this and "
                "run the same sweep again: it goes on where it was",
            ) from error

    # ---- problems ----------------------------------------------------------------------------------------------------

    def has(self, problem_id: str) -> bool:
        return (self.path / problem_id).exists()

    def problem_ids(self) -> list[str]:
        self.check()
        return sorted(p.name for p in self.path.iterdir() if re.fullmatch(r"[0-9a-f]{16}", p.name))

    def problem(self, problem_id: str) -> Problem:
        """A problem of the store, with its data.

        Raises:
            StoreError: one that this version does not read, or damaged.
        """
        group = self.path / problem_id
        try:
            described = json.loads(attribute_of(group, "problem", str))
            shapes = described["task"]["shapes"]
            arrays = {name: np.asarray(open_array(group / "task" / name)[...]) for name in ARRAYS if name in shapes}
            task = Task(**arrays, provenance=described["task"]["provenance"])
            found = Problem.from_json(json.dumps(described), task=task)
        except StoreError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise StoreError(f"{group} does not hold a problem that this version reads: {error}") from error
        if found.problem_id != problem_id:
            raise StoreError(f"{group} holds the problem {found.problem_id}; the store is damaged.")
        return found

    def settings(self, problem_id: str) -> Settings:
        content = attribute_of(self.path / problem_id, "settings", dict)
        try:
            return Settings.from_json(content)
        except TypeError as error:
            raise StoreError(f"{self.path / problem_id} has settings unknown to this version: {error}") from error

    def add_problem(self, problem: Problem, settings: Settings) -> None:
        """Make room for a problem.

        Raises:
            StoreError: the store has it with other settings; the message names the differences.
        """
        group = self.path / problem.problem_id

        def fill(new: Path) -> None:
            create_group(new, {"problem": problem.to_json(arrays=False), "settings": settings.as_json(), **created()})
            create_group(new / "task", {})
            for name, values in problem.task.arrays.items():
                dims = [f"{name[2:]}_sample", "input" if name.startswith("x") else "output"]
                array = create_array(new / "task" / name, values.shape, values.shape, "float64", dims)
                array[...] = values

        if not group.exists():
            with self._explained("a problem"):
                make_whole(group, fill)
        self.require_settings(problem.problem_id, settings)

    def require_settings(self, problem_id: str, settings: Settings) -> None:
        """StoreError that names the differences, if the store has other settings for a problem."""
        ours, theirs = (one.as_json() for one in (settings, self.settings(problem_id)))
        differences = [f"{name}={theirs[name]!r}, not {ours[name]!r}" for name in ours if ours[name] != theirs[name]]
        if differences:
            raise StoreError(
                f"{self.path} holds the problem {problem_id} with {'; '.join(differences)}. Networks of one store are "
                "alike: ask for the same, or use another store."
            )

    # ---- widths ------------------------------------------------------------------------------------------------------

    def widths(self, problem_id: str) -> list[int]:
        names = (re.fullmatch(r"width_(\d+)", p.name) for p in (self.path / problem_id).iterdir())
        return sorted(int(name[1]) for name in names if name)

    def block_size(self, problem_id: str, width: int) -> int | None:
        """How many networks a block has; None if the width is not there."""
        group = self._width(problem_id, width)
        return _block(group) if group.exists() else None

    def add_width(self, plan: Plan, settings: Settings, width: int, block: int, blocks: int, device: str) -> None:
        """Make room for so many blocks of networks of a width.

        Raises:
            StoreError: the store has them in blocks of another size.
        """
        problem_id = plan.problem.problem_id
        group = self._width(problem_id, width)

        def fill(new: Path) -> None:
            create_group(new, {"width": width, "block": block, "device": device, "version": __version__, **created()})
            for name, dims in self.block_arrays(plan, settings).items():
                shape = tuple(plan.size(dim) for dim in dims[1:])
                dtype = "int64" if name in (COUNT, "diverged") else "float64"
                create_array(new / name, (blocks, *shape), (1, *shape), dtype, dims)
            for name, (dtype, dims) in self.member_arrays(plan, settings).items():
                shape = tuple(plan.size(dim) for dim in dims[1:])
                create_array(new / name, (blocks * block, *shape), (block, *shape), dtype, dims)

        if not group.exists():
            with self._explained(f"width {width}"):
                make_whole(group, fill)
        self.require_block(problem_id, width, block)
        with self._explained(f"width {width}"):
            for name in (*self.block_arrays(plan, settings), *self.member_arrays(plan, settings)):
                self._declare(group / name, blocks, former=2**MEMBER_BITS // block)

    def require_block(self, problem_id: str, width: int, block: int) -> None:
        """StoreError if the store has a width in blocks of another size."""
        if (found := self.block_size(problem_id, width)) not in (None, block):
            raise StoreError(
                f"{self.path} holds width {width} in blocks of {found} networks, not {block}; leave block out, or use "
                "another store."
            )

    @staticmethod
    def block_arrays(plan: Plan, settings: Settings) -> dict[str, tuple[str, ...]]:
        """Dimensions of the arrays over blocks, by name; `count` last."""
        names = [f"{quantity}_{kind}" for quantity in plan.quantities for kind in schema.MOMENTS]
        names += ["prediction_comoment"] if settings.covariance else []
        outputs = bool(plan.problem.task.outputs)
        return {name: schema.dims("moments", name, outputs=outputs)[1:] for name in [*names, "diverged", COUNT]}

    @staticmethod
    def member_arrays(plan: Plan, settings: Settings) -> dict[str, tuple[str, tuple[str, ...]]]:
        """dtype and dimensions of the arrays over members, by name."""
        if not settings.members:
            return {}
        outputs = bool(plan.problem.task.outputs)
        found = {}
        for name in (*plan.quantities, "diverged"):
            dtype = "bool" if name == "diverged" else plan.dtype_of(name, precision(settings.dtype).results)
            found[f"member_{name}"] = (dtype, schema.dims("ensemble", name, outputs=outputs)[1:])
        return found

    def finished(self, problem_id: str, width: int) -> set[int]:
        """The blocks that are there."""
        folder = self._width(problem_id, width) / COUNT / "c"
        if not folder.exists():
            return set()
        return {int(name) for name in os.listdir(folder) if name.isdigit()}

    def has_block(self, problem_id: str, width: int, block: int) -> bool:
        return (self._width(problem_id, width) / COUNT / "c" / str(block)).exists()

    def write(self, problem_id: str, width: int, block: int, size: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """A block: its arrays, without the axis of blocks, and those of its members.

        Raises:
            OSError: what cannot be written, and that what was there is kept.
        """
        group = self._width(problem_id, width)
        with self._explained(f"block {block} of width {width}"):
            for name in sorted(arrays, key=lambda name: name == COUNT):
                rows = size if name.startswith("member_") else 1
                array = self._array(group / name, block + 1)
                array[block * rows : (block + 1) * rows] = arrays[name].reshape(rows, *array.shape[1:])
                self._declare(group / name, block + 1)

    def read(self, problem_id: str, width: int, name: str, blocks: Sequence[int]) -> NDArray[Any]:
        """An array of a width, (block, ...) of the given blocks, in their order.

        Raises:
            DamagedBlockError: a chunk is missing or does not agree with its checksum, with the block.
            StoreError: the array itself is damaged.
            OSError: the disk says so; the block may be whole.
        """
        group = self._width(problem_id, width)
        array = self._array(group / name, 1 + max(blocks, default=-1))
        of_members = name.startswith("member_")
        size = _block(group) if of_members else 1
        inside = ["0"] * (array.ndim - 1)
        for block in blocks:
            if not group.joinpath(name, "c", str(block), *inside).is_file():
                # Zarr would take it for one of fill values
                raise self._damaged(group, name, block, "there is no such chunk.")
        found = []
        for first, count in _runs(blocks):
            try:
                found.append(array[first * size : (first + count) * size])
            except (ValueError, RuntimeError) as error:
                if count == 1:
                    raise self._damaged(group, name, first, str(error)) from error
                found += [self.read(problem_id, width, name, [block])[0] for block in range(first, first + count)]
        whole = np.concatenate(found) if found else np.empty((0, *array.shape[1:]), array.dtype)
        return whole.reshape(len(blocks), size, *array.shape[1:]) if of_members else whole

    def _damaged(self, group: Path, name: str, block: int, why: str) -> DamagedBlockError:
        return DamagedBlockError(
            f"block {block} of {name} in {group} is damaged: {why} `python -m finite_nets check {self.path} --repair` "
            "takes it out; the same sweep makes it again."
        )

    def remove(self, problem_id: str, width: int, block: int) -> None:
        """Forget a block: its count goes first."""
        group = self._width(problem_id, width)
        chunks = [path / "c" / str(block) for path in group.iterdir() if path.is_dir()]
        for chunk in sorted(chunks, key=lambda chunk: chunk.parents[1].name != COUNT):
            remove(chunk)

    def device(self, problem_id: str, width: int) -> str:
        """On which a width was begun."""
        return attribute_of(self._width(problem_id, width), "device", str)

    def leftovers(self) -> list[Path]:
        """Unfinished files and groups that killed writers have left, older than a day."""
        found = []
        for path in [path for path in self.path.rglob("*") if is_unfinished(path)]:
            with suppress(FileNotFoundError):  # finished meanwhile
                if path.stat().st_mtime < time.time() - 86_400:
                    found.append(path)
        return found

    def _array(self, path: Path, blocks: int = 0) -> Any:
        """An array of a width, long enough for so many blocks: its other metadata do not change."""
        while path not in self._opened or self._opened[path].shape[0] < blocks * self._opened[path].chunks[0]:
            self._declare(path, blocks)
            self._opened[path] = open_array(path)
        return self._opened[path]

    @staticmethod
    def _declare(path: Path, blocks: int, former: int = 0) -> None:
        """Let an array of a width be long enough for so many blocks.

        Of writers that do this at once, the last may have decided without knowing of the others.  So whoever wrote
        looks again, at the chunks, and whoever has written a chunk comes here afterwards: no block that is there is
        left out.  An array of a `former` version, with room for all seed indices that there are, is cut to what it
        holds.
        """
        chunk, length = first_axis(path)
        if blocks <= length and not length == former > blocks:
            return
        length = 0 if length == former else length
        while length < (blocks := max(blocks, 1 + last_chunk(path))):
            content = metadata_of(path)
            content["shape"][0] = blocks * chunk
            if content["data_type"] == "int64":
                content["fill_value"] = 0  # once -1
            write_whole(path / "zarr.json", json.dumps(content, indent=2))
            _, length = first_axis(path)

    def _width(self, problem_id: str, width: int) -> Path:
        return self.path / problem_id / f"width_{width}"


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and number of consecutive blocks."""
    runs = np.split(np.asarray(blocks), np.flatnonzero(np.diff(blocks) != 1) + 1)
    return ((int(run[0]), len(run)) for run in runs if len(run))


def _block(group: Path) -> int:
    """How many networks a block of a width has."""
    size = attribute_of(group, "block", int)
    if size < 1:
        raise StoreError(f"{group} is damaged: its block is {size}.")
    return size
