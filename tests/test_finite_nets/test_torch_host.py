"""No setting of PyTorch that the host program makes changes a network, or stops its training; all are put back."""

import contextlib
import sys

import numpy as np
import pytest
import torch
import xarray as xr

import dmft
import finite_nets
from finite_nets.device.host import PRODUCTS

TASK = dmft.Task([[1.0, 0.2], [0.1, -1.0], [0.5, 0.5]], [1.0, -1.0, 1.0])
PROBLEM = dmft.Problem(dmft.MLP(depth=2), TASK, dmft.GradientDescent(0.5, steps=2))


def computed():
    ask = {"widths": [8], "seeds": 8}
    members = finite_nets.train_ensemble(PROBLEM, **ask, observables=["loss", "feature_kernel", "sharpness"])
    moments = finite_nets.train_ensemble(PROBLEM, **ask, keep="moments", dtype="float64", covariance=True)
    return [members, moments, finite_nets.neurons(PROBLEM, widths=[8], neurons=8)]


@pytest.fixture(scope="module")
def usual():
    return computed()


@contextlib.contextmanager
def everywhere(sets, value, before):
    sets(value)
    try:
        yield
    finally:
        sets(before)


def products(values):
    for place, value in zip(PRODUCTS, values, strict=True):
        place.fp32_precision = value


HOSTS = {
    "float64": lambda: everywhere(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: everywhere(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "a device without numbers": lambda: torch.device("meta"),
    "that device, by default": lambda: everywhere(torch.set_default_device, "meta", None),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic": lambda: everywhere(torch.use_deterministic_algorithms, True, False),
    "products": lambda: everywhere(torch.set_float32_matmul_precision, "medium", "highest"),
    "products, by newer names": lambda: everywhere(products, ("tf32", "bf16", "ieee"), ("none", "none", "tf32")),
    "denormals": lambda: everywhere(torch.set_flush_denormal, True, False),
    "NumPy": lambda: np.errstate(all="raise"),
}


def settings():
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        [getattr(place, "fp32_precision", None) for place in PRODUCTS],
        sys.float_info.min / 2 == 0,
        np.geterr(),
    )


@pytest.mark.parametrize("name", HOSTS)
def test_settings_of_the_host_change_nothing(name, usual):
    if name == "products, by newer names" and not hasattr(PRODUCTS[0], "fp32_precision"):
        pytest.skip("PyTorch before 2.9")
    with HOSTS[name]():
        before = settings()
        found = computed()
        assert settings() == before
    for one, other in zip(found, usual, strict=True):
        xr.testing.assert_equal(one, other)
