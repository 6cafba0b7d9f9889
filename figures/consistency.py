"""Consistency across widths: a network without a theory, against the widest and the next wider one.

A small ResNet on images, or a causal Transformer on the characters of a text, in mean-field parameterization with
readouts that start from zero, trained with Adam by `finite_nets.train_modules`: online, every sample once, and on a few
samples again and again.
(a) test loss, online (solid) and repeated (dashed): means over networks, bands of one standard error.
(b) the output for the class of one test sample, of the repeated samples: mean over networks, their standard deviation.
(c) root mean square distance of predictions on test samples after training, relative: one network from the mean over
    the widest, two networks of successive widths, and the means over networks of a width and of the widest; with fitted
    exponents (of the last: against 1/N - 1/W).
(d) the first and the last of these through training, online (solid) and repeated (dashed); marks: where the mean over
    networks leaves the tolerance.
(e) centred kernel alignment of layers with the mean kernel of the widest networks.
(f) densities of what the last of the layers returns, after training.
(g) test loss of repeated samples: what an ensemble removes, and what it leaves above the widest networks' ensemble.
(h) relative change of parameters, by their role: it falls like N^-1/2 for hidden matrices, whose learned part has few
    directions.
(i) of the Transformer, attention of one test window, mean over heads and networks, narrowest and widest; of the ResNet,
    sizes of layers and of their change.
Digits of scikit-learn, three narrow widths: about a minute on a core.  `make` does it for other data and sizes;
`tests/benchmarks/consistency.py` is its command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import comparisons
import dmft
import finite_nets
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 6.6)
NETWORKS = ("resnet", "transformer")
SETTINGS = ("online", "repeated")
RATE = 0.2
WIDTHS, SEEDS, STEPS, BATCH = (8, 16, 32), 8, 24, 32
OBSERVABLES = (
    "prediction",
    "loss",
    "feature_kernel",
    "activation_size",
    "activation_change",
    "activation_density",
    "weight_change",
)
COMPARED = 96  # samples of kernels, the last ones
TOLERANCE = 0.2  # of the distance of means, for the onset
EPOCHS = 8  # how often repeated samples are met
DISTANCES = {
    "widest": ("one network to the widest", "narrow"),
    "successive": ("to the next narrower width", "wider"),
    "widest_error": ("means over networks", "narrow"),
}
ROLES = {"hidden": "s", "input": "o", "output": "^", "embedding": "D"}
LINES = {"online": "-", "repeated": "--"}
NEEDS = Needs(
    "consistency",
    "consistency",
    "figures.consistency.make(network, data)",
    ("test_loss_mean", "logit", "widest", "successive", "cka", "density", "variance_part", "bias_left"),
)
Array = NDArray[np.float64]


def data(store: Path | None) -> xr.Dataset:
    """The numbers, of a folder of results (`figures.needs`); without one, those of a small study are made."""
    return make("resnet", digits()) if store is None else NEEDS.stored(store)


def digits() -> dmft.Task:
    """Images of scikit-learn."""
    return dmft.load_task(
        "digits", classes=range(10), n_train=1500, n_test=256, layout="image", normalize="standard", balanced=False
    )


def make(
    network: str,
    data: Any,
    *,
    widths: Sequence[int] = WIDTHS,
    seeds: int = SEEDS,
    steps: int = STEPS,
    batch: int = BATCH,
    rate: float = RATE,
    tolerance: float = TOLERANCE,
    observed: tuple[int, int] = (64, 128),
    progress: bool | None = None,
    **options: Any,
) -> xr.Dataset:
    """Train and compare.

    Args:
        network: "resnet" or "transformer".
        data: a `dmft.Task` of images with one-hot targets, or a `dmft.Text`; at least steps * batch training samples.
        widths, seeds: at least two widths of eight networks; of a Transformer multiples of four.
        steps, batch: of both trainings; repeated samples are 1 / `EPOCHS` of what is met online.
        rate: eta of Adam.
        tolerance: of the relative distance of means, for the onset.
        observed: training and test samples of results, at most.
        progress: a bar.
        options: further arguments of `finite_nets.train_modules` (device, dtype, store, ...).

    Returns:
        Dataset of the numbers that are drawn, over data ("online", "repeated"), with standard errors `_se`.

    Raises:
        ValueError: an unknown network, data of another kind or too few; as `train_modules`.
    """
    make_module, described = _trainings(network, data, steps, batch, rate, observed)
    found = []
    for part, training, given in described:
        nets = finite_nets.train_modules(
            make_module, part, training, sorted(widths), seeds, **given, progress=progress, **options
        )
        found.append(of(nets, make_module, tolerance=tolerance))
    ds = xr.concat(
        found, xr.DataArray(list(SETTINGS), dims="data", name="data"), join="exact", combine_attrs="drop_conflicts"
    )
    ds.attrs |= {"network": network, "analysis": "consistency"}
    return ds


def plan(
    network: str,
    data: Any,
    *,
    widths: Sequence[int] = WIDTHS,
    seeds: int = SEEDS,
    steps: int = STEPS,
    batch: int = BATCH,
    rate: float = RATE,
    observed: tuple[int, int] = (64, 128),
    **options: Any,
) -> Any:
    """The cost of one of the two trainings of `make`, a `finite_nets.modules.plan.ModulePlan`; arguments as there."""
    make_module, described = _trainings(network, data, steps, batch, rate, observed)
    part, training, given = described[0]
    return finite_nets.plan_modules(make_module, part, training, sorted(widths), seeds, **given, **options)


def _trainings(
    network: str, data: Any, steps: int, batch: int, rate: float, observed: tuple[int, int]
) -> tuple[Any, list[tuple[Any, Any, dict[str, Any]]]]:
    """What makes a network, and of each setting the data, the training and further arguments."""
    makers: dict[str, tuple[Any, Callable[..., Any]]] = {
        "resnet": (dmft.Task, _resnet),
        "transformer": (dmft.Text, _transformer),
    }
    if network not in makers:
        raise ValueError(f"network={network!r} is unknown; choose one of {', '.join(NETWORKS)}.")
    kind, maker = makers[network]
    if type(data) is not kind:
        raise ValueError(f"network={network!r} takes a dmft.{kind.__name__}, not {type(data).__name__}.")
    make_module, layers, measure = maker(data)
    repeated = min(data.n_train, max(batch, steps * batch // EPOCHS))
    given = {
        "loss": "cross_entropy",
        "output": "zero",
        "layers": layers,
        "measure": measure,
        "observed": (min(observed[0], repeated), min(observed[1], data.n_test)),
        "observables": OBSERVABLES,
    }
    found = []
    for setting in SETTINGS:
        repeat = setting == "repeated"
        training = finite_nets.ModuleTraining(rate, steps, batch, optimiser="adam", repeat=repeat)
        found.append((first_samples(data, repeated) if repeat else data, training, given))
    return make_module, found


def first_samples(data: Any, count: int) -> Any:
    """The same task or text with the first training samples, or windows, alone."""
    if isinstance(data, dmft.Text):
        tokens = data.train[: (count - 1) * data.stride + data.context + 1]
        return dmft.Text(tokens, data.test, data.alphabet, data.context, data.stride, data.provenance)
    given = {**data.provenance, "first": count}
    return dmft.Task(data.x_train[:count], data.y_train[:count], data.x_test, data.y_test, provenance=given)


def _resnet(task: dmft.Task) -> tuple[Any, Sequence[str], Mapping[str, Any]]:
    from figures.consistency_networks import LAYERS, ResNet

    rows, _, channels = task.shape
    (outputs,) = task.outputs

    def make_resnet(width: int) -> Any:
        return ResNet(width, channels, rows, outputs)

    return make_resnet, LAYERS["resnet"], {}


def _transformer(text: dmft.Text) -> tuple[Any, Sequence[str], Mapping[str, Any]]:
    from figures.consistency_networks import LAYERS, Transformer, attention_map

    def make_transformer(width: int) -> Any:
        return Transformer(width, len(text.alphabet), text.context)

    return make_transformer, LAYERS["transformer"], {"attention": attention_map}


# ---- numbers ---------------------------------------------------------------------------------------------------------


def of(nets: xr.Dataset, make_module: Any, *, tolerance: float = TOLERANCE) -> xr.Dataset:
    """The numbers of one training, from the networks."""
    found: dict[str, Any] = {}
    statistics = comparisons.statistics(nets[["prediction", "loss", "test_loss", "accuracy", "test_accuracy"]])
    for name in ("loss", "test_loss", "accuracy", "test_accuracy"):
        found |= {f"{name}_mean{end}": statistics[f"{name}_mean{end}"] for end in ("", "_se")}
    sample = int(np.flatnonzero(nets["split"].values == "test")[0])
    output = int(nets["target"].values[sample].argmax())
    where = {"sample": sample, "output": output}
    found["logit"] = statistics["prediction_mean"].isel(where, drop=True)
    found["logit_se"] = statistics["prediction_mean_se"].isel(where, drop=True)
    found["logit_scatter"] = np.sqrt(statistics["prediction_seed_variance"].isel(where, drop=True))
    pointwise = comparisons.pointwise(nets)
    ends = ("", "_se", "_exponent", "_exponent_se")
    distances = pointwise.sel(split="test", drop=True)
    found |= {f"{name}{end}": distances[f"{name}{end}"] for name in (*DISTANCES, "successive_error") for end in ends}
    onsets = comparisons.onset(pointwise, tolerance=tolerance).sel(split="test", drop=True)
    found |= {name: onsets[name] for name in ("onset", "onset_early", "onset_late")}
    few = slice(-COMPARED, None)  # kernels cost their square
    alike = comparisons.representations(nets.isel(sample=few, sample_2=few)).rename(width="narrow")
    found |= {f"cka{end}": alike[f"cka{end}"] for end in ("", "_se", "_of_mean", "_of_mean_se")}
    found |= _ensembles(nets)
    count = nets.sizes["seed"]
    for name in ("activation_size", "activation_change", "weight_change"):
        found[name], found[f"{name}_se"] = _over_seeds(nets[name], count)
    last = nets["activation_density"].isel(step=-1, drop=True)
    found["density"], found["density_se"] = _over_seeds(last, count)
    if "measured" in nets:
        maps = finite_nets.measured(nets, "attention").isel(step=-1, drop=True)
        maps = maps.rename(axis_0="query", axis_1="key")
        found["attention"], found["attention_se"] = _over_seeds(maps, count)
    roles = finite_nets.mean_field_rates(make_module, [int(nets["width"].values[0])], optimiser="adam")
    of_parameter = {one.name: one.role for each in roles.at.values() for one in each}
    ds = xr.Dataset({name: value.reset_coords(drop=True) for name, value in found.items()})
    ds = ds.assign_coords(
        module=("layer", nets["module"].values),
        role=("parameter", [of_parameter[name] for name in nets["parameter"].values]),
        time=("step", nets["time"].values),
    )
    ds.attrs = style.provenance(nets) | {"seeds": count, "tolerance": tolerance, "sample": sample, "output": output}
    return ds


def _over_seeds(values: xr.DataArray, count: int) -> tuple[xr.DataArray, xr.DataArray]:
    return values.mean("seed"), values.std("seed", ddof=1) / np.sqrt(count)


def _ensembles(nets: xr.Dataset) -> dict[str, xr.DataArray]:
    """What an ensemble removes of the test loss, and what it leaves above the ensemble of the widest."""
    parts = comparisons.bias_variance(nets=nets)
    infinite, se = (parts[f"test_loss_infinite{end}"] for end in ("", "_se"))
    widest = {"width": int(np.argmax(nets["width"].values))}
    left = infinite - infinite.isel(widest, drop=True)
    left_se = (se**2 + se.isel(widest, drop=True) ** 2) ** 0.5
    narrow = nets["width"].values != nets["width"].values.max()
    left, left_se = (each.isel(width=narrow).rename(width="narrow") for each in (left, left_se))
    named = {f"variance_part{end}": parts[f"test_loss_variance_part{end}"] for end in ("", "_se")}
    worth = {f"ensemble{end}": parts[f"test_loss_ensemble{end}"] for end in ("", "_se")}
    return named | worth | {"bias_left": left, "bias_left_se": left_se}


# ---- drawing ---------------------------------------------------------------------------------------------------------


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `make` returns."""
    return style.panels(draw, drawn(*results), (3, 3), SIZE)


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """Nine panels on nine axes."""
    panels = (_losses, _logit, _distances, _through_training, _cka, _densities, _ensemble, _weights)
    for panel, ax in zip(panels, axes.ravel(), strict=False):
        panel(ds, ax)
    (_maps if "attention" in ds else _sizes)(ds, axes.ravel()[-1])


