"""What `comparisons.extrapolate` says of limits whose errors do not hold all that is in doubt."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from comparisons.results import Variables

ACCURACIES = ("accuracy_limit", "accuracy_infinite_limit")
IMPROBABLE = 1e-3  # of a chi squared
SLOW, SIGMAS = -0.6, 3  # exponents of a variance over networks from which, and errors above -1, it falls unlike 1/N
ROUNDING = 1e-9


def warn(variables: Variables, names: Sequence[str], coords: Mapping[str, Any]) -> None:
    """Of networks that diverged, laws that are not tried or do not describe the widths, and mixtures of branches."""
    lost, kept = (variables[name][1] for name in ("diverged", "count"))
    if lost.any():
        rows = zip(coords["width"], lost, lost + kept, strict=True)
        which = ", ".join(f"{bad} of {of} of width {width}" for width, bad, of in rows if bad)
        warnings.warn(
            f"networks diverged, {which}: the limit is that of the others, and says nothing of these. Lower the rate, "
            "or leave these widths out.",
            stacklevel=4,
        )
    weights = {name.removesuffix("_weight"): v[1] for name, v in variables.items() if name.endswith("_weight")}
    if untried := [name for name, weight in weights.items() if np.isnan(weight).any()]:
        laws = [law for law, weight in zip(coords["law"], weights[untried[0]], strict=True) if np.isnan(weight).any()]
        warnings.warn(
            f"three widths do not try {', '.join(laws)}, of three constants, for {', '.join(untried)}: the limits' "
            "errors hold how these laws differ, and cover less where means go like N^-.7 or more slowly. Give a fourth "
            "width, of several networks, or the law that holds, as laws=['1/N'].",
            stacklevel=4,
        )
    bad = [name for name in names if np.median(np.nan_to_num(variables[f"{name}_p_value"][1], nan=1.0)) < IMPROBABLE]
    if bad:
        warnings.warn(
            f"no law describes {', '.join(bad)} within the errors of the widths (p < {IMPROBABLE}): the limits' errors "
            "are too small. Leave out narrow widths, or train wider networks.",
            stacklevel=4,
        )
    for name in (name for name in names if name.removeprefix("test_") == "loss"):
        s, se = (variables[f"{name}_variance_exponent{end}"][1] for end in ("", "_se"))
        slow = (s > SLOW) & (s - SIGMAS * se > -1)
        if slow.any():
            worst = np.unravel_index(np.argmax(np.where(slow, s, -np.inf)), s.shape)
            warnings.warn(
                f"the variance of {name} over networks goes with width like N^{s[worst]:.2g} (+-{se[worst]:.1g}), "
                "not 1/N: networks may follow several branches, as near an edge of stability, and their mean is a "
                "mixture whose shares follow no law. Look at single networks; train wider ones, or lower the rate.",
                stacklevel=4,
            )


def bound(variables: Variables) -> None:
    """Accuracies within 0 and 1: no estimate becomes worse by that."""
    for name in [name.removesuffix("_limit") for name in variables if name.endswith(ACCURACIES)]:
        limit, error = (variables[f"{name}_limit{end}"][1] for end in ("", "_se"))
        beyond = np.maximum(limit - 1, -limit) - error
        if (beyond > ROUNDING).any():
            worst = np.unravel_index(np.argmax(beyond), limit.shape)
            warnings.warn(
                f"{name} goes to {limit[worst]:.3g} +- {error[worst]:.1g}, beyond what accuracies are, and is set to "
                "the nearest of these: its law does not hold at all widths. Leave out narrow ones, or train more "
                "networks.",
                stacklevel=4,
            )
        for kind in ("limit", "mean"):
            dims, values = variables[f"{name}_{kind}"]
            variables[f"{name}_{kind}"] = (dims, np.clip(values, 0.0, 1.0))
