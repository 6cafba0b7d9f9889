"""The figure of attention, made with few networks: heads differ less the wider they are, with alpha_A = 1 alone."""

import numpy as np
import pytest

from figures import attention


@pytest.mark.slow
def test_attention_is_drawn_of_what_was_computed(monkeypatch):
    for name, value in {"SEEDS": 40, "STEPS": 3, "DIMENSIONS": (4, 32)}.items():
        monkeypatch.setattr(attention, name, value)
    ds = attention.data(None)
    assert ds.head_variance.dims == ("exponent", "head_dim")
    ratio = (ds.head_variance.isel(head_dim=0) / ds.head_variance.isel(head_dim=1)).values
    assert 4 < ratio[0] < 16  # 1 / d: 8
    assert ratio[1] < 2
    drawn = attention.figure(ds)
    points = drawn.axes[2].containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(points, ds.head_variance.sel(exponent=1.0))
