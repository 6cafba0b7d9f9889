"""The state of a long computation in a file, from which a killed one goes on.

The file is written atomically and belongs to one computation: its fingerprint names the problem and every setting that
the numbers depend on.  The arrays are those of the memory, bit for bit, so that what is resumed equals what was never
interrupted.
"""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmft.running.estimates import Estimates
from dmft.running.moments import Moments
from dmft.running.paths import local, replacing

EVERY = 60.0  # seconds between writings
SHARE = 0.1  # of the time, that writings may take
# what reading raises of a file that is damaged: NumPy, the archive, JSON, and what is made of it here
DAMAGED = (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, zipfile.BadZipFile)


class Checkpoint:
    """The file of a computation: what its finished repetitions have found, and the state of the one under way.

    estimates: of the finished repetitions, as the file has them; what is added to them is written.

    Args:
        path: of the file.
        fingerprint: what the computation is, as JSON-like values.
        every: least number of seconds between writings.

    Raises:
        ValueError: the file belongs to another computation (the differences are named), or is not a checkpoint; it
            cannot be written.
    """

    def __init__(self, path: str | Path, fingerprint: Mapping[str, Any], every: float = EVERY) -> None:
        self.path = local(path, "checkpoint")
        self.fingerprint = json.loads(json.dumps(dict(fingerprint)))
        self.every, self._written, self._took = every, time.monotonic(), 0.0
        self.estimates = Estimates()
        self._capacity: int | None = None  # of the repetition under way
        self._step, self._leaves = 0, list[Any]()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path.parent, os.W_OK):
            raise ValueError(f"checkpoint={str(path)!r}: its folder cannot be written; give another path.")
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        path = self.path
        with self._read_well():
            with zipfile.ZipFile(path):  # an archive: np.load would also take other files
                pass
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored)
            state = json.loads(str(arrays.pop("state")))
            theirs = {**state["fingerprint"]}
        ours = self.fingerprint
        differences = [
            f"{key}: {theirs.get(key)} there, {ours.get(key)} here"
            for key in sorted({*ours, *theirs})
            if ours.get(key) != theirs.get(key)
        ]
        if differences:
            raise ValueError(
                f"the checkpoint {path} is of another computation ({'; '.join(differences)}); give another path, or "
                "remove it."
            )
        with self._read_well():
            moments = Moments(index(state["finished"]))
            for name in state["moments"]:
                mean, squares = f"mean/{name}", f"squares/{name}"
                moments.mean[name], moments.squares[name] = arrays[mean], arrays[squares]
                for entry in (mean, squares):
                    _require(entry, arrays[entry], arrays[mean].shape, np.float64)
            self._capacity, self._step = index(state["capacity"]), index(state["step"])
            self.estimates = Estimates(moments, self._capacity, index(state["directions"]))
            self._leaves = [arrays[_leaf(i)] for i in range(state["leaves"])]

    @contextmanager
    def _read_well(self) -> Iterator[None]:
        """Whatever is wrong with the file as one error."""
        try:
            yield
        except DAMAGED as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else str(error) or repr(error)
            raise ValueError(f"{self.path} is not a checkpoint ({what}); give another path, or remove it.") from error

    def resumed(self, state: Any, capacity: int) -> tuple[Any, int]:
        """The state of the repetition under way and its step; `state` itself and 0 if none is stored for `capacity`.

        Raises:
            ValueError: what is stored has not the shapes and types of `state`.
        """
        if not self._leaves or capacity != self._capacity:
            return state, 0
        leaves, tree = jax.tree.flatten(state)
        with self._read_well():
            if len(self._leaves) != len(leaves):
                raise ValueError(f"it has {len(self._leaves)} arrays of a state, expected {len(leaves)}")
            for i, (new, old) in enumerate(zip(self._leaves, leaves, strict=True)):
                _require(_leaf(i), new, _bare(old).shape, _bare(old).dtype)
        restored = [
            jax.device_put(_like(new, old), old.sharding) for new, old in zip(self._leaves, leaves, strict=True)
        ]
        self._leaves = []
        return jax.tree.unflatten(tree, restored), self._step

    def reached(self, state: Any, capacity: int, step: int) -> None:
        """The repetition under way has come to `step`; written if the last time is long ago."""
        if time.monotonic() - self._written >= (self.every and max(self.every, self._took / SHARE)):
            self._capacity, self._step = capacity, step
            self._write([_plain(leaf) for leaf in jax.tree.leaves(state)])

    def finished(self) -> None:
        """A repetition has ended, and is among the estimates."""
        self._capacity, self._step = self.estimates.capacity, 0
        self._write([])

    def remove(self) -> None:
        """The computation is complete."""
        self.path.unlink(missing_ok=True)

    def _write(self, leaves: list[Any]) -> None:
        begun = time.monotonic()
        moments = self.estimates.moments
        state = {
            "fingerprint": self.fingerprint,
            "finished": moments.count,
            "directions": self.estimates.directions,
            "moments": list(moments.mean),
            "capacity": self._capacity,
            "step": self._step,
            "leaves": len(leaves),
        }
        arrays = {_leaf(i): leaf for i, leaf in enumerate(leaves)}
        for name in moments.mean:
            arrays |= {f"mean/{name}": moments.mean[name], f"squares/{name}": moments.squares[name]}
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, state=np.array(json.dumps(state)), **arrays)
        self._written = time.monotonic()
        self._took = self._written - begun


def _leaf(i: int) -> str:
    """The name of an array of the state."""
    return f"leaf/{i}"


def _require(name: str, found: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """ValueError where an array that was read is not what there is room for."""
    if found.shape != shape or found.dtype != dtype:
        raise ValueError(f"{name} is {found.dtype} {found.shape}, expected {np.dtype(dtype)} {shape}")


def _plain(leaf: Any) -> Any:
    return np.asarray(_bare(leaf))


def _bare(leaf: Any) -> Any:
    """Random keys have no place in a file; their data have."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(stored: Any, leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.wrap_key_data(stored, impl=str(jax.random.key_impl(leaf)))
    # numbers that promote nothing stay so: for others all would be compiled anew
    return stored.item() if leaf.weak_type and not leaf.ndim else stored


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))
