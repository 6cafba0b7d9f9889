"""What formulas of observables are written over: what a pass shows, to JAX and to PyTorch alike.

The limit and its samples (`dmft.engine.shown`) and networks (`finite_nets.training.observables`) implement it.  "..."
are axes that they lead with: networks side by side, or none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from dmft.schema.observable import Observable
from dmft.schema.registry import registered

Fields = Sequence[Any]


class Seen(ABC):
    """What a pass has shown of the observed samples, before the update of its step.

    xp: jax.numpy or torch.
    targets: (sample, output).
    preactivations, features, gradients: of every layer, for `inner`; events of gradients are samples, with their
        outputs.  Of linear networks in the limit these are linear forms: nothing but sums and `inner` is known of them.
    """

    xp: Any
    targets: Any

    def __init__(self, train: slice) -> None:
        self._train = train
        self._found: dict[str, Any] = {}

    @property
    def train(self) -> slice:
        """Which of the samples are trained on; ValueError if none is."""
        if self._train.stop == 0:
            raise ValueError(
                'a formula asks for seen.train, and observe="test" shows none of the samples that are trained on; '
                "write it over all samples that are shown, or leave it out."
            )
        return self._train

    def __getitem__(self, name: str) -> Any:
        """Another observable of passes, found once: (..., [layer,] [event, event_2])."""
        known = {one.name: one for one in registered() if one.of_pass}
        if name not in known:
            raise KeyError(f"{name!r} is no observable of passes; there are {', '.join(known)}.")
        return self.value(known[name])

    def value(self, one: Observable) -> Any:
        """The same, of the observable itself."""
        if one.name not in self._found:
            assert one.formula is not None
            self._found[one.name] = one.formula(self)
        return self._found[one.name]

    def require_gradients(self, there: bool) -> None:
        """ValueError unless the pass has gone back from every output."""
        if not there:
            raise ValueError('gradients and the NTK are there for observables that say needs="backward"; add that.')

    @property
    @abstractmethod
    def preactivations(self) -> Fields:
        """h."""

    @property
    @abstractmethod
    def features(self) -> Fields:
        """phi(h)."""

    @property
    @abstractmethod
    def gradients(self) -> Fields:
        """g = gamma0 N_p df/dh, N_p the neurons of the population of the layer."""

    @abstractmethod
    def inner(self, a: Fields, b: Fields, *, mean: bool = True) -> Any:
        """(..., layer, event, event_2): averages <a b> over neurons; over positions the mean, or their sum."""

    @abstractmethod
    def averages(self, name: str, function: Callable[[Any], Any] = lambda a: a) -> Any:
        """(..., use, sample, [position]): averages over units of what the program shows by this name
        (`dmft.specs.networks.program`), or of a function of it."""

    def preconditioned_kernel(self) -> Any:
        """K (..., event, event_2), of gradients times what they are multiplied by in the step that follows."""
        raise NotImplementedError(f"{type(self).__name__} shows none of optimisers with a preconditioner.")

    @abstractmethod
    def tangent_kernel(self) -> Any:
        """K (..., event, event_2): of all trained weights, sums of <g g> x . x', <g g> <v v>."""
