"""What models of random data have in common.

A model is one file here, found by its folder: a frozen dataclass with what it refuses, and where its two readings are.
Of linear models of spectra, whose limit is that of all sizes together (`dmft.random_data`), these are

    theory        of `dmft.solve`, a class derived from `dmft.random_data.theory.Theory`
    simulation    of `finite_nets.train_ensemble`, one derived from `finite_nets.random_data.network.Network`

each as "module:Class", one file a side.  Others name modules of their own, `solver` and `simulator`.

Results are losses and order parameters of two times; fields of neurons, kernels between samples and what 1/N adds to
them are not theirs, so that other readings of a problem refuse them, in one place: `RandomModel.sketch`.
"""

from __future__ import annotations

import importlib
from typing import Any

from dmft.specs import _check
from dmft.specs.networks.program import Architecture
from dmft.specs.networks.sketch import Sketch
from dmft.specs.random_data.data import RandomData
from dmft.specs.training import GradientFlow, Training


class RandomModel(Architecture):
    """What models of random data derive from.

    takes: the kinds of data that it is trained on, such as `such`.  sizes: what its networks differ in, as an argument.
    theory, simulation: where these are, "module:Class".  decays: whether the theory takes weights that decay.
    solver: the module whose `solve` finds the limit.  simulator: that whose `ensemble` trains members.
    """

    takes: tuple[type, ...] = (RandomData,)
    such = "dmft.RandomData(spectrum, samples=100)"
    sizes = "scales=[1, 2, 4, 8]"
    theory = ""
    simulation = ""
    decays = False
    solver = "dmft.random_data.solve"
    simulator = "finite_nets.random_data.ensemble"
    centered = False
    depth: int = 1
    sized = "scale"
    wilder: tuple[str, ...] = ()

    def reading(self, name: str) -> Any:
        """The class of its `theory` or `simulation`, which is loaded only now."""
        module, _, found = getattr(self, name).partition(":")
        return getattr(importlib.import_module(module), found)

    def sketch(self, shape: tuple[int, ...] = (1,)) -> Sketch:
        del shape
        raise ValueError(
            f"{type(self).__name__} is a model of random data, which has no program of neurons: there are dmft.solve, "
            f"finite_nets.train_ensemble(problem, {self.sizes}, seeds=...), comparisons.compare of these, and "
            "the functions of dmft.random_data."
        )

    def program(self, net: Any, x: Any) -> Any:
        del net, x
        return self.sketch()

    @property
    def dimensions(self) -> dict[str, int]:
        """Sizes of those that results have of it."""
        return {"layer": self.depth, "attention_layer": 0, "query": 0, "key": 0}

    def check(self, data: RandomData, training: Training) -> None:
        """ValueError for data and training that the theory of this model does not take."""
        if training.batches is not None or training.observe != "all":
            raise ValueError(
                "batches and observe are for tasks with samples of their own; of random data give RandomData(..., "
                "batch=B), with samples=P for batches that are drawn again."
            )
        training.require_linear("models of random data")
        if isinstance(training, GradientFlow):
            if data.batch is not None:
                raise ValueError(
                    f"batch={data.batch} has no gradient flow; leave it out, or take dmft.GradientDescent."
                )
        elif training.decays and not self.decays:
            raise ValueError(
                f"{type(training).__name__} lets weights decay, which the theory of {type(self).__name__} does not "
                "take; use weight_decay=0."
            )


def check_features(model: Any) -> None:
    """The argument `features` of a model: a number of them, or None."""
    if model.features is not None:
        object.__setattr__(model, "features", _check.integer("features", model.features, minimum=1))
