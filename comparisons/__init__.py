"""From two results of the same problem to what they say about width.

    comparison = comparisons.compare(theory, nets)
    print(comparisons.summary(comparison))

Networks are all at hand, or known by moments over blocks of them (`samples`); `statistics` gives their means,
variances and covariances alone.  `estimators` and `scaling` are NumPy on plain arrays; `compare` is their face on
labelled Datasets.
"""

from comparisons.compare import compare
from comparisons.statistics import statistics
from comparisons.summary import summary

__all__ = ["compare", "statistics", "summary"]
