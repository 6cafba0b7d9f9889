"""What a figure draws, and where it comes from: one rule for results at hand, for folders of results, and for errors.

Every figure draws one Dataset of one kind, which follows from results of one problem.  `figure` takes that Dataset, or
the results in any order; `python -m figures NAME --store FOLDER` finds either in a folder of files (`LAYOUT`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

import dmft
from dmft.schema.sources import SOURCES, kind_of, source_of

LAYOUT = "\n".join(
    [
        *(
            f"    {f'{name}.nc':<19}{' or '.join(source.kinds)}, e.g. of {source.call}"
            for name, source in SOURCES.items()
        ),
        "    ANALYSIS.nc        what a function of comparisons made of them; what is not there is made",
        "    NAME.nc            what the figure NAME draws, before all others",
    ]
)


@dataclass(frozen=True)
class Needs:
    """What one figure draws.

    Args:
        figure: its name.
        kind: of the Dataset: of `dmft.schema`, the name of an analysis of `comparisons`, or that of the figure.
        call: that makes the Dataset.
        variables: that it must have.
        one_of: of these, at least one.
        make: the Dataset, of the results `sources` and, None where they are not given, `optional`.
    """

    figure: str
    kind: str
    call: str
    variables: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    make: Callable[..., xr.Dataset] | None = None
    sources: tuple[str, ...] = ("theory", "networks")
    optional: tuple[str, ...] = ()

    def take(self, *results: xr.Dataset) -> xr.Dataset:
        """The Dataset that is drawn, widths ascending: the only result, or made of several in any order.

        Raises:
            TypeError: not Datasets.
            ValueError: results of other kinds, or without what is drawn.
        """
        for result in results:
            if not isinstance(result, xr.Dataset):
                raise TypeError(f"{self.figure} draws Datasets, got {type(result).__name__}. {self._way()}")
        if len(results) == 1 and kind_of(results[0]) in (self.kind, ""):  # numbers drawn before have no kind
            ds = results[0]
        else:
            given = self._by_source(results)
            missing = [source for source in self.sources if source not in given]
            if self.make is None or missing:
                got = ", ".join(kind_of(result) or "no kind" for result in results) or "nothing"
                raise ValueError(f"{self.figure} cannot be drawn of what it got ({got}). {self._way()}")
            ds = self.make(*(given.get(source) for source in (*self.sources, *self.optional)))
        self._check(ds)
        return ds.sortby("width") if "width" in ds.dims else ds

    def stored(self, store: Path) -> xr.Dataset:
        """The same, of the folder `store`.

        Raises:
            FileNotFoundError: no such folder, or nothing in it that the figure is made of.
            ValueError: as `take`, of each file that was looked at.
        """
        if not store.is_dir():
            raise FileNotFoundError(f"{store} is not a folder; expected one with results that dmft.save wrote.")
        reasons = []
        for name in dict.fromkeys((self.figure, self.kind, "fluctuations")):  # the last has held comparisons, too
            path = store / f"{name}.nc"
            if not path.is_file():
                continue
            if (kind := kind_of(ds := dmft.load(path))) in (self.kind, ""):
                try:
                    return self.take(ds)
                except ValueError as error:
                    reasons.append(f"{path.name}: {error}")
            elif name in (self.figure, self.kind):
                reasons.append(f"{path.name} is of kind {kind!r}, and {self.figure} draws {self.kind!r}. {self._way()}")
        paths = {source: store / f"{source}.nc" for source in (*self.sources, *self.optional)}
        if self.make and all(paths[source].is_file() for source in self.sources):
            loaded = {source: dmft.load(path) for source, path in paths.items() if path.is_file()}
            return self.take(*(ds for source, ds in loaded.items() if source_of(ds) == source))
        if reasons:
            raise ValueError(" ".join(reasons))
        own = " or ".join(f"{name}.nc" for name in dict.fromkeys((self.figure, self.kind)))
        made = f", nor {' and '.join(f'{source}.nc' for source in self.sources)} to make it of" if self.make else ""
        raise FileNotFoundError(f"{store} has no {own}{made}. {self._way()}")

    def _by_source(self, results: tuple[xr.Dataset, ...]) -> dict[str, xr.Dataset]:
        found: dict[str, xr.Dataset] = {}
        for result in results:
            source = source_of(result)
            if source is None or source in found:
                what = f"several {source}" if source else f"a result of kind {kind_of(result)!r}"
                raise ValueError(f"{self.figure} cannot be drawn of {what}. {self._way()}")
            found[source] = result
        return found

    def _check(self, ds: xr.Dataset) -> None:
        missing = [name for name in self.variables if name not in ds]
        if self.one_of and not any(name in ds for name in self.one_of):
            missing.append(" or ".join(self.one_of))
        if missing:
            raise ValueError(
                f"{self.figure} shows {', '.join(missing)}, which these results lack; what a result records is named "
                f"in observables=[...]. {self._way()}"
            )

    def _way(self) -> str:
        """How to come to what is drawn."""
        if self.make is None:
            return f"Give what {self.call} returns."
        made = ", ".join(f"{source} ({SOURCES[source].call})" for source in self.sources)
        more = "".join(f", and {source} ({SOURCES[source].call}) where there are any" for source in self.optional)
        return f"Give what {self.call} returns, or {made}{more}."
