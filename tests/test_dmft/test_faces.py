"""What notebooks show: tables that are well formed, escaped, and say what matters."""

import pickle
from html.parser import HTMLParser

import numpy as np
import pytest

import comparisons
import dmft
import finite_nets
from conftest import reference_problem


class Reader(HTMLParser):
    """Fails for tags that do not close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attrs):  # noqa: ARG002
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader.text


def test_problems_and_tasks():
    x = np.random.default_rng(0).standard_normal((40, 7))
    task = dmft.Task(x, np.sign(x[:, 0]), provenance={"name": "<b>mine</b>", "seed": 3})
    batches = dmft.random_batches(40, size=4, steps=30)
    training = dmft.GradientDescent(np.linspace(0.1, 1, 30), 30, batches=batches)
    problem = dmft.Problem(dmft.MLP(3, dmft.relu(), 0.25), task, training)
    shown = read(problem._repr_html_())
    for text in ("MLP", "relu", "0.25", "GradientDescent", "30", problem.problem_id, "<b>mine</b>"):
        assert text in shown
    assert "<b>mine" not in problem._repr_html_()
    assert len(shown) < 1500  # neither batches nor data
    assert "40" in (shown := read(task._repr_html_()))
    assert "-1, 1" in shown.replace(".0", "")
    assert task.sha256[:12] in shown


def test_a_summary_is_its_text_and_shows_as_tables():
    problem = dmft.Problem(dmft.MLP(1, dmft.linear()), reference_problem().task, dmft.GradientDescent(0.2, 2))
    nets = finite_nets.train_ensemble(problem, widths=[16, 32, 64], seeds=32, observables=["prediction", "loss"])
    summary = comparisons.summary(comparisons.compare(dmft.solve(problem, observables=["prediction", "loss"]), nets))
    assert "Falls with width N like N^s" in summary
    assert str(pickle.loads(pickle.dumps(summary))) == summary
    shown = read(summary._repr_html_())
    for text in ("prediction f", "16", "32", "64", problem.problem_id, "(-1 expected)"):
        assert text in shown


@pytest.mark.parametrize("of", ["solve", "fluctuations"])
def test_plans(of, tmp_path):
    problem = dmft.Problem(dmft.MLP(1, dmft.linear()), reference_problem().task, dmft.GradientDescent(0.2, 2))
    plan = dmft.plan(problem, of)
    for text in (problem.problem_id, "exact linear forms", "directions", "memory", "compile"):
        assert text in read(plan._repr_html_())
        assert text in str(plan)
    sweep = finite_nets.plan_sweep(problem, [8], 16, store=tmp_path / "store", devices=["cpu"])
    assert "16 networks to train" in read(sweep._repr_html_())
