"""How the parameters move, one kind of optimiser a file; `recurrence` has what all of them are."""

from dmft.specs.training.batches import OBSERVE, Epochs, learning_rates, one_pass, random_batches
from dmft.specs.training.descent import GradientDescent
from dmft.specs.training.entrywise import Adam, ClippedDescent, Entrywise, Lion, RMSprop, SignDescent
from dmft.specs.training.flow import SCHEMES, GradientFlow
from dmft.specs.training.muon import Muon
from dmft.specs.training.normalized import NormalizedDescent
from dmft.specs.training.recurrence import Memory, Recurrence, Stepping, Training

__all__ = [
    "OBSERVE",
    "SCHEMES",
    "Adam",
    "ClippedDescent",
    "Entrywise",
    "Epochs",
    "GradientDescent",
    "GradientFlow",
    "Lion",
    "Memory",
    "Muon",
    "NormalizedDescent",
    "RMSprop",
    "Recurrence",
    "SignDescent",
    "Stepping",
    "Training",
    "learning_rates",
    "one_pass",
    "random_batches",
]
