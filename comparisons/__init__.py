"""From two results of the same problem to what they say about width.

    comparison = comparisons.compare(theory, nets)
    print(comparisons.summary(comparison))

`estimators` and `scaling` are NumPy on plain arrays; `compare` is their face on labelled Datasets.
"""

from comparisons.compare import compare
from comparisons.summary import summary

__all__ = ["compare", "summary"]
