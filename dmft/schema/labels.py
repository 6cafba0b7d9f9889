"""What every variable and coordinate is called: the attributes long_name and units (`dmft.schema.words`)."""

from __future__ import annotations

import xarray as xr

from dmft.schema.registry import quantities
from dmft.schema.words import QUANTITIES, UNITS, in_words


def long_name(name: str) -> str | None:
    """A variable or coordinate in words; None for a name that is none of this library's."""
    return in_words(name, _words())


def _words() -> dict[str, str]:
    return QUANTITIES | {key: quantity.long_name for key, quantity in quantities().items()}


def units(name: str) -> str:
    """In the terms of UDUNITS."""
    name, found = name.removesuffix("_se"), quantities()
    return found[name].units if name in found else UNITS.get(name, "1")


def labelled(ds: xr.Dataset) -> xr.Dataset:
    """`ds` with the long name and the units of each of its variables and coordinates."""
    ds, words = ds.copy(), _words()
    for name, variable in ds.variables.items():
        found = in_words(str(name), words)
        if found is not None:
            variable.attrs = variable.attrs | {"long_name": found, "units": units(str(name))}
    return ds
