"""High-dimensional random data: their spectra, and the models that are trained on them."""

from dmft.specs.random_data.data import RandomData, RandomSource
from dmft.specs.random_data.deep_linear import DeepLinear
from dmft.specs.random_data.features import RandomFeatures
from dmft.specs.random_data.models import RandomModel
from dmft.specs.random_data.projected import ProjectedLinear
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
