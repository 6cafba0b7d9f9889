"""`open_store`: what a store holds so far, as a Dataset; `check_store`: whether it is whole."""

from __future__ import annotations

import functools
import math
import os
import warnings
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.errors import DamagedBlockError, StoreError
from dmft.running import memory
from dmft.running.host import usual_errors
from dmft.specs import Problem
from dmft.specs.variations import differences
from finite_nets.ensembles.recording import Plan
from finite_nets.ensembles.runner import indices
from finite_nets.sweeps.arrays import remove
from finite_nets.sweeps.settings import Settings
from finite_nets.sweeps.store import COUNT, Store


@usual_errors
def open_store(
    path: str | os.PathLike[str], *, problem: Problem | str | None = None, members: bool = False
) -> xr.Dataset:
    """The results of a sweep so far.

    Args:
        path: the store.
        problem: of which problem, itself or its problem_id; may be left out where the store has one.
        members: the networks themselves, if the sweep kept them, rather than moments.

    Returns:
        Dataset (`dmft.schema`) of kind "moments" with leading dimensions width and block (count 0 where a block is not
        there yet), or of kind "ensemble" with width and seed (of the seeds that all widths have).

    Raises:
        FileNotFoundError: there is no store.
        StoreError: it is of another kind or version, damaged, has not that problem, or nothing yet; the message names
            the difference.
        MemoryEstimateError: the results do not fit.

    Example:
        >>> finite_nets.open_store(store, problem=problem)["prediction_mean"].sizes["width"]
        1
    """
    store = Store(path)
    problem_id = _problem_id(store, problem)
    found, settings = store.problem(problem_id), store.settings(problem_id)
    if members and not settings.members:
        raise StoreError(f"{path} does not keep members; sweep with members=True into a new store, or read moments.")
    finished = {width: sorted(store.finished(problem_id, width)) for width in store.widths(problem_id)}
    finished = {width: blocks for width, blocks in finished.items() if blocks}
    if not finished:
        raise StoreError(f"{path} holds no finished block of the problem {problem_id} yet.")
    plan = settings.plan(found)
    opened = (_ensemble if members else _moments)(store, plan, settings, finished)
    _warn_of_divergence(opened)
    return opened


def problems(path: str | os.PathLike[str]) -> dict[str, Problem]:
    """The problems of a store, with their data, by problem_id.

    Args:
        path: the folder of the store.

    Example:
        >>> list(finite_nets.problems(store)) == [problem.problem_id]
        True
    """
    store = Store(path)
    return {problem_id: store.problem(problem_id) for problem_id in store.problem_ids()}


def _problem_id(store: Store, problem: Problem | str | None) -> str:
    known = store.problem_ids()
    wanted = problem.problem_id if isinstance(problem, Problem) else problem
    if wanted is None and len(known) == 1:
        return known[0]
    if wanted is not None and wanted in known:
        return wanted
    there = [store.problem(problem_id) for problem_id in known]
    described = "\n".join(f"  {problem_id}  {text}".rstrip() for problem_id, text in differences(there).items())
    if not known:
        raise StoreError(f"{store.path} holds no problem yet.")
    if wanted is None:
        raise StoreError(f"{store.path} holds {len(known)} problems; give problem=, one of\n{described}")
    message = f"{store.path} does not hold the problem {wanted}; it holds\n{described}"
    if isinstance(problem, Problem):
        text = differences([there[0], problem])
        message += f"\nThe first has {text[there[0].problem_id]}, the one asked for {text[problem.problem_id]}"
    raise StoreError(message)


def _moments(store: Store, plan: Plan, settings: Settings, finished: dict[int, list[int]]) -> xr.Dataset:
    last = 1 + max(blocks[-1] for blocks in finished.values())
    arrays = store.block_arrays(plan, settings)
    shapes = {name: (len(finished), last, *(plan.size(dim) for dim in dims[1:])) for name, dims in arrays.items()}
    _require_memory({name: (shape, 8) for name, shape in shapes.items()})
    values: dict[str, NDArray[Any]] = {
        name: np.zeros(shape, np.int64) if name in (COUNT, "diverged") else np.full(shape, np.nan)
        for name, shape in shapes.items()
    }
    for i, (width, blocks) in enumerate(finished.items()):
        for name in arrays:
            values[name][i, blocks] = store.read(plan.problem.problem_id, width, name, blocks)
    return _dataset("moments", store, plan, settings, values, list(finished), {"block": np.arange(last)})


