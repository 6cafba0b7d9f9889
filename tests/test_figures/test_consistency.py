"""The study of consistency across widths, at its smallest."""

import numpy as np
import pytest
import torch

import dmft
from conftest import first_of
from figures import consistency, style

SMALL = {
    "widths": (4, 8, 16),
    "seeds": 8,
    "steps": 3,
    "batch": 4,
    "observed": (4, 8),
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module", params=first_of(reversed(consistency.NETWORKS)))
def study(request):
    torch.set_num_threads(1)
    if request.param == "resnet":
        data = dmft.load_task(
            "digits", classes=range(3), n_train=12, n_test=8, layout="image", normalize="standard", balanced=False
        )
    else:
        data = dmft.load_text("pydoc_topics", context=6, limit=400)
    return request.param, consistency.make(request.param, data, **SMALL)


def test_the_study_is_drawn_and_its_numbers_kept(study, tmp_path):
    network, ds = study
    paths = style.save(consistency.figure(ds), consistency.drawn(ds), tmp_path / network)
    assert [path.suffix for path in paths] == [".png", ".pdf", ".nc"]
    again = dmft.load(paths[2])
    assert ("attention" in again) == (network == "transformer")
    np.testing.assert_array_equal(again["widest"], ds["widest"])
    assert again["data"].values.tolist() == ["online", "repeated"]
    assert consistency.data(tmp_path if (tmp_path / "consistency.nc").exists() else _renamed(paths[2])).equals(again)


def _renamed(path):
    path.rename(path.with_name("consistency.nc"))
    return path.parent


def test_numbers_are_those_of_the_networks(study):
    network, ds = study
    assert (ds["test_loss_mean"].isel(step=0).std() < 1e-6).all()  # readouts start from zero
    assert (ds["cka"] <= 1).all()
    assert ds.sizes["narrow"] == ds.sizes["wider"] == 2
    if network == "transformer":
        np.testing.assert_allclose(ds["attention"].sum("key"), 1, rtol=1e-4)
        assert abs(ds["attention"].values[..., *np.triu_indices(6, 1)]).max() == 0


def test_data_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"network='transformer' takes a dmft.Text, not int"):
        consistency.make("transformer", 3)
    with pytest.raises(ValueError, match="network='perceptron' is unknown; choose one of resnet, transformer"):
        consistency.make("perceptron", 3)
