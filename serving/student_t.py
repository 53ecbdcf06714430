"""Student's t at 97.5 %: how many standard errors a two-sided 95 % interval of a mean reaches each way."""

from __future__ import annotations

from statistics import NormalDist

Z_975 = NormalDist().inv_cdf(0.975)
# For 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2).
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def t_975(degrees: int) -> float:
    """The quantile for one or more degrees of freedom: a table's for few, else to 1e-8 by the expansion in 1/degrees.

    Abramowitz and Stegun, 26.7.5, to the fourth order.
    """
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    z = Z_975
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**order for order, term in enumerate(terms, start=1))
