"""Numbers of every reading are those that were frozen (`tests/golden/cases.py`)."""

import numpy as np
import pytest

from golden import cases

# sharpness comes out of an iteration that rounding steers
TOLERANCES = {"sharpness": 1e-5}
# of what is float32, whose order of sums PyTorch chooses by version and CPU
SINGLE = 8 * float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def frozen():
    return dict(np.load(cases.NUMBERS))


@pytest.mark.parametrize("name", list(cases.problems()))
def test_identities_are_those_that_were_frozen(name, frozen):
    assert cases.problems()[name].problem_id == str(frozen[f"{name}/problem_id"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the weight matrices met", "ignore:standard errors of")
@pytest.mark.parametrize(("name", "reading"), cases.cases())
def test_numbers_are_those_that_were_frozen(name, reading, frozen):
    found = cases.numbers(name, reading)
    prefix = f"{name}/{reading}/"
    expected = {key.removeprefix(prefix): value for key, value in frozen.items() if key.startswith(prefix)}
    assert found.keys() >= expected.keys()  # further variables may come
    for key, value in expected.items():
        scale = np.abs(value[np.isfinite(value)]).max(initial=0.0) or 1.0
        tolerance = TOLERANCES.get(key.removesuffix("_se"), SINGLE if value.dtype == np.float32 else 1e-8)
        np.testing.assert_allclose(found[key], value, rtol=0, atol=tolerance * scale, err_msg=key)