def _colors(ds: xr.Dataset) -> dict[int, Any]:
    return style.width_colors(ds["width"].values.tolist())


def _losses(ds: xr.Dataset, ax: Axes) -> None:
    step = ds["step"].values
    for setting, line in LINES.items():
        for width, color in _colors(ds).items():
            row = ds.sel(data=setting, width=width)
            mean = row["test_loss_mean"].values, row["test_loss_mean_se"].values
            label = f"$N={width}$" if setting == "online" else None
            style.band(ax, step, *mean, color=color, linestyle=line, label=label)
    ax.plot([], [], "--", color="black", label="repeated")
    ax.set(xlabel="step $t$", ylabel="test loss", title="(a) test loss")
    ax.legend(fontsize=6)


def _logit(ds: xr.Dataset, ax: Axes) -> None:
    step = ds["step"].values
    for width, color in _colors(ds).items():
        row = ds.sel(data="repeated", width=width)
        mean, scatter = row["logit"].values, row["logit_scatter"].values
        style.band(ax, step, mean, scatter, color=color, label=f"$N={width}$")
    ax.set(xlabel="step $t$", ylabel="output of its class", title="(b) one test sample")


def _distances(ds: xr.Dataset, ax: Axes) -> None:
    last = ds.sel(data="repeated").isel(step=-1)
    for (name, (label, dim)), look in zip(DISTANCES.items(), style.SERIES, strict=False):
        exponent, se = last[f"{name}_exponent"].item(), last[f"{name}_exponent_se"].item()
        if np.isfinite(exponent):
            label = f"{label} ({style.in_brackets(exponent, se)})"
        style.resolved(ax, last[dim].values, last[name].values, last[f"{name}_se"].values, label=label, **look)
    ax.set(yscale="log", ylabel="relative distance of $f$", title="(c) distances (exponents)")
    style.width_axis(ax, ds["width"].values)
    style.room(ax, bottom=0.8)
    style.legend(ax, loc="lower left", fontsize=5.5)


