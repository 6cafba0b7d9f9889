"""Which quantities the page shows, and what it calls them."""

from __future__ import annotations

from comparisons.summary import LABELS
from dmft import schema

__all__ = ["CURVES", "KERNELS", "LABELS"]

CURVES = tuple(name for name, dims in schema.VARIABLES.items() if dims == ("step",))
KERNELS = {"feature_kernel": "Phi", "gradient_kernel": "G", "ntk": "NTK"}
