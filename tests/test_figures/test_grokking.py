"""The figures of grokking and overtraining, made small."""

import pytest

from figures import grokking, overtraining, style

SMALL = {"particles": 64, "scrambles": 2}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # few particles
def test_grokking(monkeypatch, tmp_path):
    monkeypatch.setattr(grokking, "STEPS", 30)
    monkeypatch.setattr(grokking, "LAZINESS", (0.5, 2.0))
    monkeypatch.setattr(grokking, "RICHNESS", {"teacher": (0.5,), "digits": (1.0,)})
    monkeypatch.setattr(grokking, "teacher", lambda g: TEACHER(g, dimension=5, samples=12, tests=6, steps=9))
    monkeypatch.setattr(grokking, "digits", lambda g: DIGITS(g, samples=12, tests=6, steps=9))
    ds = grokking.make(width=32, seeds=2, **SMALL)
    assert len(style.save(grokking.figure(ds), grokking.drawn(ds), tmp_path / "grokking")) == 3
    parts = ds["early_offset_error"] + ds["early_misalignment"] + ds["early_linear_power"]
    assert abs(parts - ds["early_test_loss"]).max() < 1e-12
    assert (ds["teacher_loss"][:, -1] < ds["teacher_loss"][:, 0]).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # few particles
def test_overtraining(monkeypatch, tmp_path):
    monkeypatch.setattr(overtraining, "REVERSED", (0, 5))
    monkeypatch.setattr(overtraining, "RELEARNED", 20)
    ds = overtraining.make(width=32, seeds=2, numerics=SMALL, samples=20, tests=4, steps=12)
    assert len(style.save(overtraining.figure(ds), overtraining.drawn(ds), tmp_path / "overtraining")) == 3
    assert ds["reversal_steps"].sel(case="rich, hinge").isnull().all()
    assert (ds["feature_margin"].isel(step=-1) >= ds["feature_margin"].isel(step=0)).all()


TEACHER, DIGITS = grokking.teacher, grokking.digits
