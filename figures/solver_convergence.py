"""The theory's own error: how it falls with the number of particles, and what the solver claims.

For each S, the root mean square over steps and samples of the error of one scramble against a run of many more
particles, and the standard error that the solver reports for one scramble (from the scatter of its scrambles).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dmft
from figures import style

SIZE = (4.6, 3.6)
PARTICLES = (512, 1024, 2048, 4096, 8192)
LARGE = 32768
QUANTITIES = {"prediction": "prediction $f$", "feature_kernel": r"feature kernels $\Phi$", "ntk": "NTK"}


def problem() -> dmft.Problem:
    """Three hidden layers, four random inputs on the sphere, T = 20."""
    x = np.random.default_rng(3).standard_normal((4, 30))
    x *= np.sqrt(30) / np.linalg.norm(x, axis=1, keepdims=True)
    return dmft.Problem(dmft.MLP(3), dmft.Task(x, np.array([1.0, -1.0, 1.0, -1.0])), dmft.GradientDescent(0.3, 20))


def data(store: Path | None) -> xr.Dataset:
    """Errors (particles,) and claimed errors, for each quantity; from `store`/solver_convergence.nc if it is there."""
    if store is not None:
        return dmft.load(store / "solver_convergence.nc")
    large = dmft.solve(problem(), particles=LARGE, seed=99)
    runs = [dmft.solve(problem(), particles=size) for size in PARTICLES]
    scrambles = large.attrs["scrambles"]
    variables: dict[str, Any] = {}
    for name in QUANTITIES:
        # the mean over scrambles errs less than one of them by the root of their number; so does the large run
        errors = [np.sqrt(((run[name] - large[name]) ** 2).mean() * scrambles).item() for run in runs]
        claims = [np.sqrt((run[f"{name}_se"] ** 2).mean() * scrambles).item() for run in runs]
        variables[f"{name}_error"] = ("particles", errors)
        variables[f"{name}_claimed"] = ("particles", claims)
        variables[f"{name}_slope"] = ((), np.polyfit(np.log(PARTICLES), np.log(claims), 1)[0])
    ds = xr.Dataset(variables, coords={"particles": list(PARTICLES)})
    return ds.assign_attrs(problem=problem().to_json(arrays=False), large=LARGE, scrambles=scrambles)


def drawn(ds: xr.Dataset) -> xr.Dataset:
    return ds


def figure(ds: xr.Dataset) -> Figure:
    """The whole figure."""
    with plt.style.context(style.STYLE):
        fig, ax = plt.subplots(figsize=SIZE)
        draw(ds, ax)
    return fig


def draw(ds: xr.Dataset, ax: Axes) -> None:
    """Errors (markers) and claimed errors (lines) against the number of particles."""
    size = ds["particles"].values
    for (name, label), look in zip(QUANTITIES.items(), style.SERIES, strict=False):
        claimed = ds[f"{name}_claimed"].values
        ax.plot(size, claimed, color=look["color"], linewidth=0.9)
        slope = ds[f"{name}_slope"].item()
        ax.plot(size, ds[f"{name}_error"].values, linestyle="none", label=rf"{label}: $S^{{{slope:.2f}}}$", **look)
    first = ds["prediction_claimed"].values[0]
    style.guide(ax, size, (size[0], 0.6 * first), -1.0, r"$S^{-1}$")
    style.guide(ax, size, (size[0], 6 * first), -0.5, r"$S^{-1/2}$")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(size, [str(s) for s in size])
    ax.minorticks_off()
    ax.set_xlim(size[0] / 1.3, size[-1] * 1.9)
    ax.set(
        xlabel="particles $S$",
        ylabel="error of one scramble",
        title="error of the theory (points) and its claim (lines)",
    )
    ax.legend()