def _through_training(ds: xr.Dataset, ax: Axes) -> None:
    step, colors = ds["step"].values, _colors(ds)
    for setting, line in LINES.items():
        for width in ds["narrow"].values.tolist():
            row = ds.sel(data=setting, narrow=width)
            mean = row["widest_error"].values, row["widest_error_se"].values
            style.band(ax, step, *mean, color=colors[width], linestyle=line)
            at = float(np.interp(row["onset"].item(), ds["time"].values, step))
            if np.isfinite(row["onset"].item()):
                ax.plot(at, ds.attrs["tolerance"], "v", color=colors[width], markersize=4)
    ax.axhline(ds.attrs["tolerance"], color="0.5", linestyle=":", linewidth=0.8)
    ax.set(xlabel="step $t$", ylabel="relative distance of means", title="(d) onset", ylim=(0, None))


def _cka(ds: xr.Dataset, ax: Axes) -> None:
    last = ds.sel(data="repeated").isel(step=-1)
    for i, look in zip(range(ds.sizes["layer"]), style.SERIES, strict=False):
        row = last.isel(layer=i)
        label = str(row["module"].item())
        ax.errorbar(last["narrow"].values, row["cka"].values, row["cka_se"].values, label=label, **look)
    style.width_axis(ax, ds["narrow"].values)
    ax.set(ylabel="CKA with the widest", title="(e) representations")
    ax.legend()


