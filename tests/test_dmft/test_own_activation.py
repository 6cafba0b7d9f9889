"""Activations of one's own: formulas for NumPy, JAX and PyTorch at once, on both sides."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import dmft
import finite_nets
from conftest import reference_problem


def own_tanh(xp, h):
    return xp.tanh(h)


def own_tanh_slope(xp, h):
    return 1 - xp.tanh(h) ** 2


def leaky(xp, h):
    return xp.where(h > 0, h, 0.2 * h)


def leaky_slope(xp, h):
    return xp.where(h > 0, 1 + 0 * h, 0.2 + 0 * h)


def centered(xp, h):  # noqa: ARG001
    return h - h.mean()


def growing(xp, h):
    return xp.exp(h)


LEAKY = dmft.activation(leaky, leaky_slope, kinks=[0.0])


def problem(activation, depth=2):
    described = reference_problem()
    return replace(described, network=dmft.MLP(depth, activation), training=dmft.GradientDescent(0.5, 4))


@pytest.mark.slow
def test_a_formula_of_ones_own_is_as_good_as_the_built_in_one():
    mine, theirs = dmft.activation(own_tanh, own_tanh_slope, gain=0.8), dmft.tanh(0.8)
    names = ["prediction", "ntk", "sharpness"]
    limits = [dmft.solve(problem(a), particles=256, scrambles=2, observables=names) for a in (mine, theirs)]
    nets = [
        finite_nets.train_ensemble(problem(a), widths=[16], seeds=3, observables=names, dtype="float64")
        for a in (mine, theirs)
    ]
    lazy = [dmft.lazy_limit(problem(a)) for a in (mine, theirs)]
    for one, other in (limits, nets, lazy):
        for name in set(names) & set(one.data_vars):
            # rounding, which the iteration for the sharpness amplifies
            np.testing.assert_allclose(one[name], other[name], rtol=1e-6 if name == "sharpness" else 1e-11, atol=1e-12)
    assert mine.smooth
    assert problem(mine).problem_id != problem(theirs).problem_id


def test_a_kink_of_ones_own_in_the_limit_and_in_networks():
    described = problem(LEAKY)
    assert not LEAKY.smooth
    theory = dmft.solve(described, particles=1024, scrambles=4, observables=["prediction"])
    nets = finite_nets.train_ensemble(described, widths=[32, 64], seeds=1500, observables=["prediction"])
    f = nets.prediction.astype(float)
    mean, se = f.mean("seed"), f.std("seed", ddof=1) / np.sqrt(1500)
    extrapolated = 2 * mean.sel(width=64) - mean.sel(width=32)
    error = np.sqrt(4 * se.sel(width=64) ** 2 + se.sel(width=32) ** 2 + theory.prediction_se**2)
    z = ((extrapolated - theory.prediction) / error).isel(step=slice(1, None))
    # entries are correlated: a root mean square of 2 is far out
    assert np.sqrt((z**2).mean()) < 2
    wrong = dmft.solve(problem(dmft.linear()), observables=["prediction"])
    assert np.sqrt((((extrapolated - wrong.prediction) / error).isel(step=slice(1, None)) ** 2).mean()) > 5
    assert dmft.activation(leaky, leaky_slope, kinks=[0.0]) == LEAKY


def test_it_is_part_of_a_problem_and_found_again_by_its_name():
    described = problem(dmft.activation(leaky, leaky_slope, kinks=[0.0], gain=2.0, scale=0.5))
    text = described.to_json()
    assert dmft.Problem.from_json(text) == described
    assert dmft.Problem.from_json(text).problem_id == described.problem_id
    with pytest.raises(ValueError, match="has changed since this was written"):
        dmft.Problem.from_json(text.replace('"sha256": "', '"sha256": "0', 1))
    with pytest.raises(ValueError, match="`import nowhere` first"):
        dmft.Problem.from_json(text.replace(f"{__name__}:", "nowhere:"))
    with pytest.raises(ValueError, match="no function gone"):
        dmft.Problem.from_json(text.replace(':leaky"', ':gone"'))


def test_built_in_activations_are_described_as_before():
    assert dmft.tanh(0.8).described() == {"name": "tanh", "gain": 0.8}
    assert dmft.relu().described() == {"name": "relu", "gain": 1.0}
    assert dmft.gelu(scale=2.0).described() == {"name": "gelu", "gain": 1.0, "scale": 2.0}
    assert reference_problem().problem_id == "9e4f3c2df84c537d"


@pytest.mark.parametrize(
    ("formula", "derivative", "kinks", "error", "message"),
    [
        (leaky, leaky_slope, [], ValueError, "name its kinks"),
        (own_tanh, leaky_slope, [], ValueError, "the derivative given for .*own_tanh"),
        (centered, own_tanh_slope, [], ValueError, "on each by itself"),
        (growing, growing, [], ValueError, "finite up to"),
        (lambda xp, h: h, leaky_slope, [], TypeError, "no lambda"),
        (own_tanh, 3.0, [], TypeError, "cannot be found again"),
    ],
)
def test_what_is_no_activation_is_refused(formula, derivative, kinks, error, message):
    with pytest.raises(error, match=message):
        dmft.activation(formula, derivative, kinks=kinks)


def test_homogeneous_activations_have_no_gain():
    for name in ("relu", "linear"):
        with pytest.raises(ValueError, match="has no gain"):
            dmft.Activation(name, gain=2.0)


def test_linear_networks_with_a_scale_are_exact():
    described = replace(problem(dmft.linear(scale=1.4)), training=dmft.GradientDescent(0.1, 4))
    exact = dmft.solve(described, observables=["prediction"])
    assert "exact" in exact.attrs["method"]
    nets = finite_nets.train_ensemble(described, widths=[128], seeds=800, observables=["prediction"]).prediction
    off = (nets.mean("seed") - exact.prediction).isel(width=0, step=-1)
    # five standard errors, and a bias of order 1/128
    assert (abs(off) < 5 * nets.isel(width=0, step=-1).std("seed") / np.sqrt(800) + 0.02).all()
    plain = replace(described, network=dmft.MLP(2, dmft.linear()))
    assert abs(exact.prediction - dmft.solve(plain, observables=["prediction"]).prediction).max() > 0.05


@pytest.mark.slow
def test_sweeps_in_other_processes_find_it(tmp_path):
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import dmft, finite_nets, test_own_activation as own
if __name__ == "__main__":
    finite_nets.sweep([own.problem(own.LEAKY)], [8], 4, store={str(tmp_path / "s")!r}, executor="pool", progress=False)
    print(finite_nets.open_store({str(tmp_path / "s")!r}, problem=own.problem(own.LEAKY)).sizes["width"])
"""
    path = tmp_path / "run.py"
    path.write_text(code)
    ran = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "1", ran.stderr[-2000:]
