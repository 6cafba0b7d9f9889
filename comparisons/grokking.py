"""Delayed generalisation: when training and test losses fall below a threshold, of any result that holds both.

train_time    time of the first recorded step whose training loss is below the threshold, nan where there is none
test_time     the same of the test loss             delay    test_time / train_time
test_loss_when_trained     the test loss at train_time          peak_test_loss     its largest value
last_loss, last_test_loss  those of the last recorded step
"""

from __future__ import annotations

import xarray as xr

from dmft.schema.labels import labelled
from dmft.specs import _check

LOSSES = ("loss", "test_loss")


def grokking(result: xr.Dataset, threshold: float) -> xr.Dataset:
    """How much later test losses fall than training losses.

    Args:
        result: of `dmft.solve`, `finite_nets.train_ensemble` or `dmft.stack`, with loss and test_loss; its recorded
            steps are the resolution of times.
        threshold: of losses, which have their factor 1/2 where the loss is the squared one.

    Returns:
        Dataset of the analysis "grokking" with the dimensions of the losses but step: the variables above.

    Raises:
        ValueError, TypeError: no Dataset with both losses and times; a threshold that is not positive.

    Example:
        >>> comparisons.grokking(theory, threshold=0.47)["delay"].item()
        1.0
    """
    threshold = _check.positive("threshold", threshold)
    missing = [name for name in (*LOSSES, "time") if not isinstance(result, xr.Dataset) or name not in result]
    if missing:
        raise ValueError(
            f"grokking needs results with loss, test_loss and time along steps, and these lack {', '.join(missing)}; "
            "give a task with test samples, and record the loss."
        )
    time = result["time"]
    below = {name: result[name] < threshold for name in LOSSES}
    first = {name: where.argmax("step") for name, where in below.items()}
    when = {name: time.isel(step=first[name]).where(below[name].any("step")) for name in LOSSES}
    trained = result["test_loss"].isel(step=first["loss"])
    found = {
        "train_time": when["loss"],
        "test_time": when["test_loss"],
        "delay": when["test_loss"] / when["loss"].where(when["loss"] > 0),
        "test_loss_when_trained": trained.where(below["loss"].any("step")),
        "peak_test_loss": result["test_loss"].max("step"),
        **{f"last_{name}": result[name].isel(step=-1) for name in LOSSES},
    }
    ds = xr.Dataset({name: value.drop_vars(["step", "time"], errors="ignore") for name, value in found.items()})
    kept = ("problem", "problem_id", "version")
    ds.attrs = {name: result.attrs[name] for name in kept if name in result.attrs}
    ds.attrs |= {"analysis": "grokking", "threshold": threshold}
    return labelled(ds)