def _densities(ds: xr.Dataset, ax: Axes) -> None:
    last = ds.sel(data="repeated").isel(layer=-1)
    for width, color in _colors(ds).items():
        row = last.sel(width=width)
        style.band(ax, ds["bin"].values, row["density"].values, row["density_se"].values, color=color)
    ax.set(xlabel=f"output of {last['module'].item()}", ylabel="density", title="(f) densities", ylim=(0, None))


def _ensemble(ds: xr.Dataset, ax: Axes) -> None:
    last = ds.sel(data="repeated").isel(step=-1)
    shown = {"variance_part": ("width", "removed"), "bias_left": ("narrow", "left")}
    for (name, (dim, label)), look in zip(shown.items(), style.SERIES, strict=False):
        style.resolved(ax, last[dim].values, last[name].values, last[f"{name}_se"].values, label=label, **look)
    ax.set(yscale="log", ylabel="test loss", title="(g) ensembles of networks")
    style.width_axis(ax, ds["width"].values)
    ax.legend()


def _weights(ds: xr.Dataset, ax: Axes) -> None:
    last = ds.sel(data="repeated").isel(step=-1)
    for (role, marker), look in zip(ROLES.items(), style.SERIES, strict=False):
        chosen = last["role"].values == role
        for i, place in enumerate(np.flatnonzero(chosen)):
            y = last["weight_change"].isel(parameter=place).values
            label = role if i == 0 else None
            ax.plot(ds["width"].values, y, color=look["color"], marker=marker, linewidth=0.8, label=label, markersize=3)
    ax.set(yscale="log", ylabel=r"$|\theta-\theta_0|/|\theta_0|$", title="(h) change of parameters")
    style.width_axis(ax, ds["width"].values)
    ax.legend(fontsize=6)


