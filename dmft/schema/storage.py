"""Results in NetCDF files, written atomically."""

from __future__ import annotations

import hashlib
from pathlib import Path

import xarray as xr

from dmft import schema
from dmft.errors import SchemaError
from dmft.running.paths import local, replacing

SEALED = "sealed"  # attribute of files that have a digest; no attribute of what is read from them
MARK, DIGITS = b"\nsha256 of this file up to here: ", 64
CHANGED = (
    "is not as dmft.save wrote it: it is damaged, or another program changed it. Make it again; xarray.open_dataset "
    "reads what there is."
)


def save(ds: xr.Dataset, path: str | Path) -> Path:
    """Write `ds` to the NetCDF file `path`; it appears whole or not at all.

    Results are checked as `load` checks them.  The file ends with its digest.

    Args:
        ds: a result of this library.
        path: the file; its folder is made if it is not there.

    Raises:
        TypeError: not a Dataset.  SchemaError: a result that is not in the form of its kind.  ValueError: an address in
            place of a path.  OSError: it cannot be written.

    Example:
        >>> dmft.save(theory, folder / "limit.nc").name
        'limit.nc'
    """
    if not isinstance(ds, xr.Dataset):
        raise TypeError(f"save expects an xarray Dataset, got {type(ds).__name__}; save each of several by itself.")
    path = local(path)
    try:
        ds = schema.check(ds)
    except SchemaError as error:
        raise SchemaError(
            f"{path} is not written: {error} (Numbers that are no longer a result are saved without the attribute "
            "'schema', by .drop_attrs().)"
        ) from error
    whole = {name: {"_FillValue": None} for name in ds.variables}  # no number stands for one that is missing
    with replacing(path) as temporary:
        ds.assign_attrs({SEALED: "its sha256 follows the data"}).to_netcdf(temporary, engine="h5netcdf", encoding=whole)
        _seal(temporary)
    return path


def load(path: str | Path) -> xr.Dataset:
    """The Dataset that `save` wrote, in memory; its digest is compared, and results are checked against the schema.

    Args:
        path: the file.

    Raises:
        FileNotFoundError, ValueError: no such file, not a NetCDF file, or one that this library did not write.
        SchemaError: a result of another schema, or damaged; the message names the file.

    Example:
        >>> path = dmft.save(theory, folder / "limit.nc")
        >>> dmft.load(path).equals(theory)
        True
    """
    path = local(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected a NetCDF file written by dmft.save.")
    sealed = _require_seal(path)
    try:
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            ds = stored.load()
    except PermissionError:
        raise
    except Exception as error:  # damaged files make the readers of HDF5 raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as a NetCDF file written by dmft.save, or is damaged ({reason}); make it again."
        ) from error
    named = ds.attrs.pop(SEALED, None) is not None
    if not named and "schema" not in ds.attrs and not any(name.startswith("problem") for name in ds.attrs):
        raise SchemaError(
            f"{path} is not a result of this library: it names neither its problem nor a schema. Read it with "
            "xarray.open_dataset."
        )
    if named and not sealed:
        raise SchemaError(f"{path} {CHANGED}")
    try:
        return schema.check(ds)
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from error


def _seal(path: Path) -> None:
    """Write the digest of a file behind its data, where readers of HDF5 do not look."""
    found = _digest(path, path.stat().st_size)
    with path.open("ab") as file:
        file.write(MARK + found)


def _require_seal(path: Path) -> bool:
    """Whether a file has a digest at its end.  It is compared before anything reads the data: in damaged ones the
    readers of HDF5 may not find an end.

    Raises:
        SchemaError: the file is not as it was written.
    """
    size = path.stat().st_size - len(MARK) - DIGITS
    with path.open("rb") as file:
        file.seek(max(size, 0))
        end = file.read()
    if not end.startswith(MARK):  # files of earlier versions
        return False
    if end != MARK + _digest(path, size):
        raise SchemaError(f"{path} {CHANGED}")
    return True


def _digest(path: Path, size: int) -> bytes:
    """sha256 of the first `size` bytes of a file, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (part := file.read(min(size, 2**20))):
            found.update(part)
            size -= len(part)
    return found.hexdigest().encode()
