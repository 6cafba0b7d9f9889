"""From two results of the same problem to what they say about width.

    comparison = comparisons.compare(theory, nets)
    print(comparisons.summary(comparison))

Networks are all at hand, or known by moments over blocks of them (`samples`); `statistics` gives their means,
variances and covariances alone.

    bias_variance                   what of the loss of narrow networks an ensemble removes, and what stays
    width_law, onset, pointwise     laws in 1/N; when a width leaves the limit; how far its predictions are
    representations, densities      kernels, and preactivations, against the limit's
    extrapolate                     the limit of infinite width, from ensembles of wide networks
    grokking                        how much later test losses fall than training losses
    overtraining, reversal          what changes after errors have vanished; how fast flipped labels are learned
    spectra, after_kernel           the NTK's modes, and regression with it
    PrecisionLaw, fit_precision, predict_precision
                                    losses at few bits: a law, its constants from runs, what it says of them
    posterior                       networks under their posterior, and adaptive kernels
    coordinate_check                what of a PyTorch module of one's own changes with its width, and what it misses
    predictors                      kernel predictors and networks over draws of data
    transfer                        how the best value of a hyperparameter moves and scatters with width
    report                          a comparison as one HTML file

`estimators`, `scaling` and `kernels` are NumPy on plain arrays; the others are their faces on labelled Datasets.
"""

from typing import TYPE_CHECKING, Any

from comparisons.bias_variance import bias_variance
from comparisons.compare import compare
from comparisons.coordinates import CoordinateCheck, coordinate_check
from comparisons.densities import densities
from comparisons.errors import UnresolvedError
from comparisons.extrapolate import extrapolate
from comparisons.grokking import grokking
from comparisons.overtraining import overtraining, reversal
from comparisons.posterior import posterior
from comparisons.precision import AfterTraining, PrecisionLaw, Saturation
from comparisons.precision_runs import PrecisionFit, fit_precision, predict_precision
from comparisons.predictors import predictors
from comparisons.representations import representations
from comparisons.spectra import after_kernel, spectra
from comparisons.statistics import statistics
from comparisons.summary import summary
from comparisons.transfer import transfer
from comparisons.widths import onset, pointwise, width_law

if TYPE_CHECKING:
    from figures.report import report

__all__ = [
    "AfterTraining",
    "CoordinateCheck",
    "PrecisionFit",
    "PrecisionLaw",
    "Saturation",
    "UnresolvedError",
    "after_kernel",
    "bias_variance",
    "compare",
    "coordinate_check",
    "densities",
    "extrapolate",
    "fit_precision",
    "grokking",
    "onset",
    "overtraining",
    "pointwise",
    "posterior",
    "predict_precision",
    "predictors",
    "report",
    "representations",
    "reversal",
    "spectra",
    "statistics",
    "summary",
    "transfer",
    "width_law",
]


def __getattr__(name: str) -> Any:
    if name == "report":  # draws figures, which are loaded when it is used
        from figures.report import report

        globals()[name] = report
        return report
    raise AttributeError(f"module 'comparisons' has no attribute {name!r}")
