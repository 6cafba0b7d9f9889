"""Results in NetCDF files, written atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xarray as xr

from dmft import schema
from dmft.paths import local


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place at the end: `path` appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # as any new file; temporary ones are private
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save(ds: xr.Dataset, path: str | Path) -> Path:
    """Write `ds` to the NetCDF file `path`; it appears whole or not at all.

    Raises:
        TypeError: not a Dataset.  ValueError: an address in place of a path.  OSError: it cannot be written.
    """
    if not isinstance(ds, xr.Dataset):
        raise TypeError(f"save expects an xarray Dataset, got {type(ds).__name__}; save each of several by itself.")
    path = local(path)
    compressed = {name: {"zlib": True, "complevel": 1} for name in ds.data_vars}
    with replacing(path) as temporary:
        ds.to_netcdf(temporary, engine="h5netcdf", encoding=compressed)
    return path


def load(path: str | Path) -> xr.Dataset:
    """The Dataset that `save` wrote, in memory; results are checked against the schema.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a NetCDF file.
        SchemaError: a result of another schema, or damaged.
    """
    path = local(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected a NetCDF file written by dmft.save.")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            ds = stored.load()
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a NetCDF file written by dmft.save: {error}.") from error
    return schema.validate(ds, ds.attrs["kind"]) if "schema" in ds.attrs else ds
