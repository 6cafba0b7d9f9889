"""Sweeps over problems and widths: their plan, the store they fill, who executes them, and how they are read."""