def _sizes(ds: xr.Dataset, ax: Axes) -> None:
    last = ds.sel(data="repeated").isel(step=-1)
    for i, look in zip(range(ds.sizes["layer"]), style.SERIES, strict=False):
        row = last.isel(layer=i)
        for name, line in (("activation_size", "-"), ("activation_change", "--")):
            label = str(row["module"].item()) if line == "-" else None
            ax.plot(ds["width"].values, row[name].values, linestyle=line, label=label, **look)
    ax.plot([], [], "--", color="black", label="change")
    style.width_axis(ax, ds["width"].values)
    ax.set(ylabel="root mean square", title="(i) sizes of layers", ylim=(0, None))
    ax.legend(fontsize=6)


def _maps(ds: xr.Dataset, ax: Axes) -> None:
    last = ds["attention"].sel(data="repeated")
    ends = [last.sel(width=width).values for width in (ds["width"].values.min(), ds["width"].values.max())]
    gap = np.full((ends[0].shape[0], 1), np.nan)
    ax.imshow(np.concatenate([ends[0], gap, ends[1]], axis=1), aspect="auto", cmap="viridis", vmin=0)
    ax.set(xlabel="position read", ylabel="position", title="(i) attention, narrow | wide", xticks=[], yticks=[])
    ax.grid(visible=False)
