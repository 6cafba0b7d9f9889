"""What every comparison asks of what it is given: results of the right kind, of one problem, with the same labels.

Functions return the results that they have checked, with their attributes where they were taken out of a stack.
"""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from dmft import schema


def check_networks(nets: xr.Dataset, *, members: str | None = None) -> xr.Dataset:
    """`nets`, if it is an ensemble, or moments of one; SchemaError for others.

    `members` says what needs every network by itself; ValueError for moments then.
    """
    if isinstance(nets, xr.Dataset):
        nets = schema.restored(nets)
    moments = isinstance(nets, xr.Dataset) and nets.attrs.get("kind") == "moments"
    nets = schema.validate(nets, "moments" if moments else "ensemble")
    if moments and members is not None:
        raise ValueError(
            f"{members} needs every network, and these are moments of blocks of them; train with keep='members', or "
            "sweep and open the store with members=True."
        )
    return nets


def check_quantities(ds: xr.Dataset, what: str, names: Sequence[str]) -> None:
    """ValueError, with what is there, unless `ds` holds the variables `names`."""
    missing = [name for name in names if name not in ds]
    if missing:
        there = [str(name) for name in ds.data_vars if not str(name).endswith("_se")]
        raise ValueError(f"{what} has no {', '.join(missing)}, but {', '.join(there)}; name it in observables.")


def check_theory(theory: xr.Dataset, nets: xr.Dataset, quantities: Sequence[str]) -> xr.Dataset:
    """`theory`, if it is the limit of the problem of `nets`, with these quantities and the labels of `nets`.

    Raises:
        SchemaError, ValueError: for others.
    """
    theory = schema.validate(theory, "limit")
    schema.require_same_problem(theory=theory, networks=nets)
    check_quantities(theory, "the theory", quantities)
    schema.require_same_labels(theory=theory[list(quantities)], networks=nets)
    return theory


def check_fluctuations(fluctuations: xr.Dataset, nets: xr.Dataset) -> xr.Dataset:
    """The same of fluctuations."""
    fluctuations = schema.validate(fluctuations, "fluctuations")
    schema.require_same_problem(networks=nets, fluctuations=fluctuations)
    schema.require_same_labels(fluctuations=fluctuations, networks=nets)
    return fluctuations
