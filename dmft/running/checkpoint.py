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
from collections.abc import Mapping
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
        try:
            with zipfile.ZipFile(path):  # an archive: np.load would also take other files
                pass
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored)
            state = json.loads(str(arrays.pop("state")))
            theirs = state["fingerprint"]
        except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a checkpoint ({error}); give another path, or remove it.") from error
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
        moments = Moments(state["finished"])
        for name in state["moments"]:
            moments.mean[name], moments.squares[name] = arrays[f"mean/{name}"], arrays[f"squares/{name}"]
        self.estimates = Estimates(moments, state["capacity"], state["directions"])
        self._capacity, self._step = state["capacity"], state["step"]
        self._leaves = [arrays[f"leaf/{i}"] for i in range(state["leaves"])]

    def resumed(self, state: Any, capacity: int) -> tuple[Any, int]:
        """The state of the repetition under way and its step; `state` itself and 0 if none is stored for `capacity`."""
        if not self._leaves or capacity != self._capacity:
            return state, 0
        leaves, tree = jax.tree.flatten(state)
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
            "moments": sorted(moments.mean),
            "capacity": self._capacity,
            "step": self._step,
            "leaves": len(leaves),
        }
        arrays = {f"leaf/{i}": leaf for i, leaf in enumerate(leaves)}
        for name in moments.mean:
            arrays |= {f"mean/{name}": moments.mean[name], f"squares/{name}": moments.squares[name]}
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, state=np.array(json.dumps(state)), **arrays)
        self._written = time.monotonic()
        self._took = self._written - begun


def _plain(leaf: Any) -> Any:
    """Random keys have no place in a file; their data have."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _like(stored: Any, leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.wrap_key_data(stored, impl=str(jax.random.key_impl(leaf)))
    # numbers that promote nothing stay so: for others all would be compiled anew
    return stored.item() if leaf.weak_type and not leaf.ndim else stored


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))
