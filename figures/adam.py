"""Networks trained by Adam approach their limit: learning curves, distance and variance against five widths.

(a) training loss: means over the networks of each width, with their standard errors as bands, and the limit, in which
    every entry of a weight moves by Adam's rule for its own gradients.
(b) distance of predictions from the limit's after training, root mean square over samples: of a single network, which
    falls like N^-1/2; of the mean over networks, the bias of narrower width, which falls like 1/N.
(c) variance over networks, mean over steps and entries, with fitted exponents: it falls like 1/N.
Rates and eps of every layer are those of `dmft.torch_groups`: the networks that `torch.optim.Adam` trains.  Without a
store: four threes and eights of scikit-learn's digits, two hidden layers, ten steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
import dmft
import finite_nets
from figures import style, width_convergence

WIDTHS = (16, 32, 64, 128, 256)
SEEDS = 400
PARTICLES = 1024
NEEDS = replace(width_convergence.NEEDS, figure="adam")


def problem() -> dmft.Problem:
    """The problem of this figure."""
    task = dmft.load_task("digits", classes=(3, 8), n_train=4, n_test=0)
    return dmft.Problem(dmft.MLP(2, dmft.tanh(0.8)), task, dmft.Adam(0.15, steps=10, beta2=0.99, eps=1e-2))


def data(store: Path | None) -> xr.Dataset:
    """`comparisons.compare`, of a folder of results (`figures.needs`); without one, networks are trained."""
    if store is not None:
        return NEEDS.stored(store)
    described, names = problem(), ["prediction", "loss"]
    theory = dmft.solve(described, particles=PARTICLES, scrambles=4, observables=names)
    nets = finite_nets.train_ensemble(described, widths=WIDTHS, seeds=SEEDS, observables=names)
    return comparisons.compare(theory, nets)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """The variables of a comparison that this figure shows, as of `figures.width_convergence`."""
    return width_convergence.drawn(NEEDS.take(*results))


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of a comparison, or of theory and networks in any order."""
    return style.panels(draw, drawn(*results), (1, 3), width_convergence.SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Three panels."""
    width_convergence.draw(ds, axes)
