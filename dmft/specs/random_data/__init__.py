"""High-dimensional random data: their spectra, and the models that are trained on them."""

from dmft.specs.random_data.spectra import Spectrum, isotropic, measured, power_law

__all__ = ["Spectrum", "isotropic", "measured", "power_law"]
