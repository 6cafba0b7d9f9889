"""`densities`: the law of a single neuron's preactivation, in networks of each width and in the limit.

Of every (layer, step, sample), with F_N and F the empirical distribution functions of the pooled neurons of networks of
width N and of the particles of the limit:

    density               share of neurons in a bin over its width, on bins that networks and limit share
    wasserstein           int |F_N - F| dh, in units of h
    kolmogorov_smirnov    max |F_N - F|
    mean, standard_deviation, excess_kurtosis (kappa_4 / kappa_2^2, 0 for a Gaussian)
    gaussian_distance     max |F - G| with G the Gaussian of the same mean and variance; of networks, with F_N

each with its error `_se`; of the limit: `<name>_limit`, `<name>_limit_se`.  Neurons of a network depend on each other
to the order 1/N, which sums over N of them resolve, and particles of a scramble are spread more evenly than independent
ones: errors come from the jackknife over groups of whole networks, and over scrambles.

What is resolved.  Finite samples are a distance apart even where laws agree: `<distance>_floor` is what is expected
then.  It is measured, with all dependence between neurons, as the distance between halves A and B of the groups, mean
over several ways to halve them, from n_A + n_B neurons down to the pool of n:

    floor^2 = sum over networks and particles of  [distance(A, B)^2 (1/n) / (1/n_A + 1/n_B)]

A distance near its floor says that no difference is resolved; its error, that of a distance above, is then too large or
too small by up to a factor two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from comparisons import results
from comparisons.samples import FEWEST, GROUPS, error_of
from dmft import schema
from dmft.running.host import usual_errors
from dmft.schema.order import in_any_order
from dmft.specs import _check

Array = NDArray[np.float64]
Pair = tuple[Array, Array]
RANGE = (0.0005, 0.9995)  # quantiles that bins reach
DISTANCES = ("wasserstein", "kolmogorov_smirnov")
SHAPES = ("mean", "standard_deviation", "excess_kurtosis", "gaussian_distance")


@usual_errors
@in_any_order(theory=("particles",), nets=("neurons",))
def densities(theory: xr.Dataset, nets: xr.Dataset, *, bins: int = 60) -> xr.Dataset:
    """Compare the preactivations of single neurons of networks with those of the limit.

    Args:
        theory: of kind "particles", from `dmft.neurons`; it and the networks may be given in any order.
        nets: of kind "neurons", from `finite_nets.neurons`; at least eight networks a width.
        bins: of densities.  They reach over all but a thousandth of the neurons, networks and limit together.

    Returns:
        Dataset with the variables listed at the top of this module: densities (width, layer, step, sample, bin), all
        others (width, layer, step, sample), `<name>_limit` the same without width; edges(layer, step, sample, edge) of
        the bins; networks(width), how many there are.

    Raises:
        SchemaError: inputs of another form.
        ValueError: different problems, different steps or samples, fewer than eight networks of a width.
        TypeError: bins not a whole number.
    """
    theory, nets = schema.validate(theory, "particles"), schema.validate(nets, "neurons")
    schema.require_same_problem(theory=theory, networks=nets)
    schema.require_same_labels(theory=theory.drop_dims("neuron"), networks=nets.drop_dims("neuron"))
    bins = _check.integer("bins", bins, minimum=2)
    widths, member = nets["width"].values, nets["member"].values
    networks = np.array([len(np.unique(row)) for row in member])
    for width, count in zip(widths, networks, strict=True):
        if count < FEWEST:
            raise ValueError(
                f"the neurons of width {width} are those of {count} network(s); errors need at least {FEWEST}: keep "
                f"neurons={FEWEST * width} or more, or leave out this width."
            )

    limit, values = theory["preactivation"].values, nets["preactivation"].values
    limit_groups = groups_of(theory["scramble"].values)
    net_groups = [groups_of(row) for row in member]
    cells = limit.shape[:3]
    found: dict[str, Array] = {}

    def put(name: str, where: tuple[int, ...], leading: tuple[int, ...], value: ArrayLike) -> None:
        array = np.asarray(value, np.float64)
        found.setdefault(name, np.full(leading + array.shape, np.nan))[where] = array

    for cell in np.ndindex(cells):
        particles = limit[cell].astype(np.float64)
        each = values[(slice(None), *cell)].astype(np.float64)
        edges = common_edges(np.concatenate([particles, each.ravel()]), bins)
        put("edges", cell, cells, edges)
        alone = described(particles, limit_groups, edges)
        for name, (value, se) in alone.items():
            put(f"{name}_limit", cell, cells, value)
            put(f"{name}_limit_se", cell, cells, se)
        for i, groups in enumerate(net_groups):
            where, leading = (i, *cell), (len(widths), *cells)
            for name, (value, se) in described(each[i], groups, edges).items():
                put(name, where, leading, value)
                put(f"{name}_se", where, leading, se)
            for name, distance in distances(each[i], particles, groups, limit_groups).items():
                for suffix, number in zip(("", "_se", "_floor"), distance, strict=True):
                    put(f"{name}{suffix}", where, leading, number)

    variables = {name: (_dims(name, value), value) for name, value in found.items()}
    return results.dataset(
        "densities",
        variables | {"networks": (("width",), networks)},
        {"bin": np.arange(bins), "edge": np.arange(bins + 1)},
        nets,
        theory,
        neurons=nets.sizes["neuron"],
        particles=theory.sizes["neuron"],
    )


def _dims(name: str, value: Array) -> tuple[str, ...]:
    without = name == "edges" or "_limit" in name
    dims = ("layer", "step", "sample") if without else ("width", "layer", "step", "sample")
    last = {"edges": ("edge",)}.get(name, ("bin",))
    return dims + last * (value.ndim - len(dims))


# ---- NumPy -----------------------------------------------------------------------------------------------------------


class Distance(NamedTuple):
    """A distance, its standard error, and what is expected of samples of one law."""

    value: float
    se: float
    floor: float


def groups_of(member: NDArray[np.integer], most: int = GROUPS) -> NDArray[np.int64]:
    """(neuron,): the group of each neuron, 0, 1, ...; whole members, `most` groups at most."""
    names, inverse = np.unique(member, return_inverse=True)
    count = min(most, len(names))
    return np.asarray(inverse * count // len(names), np.int64)


def common_edges(values: Array, bins: int) -> Array:
    """(bin + 1,): edges of equal bins over the inner 99.9 % of values (value,)."""
    low, high = np.quantile(values, RANGE)
    if low == high:  # h of an image without a pixel
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def distances(a: Array, b: Array, groups_a: NDArray[np.int64], groups_b: NDArray[np.int64]) -> dict[str, Distance]:
    """Wasserstein and Kolmogorov-Smirnov distances of samples a (value,), b (value,), whose groups (value,) err
    independently; by name."""
    at = np.sort(np.concatenate([a, b]))
    sides = [counts_below(values, groups, at) for values, groups in ((a, groups_a), (b, groups_b))]
    shares = [counts.sum(axis=0) / counts[:, -1].sum() for counts in sides]
    value = _between(shares[0], shares[1], at)
    variance, floor = np.zeros(2), np.zeros(2)
    for counts, other in zip(sides, reversed(shares), strict=True):
        total, n = counts.sum(axis=0), counts[:, -1]
        without = [_between((total - c) / (n.sum() - m), other, at) for c, m in zip(counts, n, strict=True)]
        variance += error_of(np.array(without)) ** 2
        floor += _halves(counts, at) ** 2
    rows = zip(DISTANCES, value, np.sqrt(variance), np.sqrt(floor), strict=True)
    return {name: Distance(float(v), float(se), float(f)) for name, v, se, f in rows}


def counts_below(values: Array, groups: NDArray[np.int64], at: Array) -> Array:
    """(group, point): how many values of each group are at most `at` (point,), increasing."""
    each = [np.sort(values[groups == g]) for g in range(groups.max() + 1)]
    return np.stack([np.searchsorted(row, at, side="right") for row in each]).astype(np.float64)


def _between(F: Array, G: Array, at: Array) -> Array:
    """(2,): the distances of two distribution functions, constant between the points `at`."""
    gap = abs(F - G)
    return np.array([gap[:-1] @ np.diff(at), gap.max()])


def _halves(counts: Array, at: Array) -> Array:
    """(2,): distances expected of the pool of all groups from its law: those between halves, scaled."""
    groups = len(counts)
    half, n = groups // 2, counts[:, -1]
    found = []
    for first in range(max(half, 1)):
        inside = np.isin(np.arange(groups), (first + np.arange(half)) % groups)
        left, right = n[inside].sum(), n[~inside].sum()
        gap = _between(counts[inside].sum(axis=0) / left, counts[~inside].sum(axis=0) / right, at)
        found.append(gap * np.sqrt(1 / n.sum() / (1 / left + 1 / right)))
    return np.asarray(np.mean(found, axis=0))


def described(values: Array, groups: NDArray[np.int64], edges: Array) -> dict[str, Pair]:
    """Estimates and errors of what is said of a sample (value,) alone, by name; density is (bin,)."""
    counts = np.stack([np.histogram(values[groups == g], edges)[0] for g in range(groups.max() + 1)])
    members = np.bincount(groups).astype(np.float64)
    area = np.diff(edges)
    density = counts.sum(axis=0) / len(values) / area
    without = (counts.sum(axis=0) - counts) / (len(values) - members)[:, None] / area
    found: dict[str, Pair] = {"density": (density, error_of(without))}

    centre, scale = values.mean(), values.std() or 1.0
    z = (values - centre) / scale
    powers = np.stack([np.bincount(groups, z**k) for k in range(1, 5)], axis=1)
    at = np.sort(z)
    below = counts_below(z, groups, at)
    whole = _shape(powers.sum(axis=0) / len(z), below.sum(axis=0) / len(z), at)
    left_out = np.array(
        [
            _shape((powers.sum(axis=0) - p) / (len(z) - m), (below.sum(axis=0) - b) / (len(z) - m), at)
            for p, b, m in zip(powers, below, members, strict=True)
        ]
    )
    units, origin = np.array([scale, scale, 1.0, 1.0]), np.array([centre, 0.0, 0.0, 0.0])
    se = error_of(left_out)
    for name, value, error in zip(SHAPES, whole * units + origin, se * units, strict=True):
        found[name] = (value, error)
    return found


def _shape(moments: Array, F: Array, at: Array) -> Array:
    """(4,): mean, standard deviation, excess kurtosis and distance from their Gaussian, from moments 1 .. 4 and the
    distribution function at the points of the sample; the last two are nan where all values are the same."""
    m1, m2, m3, m4 = moments
    variance = m2 - m1**2
    if variance <= 0:
        return np.array([m1, 0.0, np.nan, np.nan])
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    G = ndtr((at - m1) / np.sqrt(variance))
    # on either side of each step
    gap = max(abs(F - G).max(), abs(np.append(0.0, F[:-1]) - G).max())
    return np.array([m1, np.sqrt(variance), fourth / variance**2 - 3, gap])


def gaussian(h: ArrayLike, mean: Any, standard_deviation: Any) -> Array:
    """Density of a Gaussian."""
    z = (np.asarray(h) - mean) / standard_deviation
    return np.asarray(np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) / standard_deviation)
