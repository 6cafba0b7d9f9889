"""Networks on chip: the kernel, its threads those of a CPU, against the trainer of perceptrons in float64."""

import ctypes
import dataclasses
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import dmft
import finite_nets
from conftest import first_of
from dmft.running import nvrtc as compiler
from dmft.specs import Problem
from finite_nets.device import chip, nvrtc
from finite_nets.device.mappings import LANES, Registers, Shape, Units, filled, nanoseconds, shape_of
from finite_nets.device.precision import PRECISIONS
from finite_nets.ensembles import on_chip
from finite_nets.ensembles.recording import Plan
from finite_nets.training.perceptrons import Trainer

EMULATED = Path(__file__).parents[1] / "emulated.h"
RNG = np.random.default_rng(0)
SEED, MEMBERS, STEPS, RECORDED = 5 + 2**40, torch.tensor([0, 2**31 + 7]), 4, (0, 1, 4)
KERNELS = ("feature_kernel", "gradient_kernel")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """Compiles the kernel for a CPU: `chip.Chip.launch` of such."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernel for a CPU with")
    folder = tmp_path_factory.mktemp("chip")

    def launch(its: chip.Chip, argument: chip.Arguments) -> None:
        defined = dict(its.defined)
        library = folder / ("_".join(map(str, defined.values())) + ".so")
        command = [compiler, "-std=c++20", "-w", "-shared", "-fPIC", "-pthread", f"-I{chip.SOURCE.parent}"]
        command += [f"-D{name}={value}" for name, value in defined.items()]
        if not library.exists():
            subprocess.run([*command, "-x", "c++", EMULATED, "-o", library], check=True)
        ctypes.CDLL(library).launch(ctypes.byref(argument))

    return launch


def task(trained, samples=None):
    x, y = RNG.standard_normal((samples or trained, 9)), np.sign(RNG.standard_normal(samples or trained))
    return dmft.Task(x[:trained], y[:trained], *((x[trained:], y[trained:]) if samples else ()))


# width, network, task, training, loss, mapping
DATA, DESCENT = task(3), dmft.GradientDescent(0.3, STEPS)
CASES = {
    "32, tanh": (32, dmft.MLP(2), DATA, DESCENT, "squared", Registers(1, 4, 1)),
    "28, softplus, test samples": (
        28,
        dmft.MLP(2, dmft.softplus(1.3)),
        task(3, 5),
        DESCENT,
        "squared",
        Registers(2, 4, 1),
    ),
    "32, one layer": (32, dmft.MLP(1, dmft.relu()), task(4), DESCENT, "logistic", Registers(1, 4, 1)),
    "64, decay": (
        64,
        dmft.MLP(3, dmft.gelu(), weight_variance=(0.5, 1.0, 2.0, 1.5)),
        task(5, 7),
        dmft.GradientDescent((0.3, 0.2, 0.1, 0.1), STEPS, weight_decay=0.05),
        "hinge",
        Registers(4, 8, 1),
    ),
    "60, frozen": (
        60,
        dmft.MLP(2, dmft.tanh(0.8), frozen=(0,)),
        task(3),
        DESCENT,
        "squared",
        Registers(2, 8, 1),
    ),
    "44 of 48, units, test samples": (
        44,
        dmft.MLP(3, dmft.softplus(1.3), weight_variance=(0.5, 1.0, 2.0, 1.5)),
        task(11, 20),
        dmft.GradientDescent((0.3, 0.2, 0.1, 0.1), STEPS, weight_decay=0.05),
        "logistic",
        Units(3, 2, 3, 1),
    ),
    "64, units, one band": (64, dmft.MLP(3), task(11, 14), DESCENT, "squared", Units(2, 1, 2, 1)),
    # without samples that are trained on in the last of three, which is half
    "64, units, three bands": (64, dmft.MLP(2, dmft.erf()), task(18, 33), DESCENT, "squared", Units(5, 1, 2, 1)),
    "32, units, groups of bands": (32, dmft.MLP(2), task(20, 33), DESCENT, "squared", Units(5, 2, 1, 1)),
    "128, erf": (128, dmft.MLP(2, dmft.erf()), task(3), DESCENT, "squared", Registers(8, 8, 1)),
}


def planned(name):
    width, network, data, training, loss, mapping = CASES[name]
    problem = Problem(network, data, training, loss)
    recorded = {*KERNELS, "ntk", "participation_ratio", "prediction"}
    plan = Plan(problem, np.array(RECORDED), frozenset(recorded))
    return plan, width, mapping


BY_UNITS = [name for name in CASES if "units" in name]


@pytest.mark.parametrize("name", first_of(BY_UNITS) + first_of([name for name in CASES if name not in BY_UNITS]))
def test_networks_on_chip_are_those_of_the_trainer(monkeypatch, emulated, name):
    plan, width, mapping = planned(name)
    assert on_chip.reason_against(plan, PRECISIONS["float32"]) == ""
    trainer = Trainer(plan.problem, torch.device("cpu"), PRECISIONS["float64"])
    monkeypatch.setattr(chip.Chip, "launch", emulated)
    units = isinstance(mapping, Units)
    padded = filled(width, 16) if units else 1 << max(5, (width - 1).bit_length())
    shape = Shape(padded, plan.problem.network.depth, mapping, kernels=bool(plan.of_passes))
    made = chip.Chip(on_chip.job(plan, trainer, width), shape, torch.device("cpu"))
    run = on_chip.OnChip(plan, trainer, made, MEMBERS, SEED)
    found = list(run.recorded())
    assert torch.isinf(run.exploded_at).all()
    with torch.inference_mode():
        state = trainer.start(width, MEMBERS, SEED, STEPS)
        recorder = plan.recorder(trainer, state)
        expected = [one for fields in trainer.run(state, frozenset(RECORDED)) for one in recorder.step(fields)]
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (variable, ours), (_, theirs) in zip(found, expected, strict=True):
        # float32 through four steps; sums of some hundred terms
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6 * float(abs(theirs).max()), err_msg=variable)


@pytest.mark.parametrize("keep", ["members", "moments"])
def test_ensembles_on_chip_are_those_of_the_trainer(monkeypatch, emulated, keep):
    plan, width, mapping = planned("32, tanh")
    arguments = {"widths": [width], "seeds": 5, "keep": keep, "block": 3 if keep == "moments" else None}
    arguments["device"] = "cpu"
    arguments |= {"save_steps": RECORDED, "observables": (*KERNELS, "loss", "prediction", "ntk", "participation_ratio")}
    expected = finite_nets.train_ensemble(plan.problem, dtype="float64", **arguments)
    monkeypatch.setattr(chip.Chip, "launch", emulated)
    # float64, which a chip does not have, goes the other way
    monkeypatch.setattr(on_chip, "served", lambda *_: Shape(32, 2, mapping, kernels=True))
    found = finite_nets.train_ensemble(plan.problem, **arguments)
    for name in expected.data_vars:
        scale = float(abs(expected[name]).max())
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)
    name = "ntk" if keep == "members" else "ntk_mean"
    assert abs(found[name] - expected[name]).max() > 0


@pytest.mark.filterwarnings("ignore:.*diverge")
def test_networks_that_explode_on_chip_are_left_out(monkeypatch, emulated):
    _, width, mapping = planned("32, tanh")
    problem = Problem(dmft.MLP(2, dmft.relu()), DATA, dmft.GradientDescent(2.7, STEPS))
    arguments = {
        "widths": [width],
        "seeds": 12,
        "keep": "moments",
        "block": 6,
        "observables": ["loss"],
        "device": "cpu",
    }
    expected = finite_nets.train_ensemble(problem, **arguments)
    monkeypatch.setattr(chip.Chip, "launch", emulated)
    monkeypatch.setattr(on_chip, "served", lambda *_: Shape(32, 2, mapping))
    found = finite_nets.train_ensemble(problem, **arguments)
    assert 0 < expected["count"].sum() < 12
    assert int(found["count"].sum()) == int(expected["count"].sum())
    np.testing.assert_allclose(found.loss_mean, expected.loss_mean, rtol=1e-2)  # the unhealthy amplify rounding


def test_machine_code_is_kept_and_made_anew_of_another_source(monkeypatch, tmp_path):
    source, made = tmp_path / "some.cu", []
    source.write_text("one")
    monkeypatch.setattr(compiler, "compiled", lambda text, *_: made.append(text) or b"code of " + text)

    def asked(*options):
        compiler.kept.cache_clear()  # as in another process
        return compiler.kept(source, options, "13.0")

    monkeypatch.setenv("DMFT_COMPILE_CACHE", str(tmp_path / "kept"))
    assert asked("-a") == asked("-a") == b"code of one"
    assert made == [b"one"]
    asked("-b")
    source.write_text("two")
    assert asked("-a") == b"code of two"
    assert made == [b"one", b"one", b"two"]
    for file in (tmp_path / "kept").iterdir():  # as by a disk that was full
        file.write_bytes(file.read_bytes()[:-1])
    assert asked("-a") == asked("-a") == b"code of two"
    assert made == [b"one", b"one", b"two", b"two"]
    monkeypatch.setenv("DMFT_COMPILE_CACHE", "off")
    asked("-a")
    assert len(made) == 5
    compiler.kept.cache_clear()


def test_where_the_kernel_is_not_compiled_networks_are_trained_otherwise(monkeypatch):
    plan, width, _ = planned("32, tanh")
    monkeypatch.setattr(on_chip, "have_kernels", lambda _: True)
    monkeypatch.setattr(nvrtc, "available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: None)  # of a PyTorch that does not say

    def fails(*_):
        raise RuntimeError("chip.cu was not compiled: no reason")

    monkeypatch.setattr(chip, "_kernel", fails)
    chip.compiles.cache_clear()
    with pytest.warns(UserWarning, match="not trained on chip: chip.cu was not compiled"):
        assert on_chip.served(plan, PRECISIONS["float32"], torch.device("cpu"), width) is None
    chip.compiles.cache_clear()

    def lacks_memory(*_):
        raise torch.OutOfMemoryError("CUDA: out of memory")

    monkeypatch.setattr(chip, "_kernel", lacks_memory)
    with pytest.raises(torch.OutOfMemoryError):  # which is no reason for ever
        chip.compiles((), torch.device("cpu"))
    monkeypatch.setattr(chip, "_kernel", lambda *_: None)
    assert on_chip.served(plan, PRECISIONS["float32"], torch.device("cpu"), width) is not None
    chip.compiles.cache_clear()


# of an H200, two hidden layers: by neurons and eights, the fastest first (tests/benchmarks/RESULTS.md)
MEASURED = {
    (32, 2): {(1, 1, 12): 3.2, (1, 1, 16): 3.4, (1, 1, 20): 3.6},
    (64, 2): {(1, 2, 6): 9.4, (1, 4, 4): 10.6, (1, 4, 5): 10.8},
    (64, 3): {(2, 2, 4): 15.1, (2, 4, 3): 16.9, (2, 2, 6): 17.2},
    (80, 3): {(2, 5, 4): 25.7, (2, 5, 3): 26.4, (2, 5, 2): 29.1},
    (96, 6): {(1, 2, 2): 72.8, (1, 3, 2): 81.1, (1, 6, 1): 86.0},
    (128, 3): {(2, 4, 2): 48.6, (2, 8, 2): 55.0, (1, 4, 2): 62.6},
    (128, 5): {(3, 8, 1): 94.2, (1, 4, 1): 100.4, (2, 8, 1): 131.2},
}


@pytest.mark.parametrize(("padded", "eights"), MEASURED)
def test_foreseen_times_are_those_measured(padded, eights):
    measured = MEASURED[padded, eights]
    foreseen = [nanoseconds(Shape(padded, 2, Units(eights, *its))) for its in measured]
    np.testing.assert_allclose(foreseen, list(measured.values()), rtol=0.25)
    assert foreseen[0] == min(foreseen)
    fastest = shape_of(padded, 2, 8 * eights, 8 * eights, 227 * 1024, kernels=False)
    assert fastest is not None
    assert fastest.mapping == Units(eights, *next(iter(measured)))


def test_mappings():
    room = 227 * 1024
    few = shape_of(100, 2, 3, 3, room, kernels=True)
    assert few is not None
    assert (few.padded, type(few.mapping)) == (128, Registers)
    found = {samples: shape_of(64, 2, samples, samples, room, kernels=False) for samples in (3, 4, 5, 8, 9, 16, 60)}
    by_units = [samples for samples, shape in found.items() if shape and isinstance(shape.mapping, Units)]
    assert by_units == [5, 8, 9, 16, 60]
    many = shape_of(100, 2, 16, 16, room, kernels=True)
    assert many is not None
    assert (many.padded, type(many.mapping)) == (112, Units)
    # two matrices of 128 rows beside fields of 64 samples, as they just fit
    whole = shape_of(128, 3, 64, 64, room, kernels=False)
    assert whole is not None
    assert isinstance(whole.mapping, Units)
    # of a card without tensor units for TF32, and of one with less shared memory
    for other in (
        shape_of(128, 2, 32, 32, room, kernels=False, units=False),
        shape_of(128, 2, 12, 12, 48 * 1024, kernels=False),
    ):
        assert other is not None
        assert isinstance(other.mapping, Registers)
    # fewer blocks where a multiprocessor has less of it
    usual, less = (shape_of(64, 2, 60, 60, 99 * 1024, kernels=False, resident=1024 * n) for n in (228, 100))
    assert usual is not None
    assert less is not None
    assert less.mapping.blocks * (less.shared_bytes(60, 60) + 1024) <= 100 * 1024
    assert usual.mapping.blocks > less.mapping.blocks
    for shape, samples in ((few, 3), (many, 16), (whole, 64)):
        assert shape.shared_bytes(samples, samples) <= room
    for width in range(4, 132, 4):
        for samples in range(1, 65):
            shape = shape_of(width, 2, samples, samples, room, kernels=width % 8 == 0)
            assert shape is not None
            assert shape.padded >= width
            assert shape.rows(samples) >= samples
            assert LANES * shape.mapping.warps <= 1024
            assert shape.mapping.blocks * (shape.shared_bytes(samples, samples) + 1024) <= 228 * 1024
            assert sorted({*shape.mapping.places(samples)}) == sorted(shape.mapping.places(samples))
            assert max(shape.mapping.places(samples)) < shape.rows(samples)
    for refused in (
        shape_of(132, 2, 3, 3, room, kernels=False),
        shape_of(30, 2, 3, 3, room, kernels=False),  # quads of normals lie across rows
        shape_of(64, 2, 17, 3, room, kernels=True, units=False),
        shape_of(32, 2, 17, 3, room, kernels=False, units=False),
        shape_of(128, 2, 48, 48, room, kernels=False, units=False),
        shape_of(64, 2, 65, 65, room, kernels=False),
        shape_of(128, 4, 24, 24, room, kernels=False),
    ):
        assert refused is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"network": dmft.ResidualMLP(2)}, "ResidualMLP"),
        ({"network": dmft.MLP(2, bias=0.5)}, "biases"),
        ({"training": dmft.GradientDescent(0.3, STEPS, momentum=0.5)}, "GradientDescent"),
        ({"training": dmft.Adam(0.3, STEPS)}, "Adam"),
        ({"training": dmft.GradientFlow(1.0, (0.5, 1.0))}, "GradientFlow"),
        ({"training": dmft.GradientDescent(0.3, STEPS, batches=((0,), (1,), (2,), (0,)))}, "batches"),
        ({"task": dmft.Task(np.eye(3), np.eye(3))}, "several outputs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_chip_does_not_have_is_named(changed, reason):
    plan, _, _ = planned("32, tanh")
    plan = dataclasses.replace(plan, problem=dataclasses.replace(plan.problem, **changed))
    assert reason in on_chip.reason_against(plan, PRECISIONS["float32"])


def test_observables_and_precisions_that_a_chip_does_not_have_are_named():
    plan, _, _ = planned("32, tanh")
    for more, reason in (
        ({"observables": frozenset({"preactivation_kernel"})}, "preactivation_kernel"),
        ({"observables": frozenset({"sharpness"})}, "Hessian"),
        ({"two_time": True}, "kernels between steps"),
    ):
        assert reason in on_chip.reason_against(dataclasses.replace(plan, **more), PRECISIONS["float32"])
    for dtype in ("float64", "bf16"):
        assert dtype in on_chip.reason_against(plan, PRECISIONS[dtype])