def _ensemble(store: Store, plan: Plan, settings: Settings, finished: dict[int, list[int]]) -> xr.Dataset:
    problem_id = plan.problem.problem_id
    sizes = {width: store.block_size(problem_id, width) for width in finished}
    seeds = {
        width: np.concatenate([indices(range(block * size, (block + 1) * size)) for block in finished[width]])
        for width, size in sizes.items()
        if size is not None
    }
    common = functools.reduce(np.intersect1d, seeds.values())
    if not len(common):
        raise StoreError(f"{store.path} has no seeds that all of its widths {list(finished)} have; finish the sweep.")
    arrays = store.member_arrays(plan, settings)
    shapes = {
        name: (len(finished), len(common), *(plan.size(dim) for dim in dims[1:])) for name, (_, dims) in arrays.items()
    }
    _require_memory({name: (shape, np.dtype(arrays[name][0]).itemsize) for name, shape in shapes.items()})
    values: dict[str, NDArray[Any]] = {
        name.removeprefix("member_"): np.empty(shape, arrays[name][0]) for name, shape in shapes.items()
    }
    for i, (width, blocks) in enumerate(finished.items()):
        size = sizes[width]
        assert size is not None
        needed = [block for block in blocks if np.isin(np.arange(block * size, (block + 1) * size), common).any()]
        there = np.isin(np.concatenate([indices(range(b * size, (b + 1) * size)) for b in needed]), common)
        for name in arrays:
            each = store.read(problem_id, width, name, needed)
            values[name.removeprefix("member_")][i] = each.reshape(-1, *each.shape[2:])[there]
    if not values["diverged"].any():
        del values["diverged"]
    return _dataset("ensemble", store, plan, settings, values, list(finished), {"seed": common})


def _warn_of_divergence(opened: xr.Dataset) -> None:
    """Where networks are missing because they diverged."""
    if not opened.attrs["diverged"]:
        return
    by_width = opened["diverged"].values.sum(axis=1)
    rows = [f"{bad} of width {width}" for width, bad in zip(opened["width"].values, by_width, strict=True) if bad]
    warnings.warn(
        f"networks diverged and do not count: {', '.join(rows)}. Results say nothing of these.",
        stacklevel=4,
    )


def _require_memory(shapes: dict[str, tuple[tuple[int, ...], int]]) -> None:
    memory.require(
        2 * sum(math.prod(shape) * itemsize for shape, itemsize in shapes.values()),
        limit=None,
        available=memory.available_on_host(),
        what="the results of the store",
        ways_out="read moments rather than members, or record fewer steps",
    )


def _dataset(
    kind: str,
    store: Store,
    plan: Plan,
    settings: Settings,
    values: dict[str, NDArray[Any]],
    widths: list[int],
    coords: dict[str, Any],
) -> xr.Dataset:
    problem_id = plan.problem.problem_id
    sizes = [store.block_size(problem_id, width) for width in widths]
    return schema.build(
        kind,
        plan.problem,
        values,
        steps=plan.steps,
        coords={"width": np.array(widths), "block_size": ("width", sizes), **coords},
        attrs={
            "seed": settings.seed,
            "dtype": settings.dtype,
            "device": ", ".join(sorted({store.device(problem_id, width) for width in widths})),
            "producer": "finite_nets.sweep",
            "store": str(store.path),
            "diverged": int(values["diverged"].sum()) if "diverged" in values else 0,
        },
    )


def check_store(path: str | os.PathLike[str], *, repair: bool = False) -> list[str]:
    """Read all data of a store against their checksums.

    Args:
        path: the folder of the store.
        repair: take damaged blocks out, so that the next sweep makes them again, and remove what killed writers have
            left unfinished for more than a day.  What else is damaged (descriptions, a task) is named and stays.

    Returns:
        What is wrong, a line each; nothing for a store that is whole.

    Raises:
        FileNotFoundError, StoreError: no store that this version reads.
        OSError: the disk cannot be read; nothing is concluded from that.

    Example:
        >>> finite_nets.check_store(store)  # nothing is wrong
        []
    """
    store = Store(path)
    found: list[str] = []
    for problem_id in store.problem_ids():
        try:
            settings = store.settings(problem_id)
            plan = settings.plan(store.problem(problem_id))
            for width in store.widths(problem_id):
                found += _check_width(store, plan, settings, width, repair=repair)
        except StoreError as error:
            found.append(f"{error} (no repair: move its folder away, and sweep again)")
    for left in store.leftovers():
        found.append(f"{left} was left by a writer that was killed")
        if repair:
            remove(left)
    return found


def _check_width(store: Store, plan: Plan, settings: Settings, width: int, *, repair: bool) -> list[str]:
    """What is wrong with the finished blocks of a width; StoreError if its arrays cannot be opened."""
    problem_id, found = plan.problem.problem_id, []
    names = [*store.block_arrays(plan, settings), *store.member_arrays(plan, settings)]
    for block in sorted(store.finished(problem_id, width)):
        try:
            for name in names:
                store.read(problem_id, width, name, [block])
        except DamagedBlockError as error:
            found.append(str(error))
            if repair:
                store.remove(problem_id, width, block)
    return found
