"""How often errors of limits by `comparisons.averaged_laws` cover, of synthetic ensembles whose limit is 0.

    PYTHONPATH=$PWD python tests/benchmarks/coverage.py [three] [variances]

`three`: of three widths, by the law of means.  `variances`: of variances over networks that fall like N^-p, by seeds of
each width and by their law, normal or chi squared (1).  Prints coverage within one error and two, and the mean error.
Some seconds each.
"""

import sys

import numpy as np

from comparisons.averaged_laws import averaged, variances_together

WIDTHS = 64.0 * 2.0 ** np.arange(7)
LAWS = {
    "1/N": lambda n: 5 / n,
    "two terms": lambda n: 5 / n - 100 / n**2,
    "all terms": lambda n: 5 / (n + 40),
    "N^-.7": lambda n: 0.7 * n**-0.7,
    "N^-.5": lambda n: 0.3 * n**-0.5,
    "none": lambda n: 0 * n,
}
SEEDS = ((24, 24, 24, 8, 8, 3, 1), (256, 128, 64, 32, 16, 8, 4), (32, 16, 8, 4), (6, 3, 2, 1))


def found(widths, seeds, law, variance, skewed=False, repeats=600):
    """Coverage within one error and two, and the mean error."""
    rng, means, variances = np.random.default_rng(0), [], []
    for at, count, s in zip(law(widths), seeds, np.sqrt(variance), strict=True):
        size = (count, repeats)
        x = at + s * ((rng.chisquare(1, size) - 1) / np.sqrt(2) if skewed else rng.standard_normal(size))
        means.append(x.mean(0))
        variances.append(x.var(0, ddof=1) if count > 1 else 0 * x[0])
    count = np.array(seeds)
    se = np.sqrt(variances_together(widths, np.stack(variances), count - 1) / count[:, None])
    limit = averaged(widths, np.stack(means), se)
    inside = " ".join(f"{(abs(limit.limit) < k * limit.error).mean():.2f}" for k in (1, 2))
    return f"{inside} ({limit.error.mean():.2g})"


def three():
    for widths in (WIDTHS[:3], 4 * WIDTHS[:6:2]):
        for seeds in ((128, 128, 128), (64, 32, 16)):
            each = (found(widths, seeds, law, 0.09 / widths) for law in LAWS.values())
            print(widths.astype(int).tolist(), seeds, dict(zip(LAWS, each, strict=True)))


def variances():
    for skewed in (False, True):
        for seeds in SEEDS:
            widths = WIDTHS[: len(seeds)]
            each = {
                p: found(widths, seeds, LAWS["1/N"], 1e-2 / 64 * (widths / 64) ** -p, skewed)
                for p in (1.3, 1, 0.7, 0.5, 0)
            }
            print("skewed" if skewed else "normal", seeds, each)


for name in sys.argv[1:] or ("three", "variances"):
    {"three": three, "variances": variances}[name]()
