"""What every comparison asks of what it is given: results of the right kind, of one problem, with the same labels."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from dmft import schema
from dmft.errors import SchemaError


def check_networks(nets: xr.Dataset, *, members: str | None = None) -> None:
    """SchemaError unless `nets` is an ensemble, or moments of one.

    `members` says what needs every network by itself; ValueError for moments then.
    """
    moments = isinstance(nets, xr.Dataset) and nets.attrs.get("kind") == "moments"
    schema.validate(nets, "moments" if moments else "ensemble")
    if moments and members is not None:
        raise ValueError(
            f"{members} needs every network, and these are moments of blocks of them; train with keep='members', or "
            "sweep and open the store with members=True."
        )


def check_quantities(ds: xr.Dataset, what: str, names: Sequence[str]) -> None:
    """ValueError, with what is there, unless `ds` holds the variables `names`."""
    missing = [name for name in names if name not in ds]
    if missing:
        there = [str(name) for name in ds.data_vars if not str(name).endswith("_se")]
        raise ValueError(f"{what} has no {', '.join(missing)}, but {', '.join(there)}; name it in observables.")


def check_theory(theory: xr.Dataset, nets: xr.Dataset, quantities: Sequence[str]) -> None:
    """SchemaError or ValueError unless `theory` is the limit of the problem of `nets`, with these quantities and the
    labels of `nets`."""
    schema.validate(theory, "limit")
    schema.require_same_problem(theory=theory, networks=nets)
    check_quantities(theory, "the theory", quantities)
    require_same_labels("theory", theory[list(quantities)], nets)


def check_fluctuations(fluctuations: xr.Dataset, nets: xr.Dataset) -> None:
    """The same of fluctuations."""
    schema.validate(fluctuations, "fluctuations")
    schema.require_same_problem(networks=nets, fluctuations=fluctuations)
    require_same_labels("fluctuations", fluctuations, nets)


def require_same_labels(what: str, ours: xr.Dataset, nets: xr.Dataset) -> None:
    """ValueError for other steps, SchemaError for other labels of another dimension."""
    try:
        xr.align(ours, nets, join="exact", exclude={"width", "seed", "block"})
    except ValueError as error:
        if not ours["step"].equals(nets["step"]):
            raise ValueError(
                f"{what} has {ours.sizes['step']} steps and the networks {nets.sizes['step']}, not the same; "
                f"select common ones first, e.g. {what}.sel(step=nets.step)."
            ) from error
        raise SchemaError(f"{what} and networks are labelled differently: {error}") from error
