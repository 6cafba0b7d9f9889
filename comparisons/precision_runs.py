"""Runs of one's own beside the law of precision (`comparisons.precision`): its fit, with errors, and predictions.

A table has one run a row: parameters N, tokens D, the bits of each channel in training, perhaps the bits that weights
were rounded to afterwards (post), and the loss.  Constants minimise, over the runs i,

    sum_i H(log L(N_i, D_i, P_i) - log L_i)            H of Huber: squares up to delta, then straight lines

(L held at the loss of guessing where `ceiling` says it) from several starts, in the logarithms of A, B, E, of exponents
and of gammas, and in n_x.
Errors are those of the bootstrap: half the distance of the quantiles 16 and 84 % over fits of runs drawn again.

Source: Kumar et al. 2024 (arXiv:2411.04330), whose delta is 1e-3.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from comparisons.errors import UnresolvedError
from comparisons.precision import PrecisionLaw
from comparisons.precision_shape import Shape, fitted
from comparisons.run_table import CHANNELS, LOSS, POST, SIZES, read_runs
from dmft.specs import _check
from dmft.text import table, with_error

Array = NDArray[np.float64]

AT_END = 1e-2  # of a logarithm, or of a bias
OFF, WORSE = 0.05, 3.0  # residuals of the runs at some bits beyond which the law does not hold: themselves, to others
INNER = (16.0, 84.0)  # quantiles, in per cent: one standard error to both sides


@dataclass(frozen=True)
class PrecisionFit:
    """The law that fits a table of runs, and those that fit tables drawn again.

    Print it for the constants with their errors.

    Args:
        law: the best.
        refits: of the bootstrap.
        runs: the table with what the law predicts (`predict_precision`); in attrs r2, rms, and undetermined, the names
            of constants that went to an end of what is tried.

    Example:
        >>> law = comparisons.PrecisionLaw(60.0, 0.5, 200.0, 0.4, 1.0)
        >>> comparisons.PrecisionFit(law, (law, law), runs=None).error(lambda each: each.loss(1e3, 1e4))
        np.float64(0.0)
    """

    law: PrecisionLaw
    refits: tuple[PrecisionLaw, ...]
    runs: xr.Dataset

    def error(self, quantity: Callable[[PrecisionLaw], Any]) -> Any:
        """The standard error of anything that follows from the law.

        Fits for which it does not exist (`UnresolvedError`) are left out.
        """
        found = []
        for law in self.refits:
            try:
                found.append(np.asarray(quantity(law), np.float64))
            except UnresolvedError:
                continue
        if not found:
            return np.nan
        low, high = np.percentile(found, INNER, axis=0)
        return (high - low) / 2

    def by_bits(self) -> xr.Dataset:
        """How far runs are off at each number of bits of a channel.

        Returns:
            Dataset (channel, bits): rms of log(measured) - log(predicted), rms_of_others, that of all other runs, mean
            and count of runs; nan where there are none.  "post" is among the channels where weights were rounded after
            training.

        Example:
            >>> runs = {"N": [1e3, 4e3] * 2, "D": [1e4] * 4, "weights": [2, 2, 8, 8], "loss": [3.2, 3.1, 3.0, 2.9]}
            >>> law = comparisons.PrecisionLaw(60.0, 0.5, 200.0, 0.4, 1.0, {"weights": comparisons.Saturation(2.0)})
            >>> table = comparisons.predict_precision(law, runs, columns={"parameters": "N", "tokens": "D"})
            >>> comparisons.PrecisionFit(law, (), table).by_bits()["count"].values
            array([[2, 2]])
        """
        square = self.runs["residual"].values ** 2
        channels = [name for name in (*self.law.channels, POST) if name in self.runs]
        every = np.unique(np.concatenate([np.zeros(0), *(self.runs[name].values for name in channels)]))
        there = np.array([[self.runs[name].values == bits for bits in every] for name in channels], dtype=bool)
        there = there.reshape(len(channels), len(every), len(square))
        with np.errstate(invalid="ignore", divide="ignore"):
            found = {
                "rms": np.sqrt(there @ square / there.sum(-1)),
                "rms_of_others": np.sqrt(~there @ square / (~there).sum(-1)),
                "mean": there @ self.runs["residual"].values / there.sum(-1),
                "count": there.sum(-1),
            }
        dims = ("channel", "bits")
        return xr.Dataset({name: (dims, value) for name, value in found.items()}, {"channel": channels, "bits": every})

    def off(self) -> list[str]:
        """Bits where the law does not hold, in words."""
        ds = self.by_bits()
        wrong = np.argwhere(((ds["rms"] > OFF) & (ds["rms"] > WORSE * ds["rms_of_others"])).values)
        return [
            f"{ds['bits'].values[j]:g} bits of {ds['channel'].values[i]} ({ds['count'].values[i, j]} runs off by "
            f"{ds['rms'].values[i, j]:.2g} of log L, others by {ds['rms_of_others'].values[i, j]:.2g})"
            for i, j in wrong
        ]

    def __str__(self) -> str:
        rows = []
        for name, value in _constants(self.law).items():
            error = self.error(lambda law, of=name: _constants(law)[of])  # type: ignore[misc]
            rows.append((name, with_error(value, float(error))))
        attrs = self.runs.attrs
        text = table(list(zip(("", "value"), *rows, strict=True)))
        ends = f"; at an end of what is tried: {attrs['undetermined']}" if attrs["undetermined"] else ""
        wrong = "".join(f"\ndoes not hold at {where}" for where in self.off())
        runs = f"{self.runs.sizes['run']} runs, R^2 {attrs['r2']:.4f}, rms {attrs['rms']:.2g} of log L"
        return f"{text}\n{runs}{ends}{wrong}"


def _constants(law: PrecisionLaw) -> dict[str, float]:
    """By name, of a fit."""
    found = {name: getattr(law, name) for name in ("A", "alpha", "B", "beta", "E")}
    for name, each in law.channels.items():
        found |= {f"gamma {name}": each.gamma, f"bias {name}": each.bias}
    if law.post is not None:
        post = law.post
        found |= {"C": post.scale, "gamma data": post.gamma_data, "gamma parameters": post.gamma_parameters}
        found["gamma post"] = post.gamma_bits
    return found


def fit_precision(
    runs: Any,
    *,
    columns: Mapping[str, str] | None = None,
    channels: Sequence[str] | None = None,
    tied: bool = False,
    delta: float = 1e-3,
    ceiling: float = np.inf,
    starts: int = 8,
    bootstrap: int = 100,
    seed: int = 0,
) -> PrecisionFit:
    """Fit the law to a table of runs.

    Args:
        runs: the path of a CSV file, a mapping of columns (such as a data frame), or a Dataset, whose variables and
            coordinates are the columns.  An empty cell of bits, and one that is not a number, is full precision.
        columns: by the names used here, parameters, tokens, loss, post and those of channels, those of the table.
        channels: what was rounded in training; by default those of weights, activations and kv that are columns.
        tied: whether alpha = beta, as in the source.
        delta: of Huber, in log L: about the noise of a run.
        ceiling: the loss of guessing, which no network exceeds, as log(10) of ten classes by cross-entropy: networks of
            so few bits that they do not learn have it at any size, and a law without it is bent to them.
        starts: fits, of which the best is taken.
        bootstrap: fits of runs drawn again, for errors.
        seed: of starts and of the bootstrap.

    Returns:
        The fit.  A warning names the bits whose runs are off by more than 5 %, and three times as much as all others:
        there the law does not hold (`PrecisionFit.by_bits`).

    Raises:
        UnresolvedError: fewer runs than constants; parameters, tokens or bits that do not vary.
        ValueError: columns that are not there; numbers out of range, with the row; bits both in and after training.
        TypeError: what is no table.

    Example:
        >>> law = comparisons.PrecisionLaw(60.0, 0.5, 200.0, 0.4, 1.0, {"weights": comparisons.Saturation(2.0)})
        >>> n, d, p = map(np.ravel, np.meshgrid([1e3, 4e3, 16e3], [1e4, 1e5, 1e6], [2, 3, 4, 6, 8]))
        >>> runs = {"N": n, "D": d, "weights": p, "loss": law.loss(n, d, p)}
        >>> names = {"parameters": "N", "tokens": "D"}
        >>> fit = comparisons.fit_precision(runs, columns=names, starts=4, bootstrap=0)
        >>> round(fit.law.channels["weights"].gamma, 3)
        2.0
    """
    starts, bootstrap = _check.integer("starts", starts, minimum=1), _check.integer("bootstrap", bootstrap, minimum=0)
    delta = _check.positive("delta", delta)
    ceiling = ceiling if ceiling == np.inf else _check.positive("ceiling", ceiling)
    found = read_runs(runs, columns, channels)
    _require_loss(found)
    if ceiling <= (least := float(found[LOSS].min())):
        raise ValueError(f"ceiling={ceiling:g} is not above the smallest loss {least:g}: give the loss of guessing.")
    names = tuple(name for name in found.data_vars if name not in (*SIZES, LOSS, POST))
    shape = Shape(tuple(map(str, names)), tied, POST in found, ceiling)
    data = {str(name): found[name].values for name in found.data_vars}
    _require_resolved(data, shape)
    rng = np.random.default_rng(seed)
    fits = [fitted(shape, data, shape.start(data, rng), delta) for _ in range(starts)]
    best, _ = min(fits, key=lambda each: each[1])
    refits = []
    for _ in range(bootstrap):
        drawn = rng.integers(0, found.sizes["run"], found.sizes["run"])
        again = {name: value[drawn] for name, value in data.items()}
        refits.append(shape.law(fitted(shape, again, best, delta)[0], again))
    law = shape.law(best, data)
    predicted = predict_precision(law, found)
    near = [min(abs(v - low), abs(v - high)) < AT_END for v, low, high in zip(best, *shape.bounds(data), strict=True)]
    predicted.attrs["undetermined"] = ", ".join(name for name, end in zip(shape.names, near, strict=True) if end)
    fit = PrecisionFit(law, tuple(refits), predicted)
    guess = "" if ceiling < np.inf else ", or give ceiling=, the loss of guessing, if their networks have not learned"
    for where in fit.off():
        warnings.warn(f"the law does not hold at {where}: leave these runs out{guess}.", UserWarning, stacklevel=2)
    return fit


def predict_precision(
    law: PrecisionLaw | PrecisionFit,
    runs: Any,
    *,
    columns: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """The losses that a law has for a table of runs, beside those measured where it has them.

    Args:
        law: a law; or a fit, whose predictions have errors.
        runs, columns: as of `fit_precision`; the loss may be missing.

    Returns:
        Dataset (run): the columns, effective_parameters, predicted (and predicted_se of a fit); where there are losses
        residual, log(measured) - log(predicted), and in attrs r2 of the losses and rms of the residuals.

    Raises:
        ValueError, TypeError: as `fit_precision`.

    Example:
        >>> runs = {"parameters": [30e6], "tokens": [1.5e9], "weights": [16], "activations": [16], "kv": [16]}
        >>> comparisons.predict_precision(comparisons.PrecisionLaw.published(), runs)["predicted"].values.round(3)
        array([4.103])
    """
    fit = law if isinstance(law, PrecisionFit) else None
    one = fit.law if fit is not None else law
    if not isinstance(one, PrecisionLaw):
        raise TypeError(f"law={type(law).__name__} is no PrecisionLaw, and no fit of one.")
    others = [name for name in CHANNELS if name not in one.channels]
    found = read_runs(runs, columns, (*one.channels, *others), optional=True)
    for name in others:
        if name in found and np.isfinite(found[name].values).any():
            raise ValueError(f"the runs have bits of {name}, of which the law says nothing; leave the column out.")
    found = found.drop_vars(others, errors="ignore")
    names = [name for name in one.channels if name in found]

    def predicted(each: PrecisionLaw) -> Array:
        n, d = (found[name].values for name in SIZES)
        bits = {name: found[name].values for name in names}
        loss = each.loss(n, d, bits)
        if POST not in found:
            return loss
        rounded = np.isfinite(post := found[POST].values)
        after = {name: value[rounded] for name, value in bits.items()}
        loss[rounded] = each.loss(n[rounded], d[rounded], after, post=post[rounded])
        return loss

    effective = one.effective_parameters(found["parameters"].values, {name: found[name].values for name in names})
    found = found.assign(effective_parameters=("run", effective), predicted=("run", predicted(one)))
    if fit is not None and fit.refits:
        found["predicted_se"] = ("run", np.asarray(fit.error(predicted)))
    if LOSS in found:
        measured, there = found[LOSS].values, found["predicted"].values
        found["residual"] = ("run", np.log(measured) - np.log(there))
        spread = float(((measured - measured.mean()) ** 2).sum())
        found.attrs["r2"] = 1 - float(((measured - there) ** 2).sum()) / spread if spread else np.nan
        found.attrs["rms"] = float(np.sqrt((found["residual"].values ** 2).mean()))
    return found


def _require_loss(found: xr.Dataset) -> None:
    if LOSS not in found:
        raise ValueError(
            f"the table has no column {LOSS!r}, to which the law is fitted; say which is meant, "
            "columns={'loss': ...}."
        )


def _require_resolved(data: Mapping[str, Array], shape: Shape) -> None:
    runs = len(data[LOSS])
    if runs <= len(shape.names):
        raise UnresolvedError(f"{runs} runs do not determine {len(shape.names)} constants; give more of them.")
    for name in SIZES:
        if len(np.unique(data[name])) < 2:
            raise UnresolvedError(f"all runs have {name} {data[name][0]:g}; the law needs several.")
    for name in shape.channels:
        if len(np.unique(data[name])) < 3:
            raise UnresolvedError(
                f"{name} has the bits {', '.join(f'{b:g}' for b in np.unique(data[name]))} alone; two constants need "
                "three different ones at least; give more, or name the other channels, channels=[...]."
            )
    if shape.post:
        after = np.isfinite(data[POST])
        if len(np.unique(data[POST][after])) < 2:
            raise UnresolvedError("post has fewer than two numbers of bits; give more, or leave the column out.")
        for name in shape.channels:
            if bad := np.flatnonzero(after & np.isfinite(data[name])).tolist():
                raise ValueError(
                    f"run {bad[0]} (from 0) has {data[name][bad[0]]:g} bits of {name} in training and is rounded to "
                    f"{data[POST][bad[0]]:g} afterwards; only runs in full precision (empty cells) may be rounded."
                )
