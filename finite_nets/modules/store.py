"""Finished networks in a folder, a file each: training that was stopped goes on with those that are missing.

    STORE/<problem_id>-<digest of the settings>/settings.json
    STORE/<problem_id>-<digest of the settings>/width_<N>_seed_<s>.npz
    STORE/<problem_id>-<digest of the settings>/width_<N>_<digest of seeds>.pt   every minute, of those that train

A file is written under another name and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmft.errors import StoreError
from dmft.running.paths import local

Results = dict[str, NDArray[Any]]
EVERY = 60.0  # seconds between writings of networks under way


class Finished:
    """The networks of one run that are there; of none without a folder."""

    def __init__(self, store: str | os.PathLike[str] | None, problem_id: str, settings: Mapping[str, Any]) -> None:
        self._folder: Path | None = None
        if store is None:
            return
        text = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        self._folder = local(store, "store").absolute() / f"{problem_id}-{digest}"
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "settings.json").write_text(text)

    def read(self, width: int, seeds: Sequence[int]) -> dict[int, Results]:
        """Results of the networks of a width that are there, by seed.

        Raises:
            StoreError: a damaged file.
        """
        found: dict[int, Results] = {}
        for seed in seeds:
            path = self._path(width, seed)
            if path is None or not path.exists():
                continue
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    found[seed] = dict(arrays)
            except (OSError, ValueError, KeyError) as error:
                raise StoreError(f"{path} is damaged ({error}); remove it, and train again.") from error
        return found

    def write(self, width: int, seed: int, results: Results) -> None:
        """Keep a network."""
        path = self._path(width, seed)
        if path is None:
            return
        _put(path, lambda new: np.savez(new, **results))  # type: ignore[arg-type]  # names of arrays, no option of savez

    def under_way(self, width: int, seeds: Sequence[int]) -> UnderWay:
        """The state of networks that train together."""
        digest = hashlib.sha256(json.dumps(list(seeds)).encode()).hexdigest()[:8]
        return UnderWay(self._folder and self._folder / f"width_{width}_{digest}.pt")

    def _path(self, width: int, seed: int) -> Path | None:
        return self._folder and self._folder / f"width_{width}_seed_{seed}.npz"


class UnderWay:
    """The state of networks that train together, in a file from which training that was stopped goes on; none without
    a path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._written = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """What was written last.

        Raises:
            StoreError: a damaged file.
        """
        if self._path is None:
            return None
        try:
            found: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
            return found
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, EOFError, LookupError, pickle.UnpicklingError) as error:
            raise StoreError(f"{self._path} is damaged ({error}); remove it, and train again.") from error

    @property
    def due(self) -> bool:
        """Whether there is somewhere to write, and some time has passed."""
        return self._path is not None and time.monotonic() - self._written >= EVERY

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep this in the place of what was written before."""
        assert self._path is not None
        _put(self._path, lambda new: torch.save(dict(state), new))
        self._written = time.monotonic()

    def done(self) -> None:
        """Forget it: the networks are finished."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _put(path: Path, save: Callable[[Path], None]) -> None:
    """A file in the place of what was there, whole or not at all."""
    new = path.with_name(f".new-{uuid.uuid4().hex}{path.suffix}")
    try:
        save(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
