"""The example of the README, as functions: theory, networks and their comparison on real data.

Threes against eights of MNIST, 30 training and 30 test images, two hidden layers, richness 1.  About a minute on
two cores.
"""

from __future__ import annotations

import xarray as xr

import comparisons
import dmft
import finite_nets

STEPS = range(0, 17, 2)
WIDTHS = (32, 64, 128, 256, 512, 1024)
SEEDS = 64
OBSERVABLES = ("prediction", "loss", "feature_kernel")


def problem() -> dmft.Problem:
    """The problem of the example."""
    task = dmft.load_task("mnist5k", classes=(3, 8), n_train=30, n_test=30)
    network = dmft.MLP(depth=2, activation=dmft.tanh(), gamma0=1.0)
    return dmft.Problem(network, task, dmft.GradientDescent(learning_rate=1.0, steps=16))


def run(described: dmft.Problem, *, seeds: int = SEEDS) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """Theory, networks and their comparison."""
    theory = dmft.solve(described, save_steps=STEPS, observables=OBSERVABLES)
    nets = finite_nets.train_ensemble(described, widths=WIDTHS, seeds=seeds, save_steps=STEPS, observables=OBSERVABLES)
    return theory, nets, comparisons.compare(theory, nets)
