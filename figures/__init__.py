"""One file a figure: `draw(comparison, axes)` puts numbers of a Dataset on axes and computes nothing.

python -m figures --list
python -m figures width_convergence --store results/demo --out results/width_convergence.png
"""
