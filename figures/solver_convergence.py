"""The theory's own error: how it falls with the number of particles, and what the solver claims.

For each S, the root mean square over steps and samples of the error of one scramble against a run of many more
particles (points), and the standard error that the solver reports for one scramble, from the scatter of its scrambles
(lines; the exponents are theirs).  Two hidden layers and 10 steps on three inputs; three and 20 steps on four.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dmft
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 3.1)
PARTICLES = (512, 1024, 2048, 4096, 8192)
LARGE = 32768
SEEDS = 3  # solver runs at each S, of 8 scrambles each
QUANTITIES = {"prediction": "prediction $f$", "feature_kernel": r"feature kernels $\Phi$", "ntk": "NTK"}
NEEDS = Needs(
    "solver_convergence", "solver_convergence", "figures.solver_convergence.make(problems)", ("error", "claim", "slope")
)


def problems() -> dict[str, dmft.Problem]:
    """The two problems, by the title of their panel."""
    rng = np.random.default_rng(3)

    def problem(depth: int, samples: int, rate: float, steps: int) -> dmft.Problem:
        x = rng.standard_normal((samples, 30))
        x *= np.sqrt(30) / np.linalg.norm(x, axis=1, keepdims=True)
        y = np.where(np.arange(samples) % 2, 1.0, -1.0)
        return dmft.Problem(dmft.MLP(depth), dmft.Task(x, y), dmft.GradientDescent(rate, steps))

    return {"$L=2$, $P=3$, $T=10$": problem(2, 3, 0.6, 10), "$L=3$, $P=4$, $T=20$": problem(3, 4, 0.3, 20)}


def data(store: Path | None) -> xr.Dataset:
    """Of the two problems made now, or of a folder of results (`figures.needs`)."""
    return make(problems()) if store is None else NEEDS.stored(store)


def make(studied: dict[str, dmft.Problem]) -> xr.Dataset:
    """Errors and claims (problem, quantity, particles), slopes of the claims, of problems by their titles."""
    shape = (len(studied), len(QUANTITIES), len(PARTICLES))
    errors, claims = np.zeros(shape), np.zeros(shape)
    for i, problem in enumerate(studied.values()):
        large = dmft.solve(problem, particles=LARGE, seed=99)
        for k, size in enumerate(PARTICLES):
            runs = [dmft.solve(problem, particles=size, seed=seed) for seed in range(SEEDS)]
            scrambles = runs[0].attrs["scrambles"]
            for j, name in enumerate(QUANTITIES):
                # the mean over scrambles errs less than one of them, by the root of their number
                errors[i, j, k] = np.sqrt(
                    scrambles * np.mean([((run[name] - large[name]) ** 2).mean() for run in runs])
                )
                claims[i, j, k] = np.sqrt(scrambles * np.mean([(run[f"{name}_se"] ** 2).mean() for run in runs]))
    slopes = np.polyfit(np.log(PARTICLES), np.log(claims.reshape(-1, len(PARTICLES)).T), 1)[0].reshape(shape[:2])
    dims = ("problem", "quantity", "particles")
    return xr.Dataset(
        {"error": (dims, errors), "claim": (dims, claims), "slope": (dims[:2], slopes)},
        coords={"problem": list(studied), "quantity": list(QUANTITIES), "particles": list(PARTICLES)},
        attrs={"analysis": "solver_convergence", "large": LARGE, "seeds": SEEDS}
        | {f"problem_{i}": problem.to_json(arrays=False) for i, problem in enumerate(studied.values())},
    )


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it, and the error of each exponent, from the scatter of its points about the power law."""
    ds = NEEDS.take(*results)
    x = np.log(ds["particles"].values)
    x = x - x.mean()
    y = np.log(ds["claim"].transpose("problem", "quantity", "particles").values)
    left = y - y.mean(axis=-1, keepdims=True) - ds["slope"].transpose("problem", "quantity").values[..., None] * x
    freedom = max(len(x) - 2, 1)
    return ds.assign(slope_se=(("problem", "quantity"), np.sqrt((left**2).sum(axis=-1) / freedom / (x**2).sum())))


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `make` returns."""
    ds = drawn(*results)
    shape = (1, ds.sizes["problem"])
    return style.panels(draw, ds, shape, SIZE, sharey=True)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """A panel for each problem: errors (points) and claims (lines) against the number of particles."""
    for letter, ax, title in zip("abcdef", axes, ds["problem"].values, strict=False):
        draw_problem(ds.sel(problem=title), ax)
        ax.set_title(f"({letter}) {title}")
    axes[0].set_ylabel("error of one scramble")
    style.room(axes[0], top=0.35)


def draw_problem(ds: xr.Dataset, ax: Axes) -> None:
    """One panel."""
    size = ds["particles"].values
    for (name, label), look in zip(QUANTITIES.items(), style.SERIES, strict=False):
        row = ds.sel(quantity=name)
        claim = style.once(ax, "standard error reported")
        ax.plot(size, row["claim"].values, color=look["color"], linewidth=0.9, label=claim)
        slope = style.in_brackets(row["slope"].item(), row["slope_se"].item())
        ax.plot(size, row["error"].values, linestyle="none", label=f"{label}: $S^{{{slope}}}$", **look)
    first = ds["claim"].sel(quantity="prediction").values[0]
    style.guide(ax, size, (size[0], 0.6 * first), -1.0, r"$S^{-1}$")
    style.guide(ax, size, (size[0], 6 * first), -0.5, r"$S^{-1/2}$")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(size, [str(s) for s in size])
    ax.minorticks_off()
    ax.set_xlim(size[0] / 1.3, size[-1] * 1.3)
    ax.set_xlabel("particles $S$")
    ax.legend(loc="upper right", ncols=2, fontsize=6.5)
