"""High-dimensional random data: their spectra, and the models that are trained on them."""

from dmft.specs.random_data.data import RandomData, RandomSource
from dmft.specs.random_data.models import DeepLinear, ProjectedLinear, RandomFeatures, RandomModel
from dmft.specs.random_data.quadratic import QuadraticPerceptron, QuadraticTeacher
from dmft.specs.random_data.spectra import Spectrum, isotropic, measured, power_law

__all__ = [
    "DeepLinear",
    "ProjectedLinear",
    "QuadraticPerceptron",
    "QuadraticTeacher",
    "RandomData",
    "RandomFeatures",
    "RandomModel",
    "RandomSource",
    "Spectrum",
    "isotropic",
    "measured",
    "power_law",
]
