"""The 1/N law up to a million neurons: networks sampled in law, without weight matrices, against predicted variances.

(a) variance over networks, mean over all steps and entries, against width; lines: lim N Var / N.
(b) N Var over its predicted limit.
On a GPU widths reach 2^20; on a CPU 2^14.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
import dmft
import finite_nets
from figures import fluctuations, style

SIZE = (style.WIDE, 2.9)
WIDTHS = {"cpu": tuple(4**k for k in range(3, 8)), "gpu": tuple(4**k for k in range(3, 11))}
SEEDS = {"cpu": 128, "gpu": 1024}
QUANTITIES = {"prediction": "prediction $f$", "feature_kernel": r"feature kernels $\Phi$", "ntk": "NTK"}
NEEDS = fluctuations.needs("wide_networks", one_of=[f"{name}_variance_overall_ratio" for name in QUANTITIES])


def data(store: Path | None) -> xr.Dataset:
    """A comparison with fluctuations, of a folder of results (`figures.needs`); without one, networks are sampled."""
    if store is not None:
        return NEEDS.stored(store)
    problem, observables, kind = fluctuations.problem(), list(QUANTITIES), jax.default_backend()
    nets = finite_nets.sample_in_law(problem, widths=WIDTHS[kind], seeds=SEEDS[kind], observables=observables)
    predicted = dmft.fluctuations(problem, observables=observables)
    return comparisons.compare(dmft.solve(problem), nets, predicted)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """The variables of a comparison that this figure shows, of quantities that are predicted, and their variances."""
    comparison = NEEDS.take(*results)
    held = [name for name in QUANTITIES if f"{name}_variance_overall_ratio" in comparison]
    names = [f"{name}_raw_variance{part}" for name in held for part in ("", "_se")]
    names += [f"{name}_variance_overall_ratio{part}" for name in held for part in ("", "_se")]
    ds = comparison[names].copy()
    ds.attrs = style.provenance(comparison)
    for name in held:  # the line of the theory: what was measured over what it is of the prediction
        ds[f"{name}_line"] = ds[f"{name}_raw_variance"] / ds[f"{name}_variance_overall_ratio"]
    return ds.drop_vars(["step", "time", "sample", "split", "target"], errors="ignore")


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of a comparison with fluctuations, or of theory, networks and fluctuations in any order."""
    return style.panels(draw, drawn(*results), (1, 2), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Both panels."""
    width = ds["width"].values
    for i, ((name, label), look) in enumerate(zip(QUANTITIES.items(), style.SERIES, strict=False)):
        if f"{name}_line" not in ds:
            continue
        y, se = ds[f"{name}_raw_variance"].values, ds[f"{name}_raw_variance_se"].values
        ratio, ratio_se = ds[f"{name}_variance_overall_ratio"].values, ds[f"{name}_variance_overall_ratio_se"].values
        line = ds[f"{name}_line"].values
        axes[0].plot(width, line, color=look["color"], linewidth=0.9, label=style.once(axes[0], "theory / $N$"))
        axes[0].errorbar(width, y, se, linestyle="none", label=label, **look)
        # side by side, each third of a step from the width that is ticked
        axes[1].errorbar(width * 2 ** (0.4 * (i - 1)), ratio, ratio_se, linestyle="none", label=label, **look)
    axes[1].axhline(1, color="black", linewidth=0.9, zorder=0, label="equal")
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xlabel("width $N$")
        ax.set_xticks(
            width, [f"$2^{{{w.bit_length() - 1}}}$" if w.bit_count() == 1 else str(w) for w in width.tolist()]
        )
        ax.minorticks_off()
    axes[0].set_yscale("log")
    axes[0].set(ylabel="variance over networks", title="(a) variance falls like 1/N")
    axes[1].set(ylabel=r"$N\,\mathrm{Var}$ / its predicted limit", title="(b) measured over predicted")
    style.room(axes[1], top=0.3)
    axes[1].set_xlabel("width $N$ (points side by side)")
    style.legend(axes[0])
    style.legend(axes[1], ncols=2, loc="upper left")
