"""The JAX and the PyTorch formulas of every activation agree, and phi' is the derivative of phi."""

import jax
import numpy as np
import pytest
import torch
from scipy.special import erf

import dmft
import finite_nets.device.activations
from dmft.engine import activations
from dmft.limits import gaussian
from dmft.specs.activation import NAMES

ALL = [
    dmft.tanh(),
    dmft.tanh(0.4),
    dmft.relu(),
    dmft.erf(),
    dmft.gelu(),
    dmft.softplus(),
    dmft.softplus(3.0),
    dmft.linear(),
    dmft.tanh(0.5, scale=2.0),
    dmft.erf(1.7, scale=0.3),
    dmft.gelu(0.6, scale=1.98305826**0.5),
    dmft.softplus(2.0, scale=0.5),
    dmft.relu(scale=0.7),
    dmft.linear(scale=1.5),
]
H = np.concatenate([np.linspace(-6, 6, 101) + 0.013, [-40.0, 40.0]])

FORMULAS = {
    "tanh": lambda h, a: np.tanh(a * h) / a,
    "relu": lambda h, a: np.sqrt(2) * np.maximum(h, 0),
    "erf": lambda h, a: erf(a * h) / a,
    "gelu": lambda h, a: h * (1 + erf(a * h / np.sqrt(2))) / 2,
    "softplus": lambda h, a: np.logaddexp(0, a * h) / a,
    "linear": lambda h, a: h,
}


def test_every_activation_is_tested():
    assert {a.name for a in ALL} == set(NAMES) == set(FORMULAS)


@pytest.mark.parametrize("activation", ALL, ids=str)
def test_jax_and_torch_agree_with_the_formula_and_its_derivative(activation):
    function = finite_nets.device.activations.function(activation)
    h = torch.tensor(H, requires_grad=True)
    (slope,) = torch.autograd.grad(function(h)[0].sum(), h)
    with jax.enable_x64(True):
        jax_phi, jax_dphi = (np.asarray(f(jax.numpy.asarray(H))) for f in activations.functions(activation))
    # float64 rounding of functions of order 40
    same = {"rtol": 1e-12, "atol": 1e-13}
    np.testing.assert_allclose(jax_phi, activation.scale * FORMULAS[activation.name](H, activation.gain), **same)
    found, found_slope = function(h.detach())
    np.testing.assert_allclose(found, jax_phi, **same)
    np.testing.assert_allclose(found_slope, slope, **same)
    np.testing.assert_allclose(found_slope, jax_dphi, **same)


@pytest.mark.parametrize("activation", ALL, ids=str)
def test_both_second_derivatives_are_the_slope_of_the_first(activation):
    h = torch.tensor(H, requires_grad=True)
    (bend,) = torch.autograd.grad((finite_nets.device.activations.function(activation)(h)[1] + 0 * h).sum(), h)
    with jax.enable_x64(True):
        value, slope = activations.functions(activation)
        given = (jax.numpy.asarray(H),), (jax.numpy.ones_like(H),)
        ours = np.asarray(jax.jvp(slope, *given)[1])
        np.testing.assert_array_equal(jax.jvp(activations.differentiable(value, slope), *given)[1], slope(*given[0]))
    # float64 rounding
    np.testing.assert_allclose(
        finite_nets.device.activations.bend(activation)(h.detach()), bend, rtol=1e-11, atol=1e-12
    )
    np.testing.assert_allclose(ours, bend, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "activation", [dmft.erf(1.7, scale=0.3), dmft.relu(scale=0.7), dmft.linear(scale=1.5)], ids=str
)
def test_closed_forms_with_gain_and_scale_are_those_of_quadrature(activation):
    K = np.array([[1.3, 0.4], [0.4, 0.7]])
    closed = gaussian.gaussian_averages(activation, K)
    numerical = gaussian.quadrature(activation, K, 400)
    # the kink limits the rule for ReLU to about the square of its spacing
    tolerance = 2e-3 if activation.kinks else 1e-10
    for a, b in zip(closed, numerical, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)
