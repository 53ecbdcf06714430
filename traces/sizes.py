"""Length distributions of prompts and outputs, drawn through a Gaussian copula so that the two may correlate."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from leankv.serving.errors import InputError, unknown_name
from leankv.traces.trace import IntArray

FloatArray = npt.NDArray[np.float64]
LONGEST = 2**31 - 1
DATA = Path(__file__).with_name("data")


class Lengths(Protocol):
    """A distribution of token counts, drawn by the quantile of a standard normal."""

    def at(self, normal: FloatArray) -> FloatArray:
        """Token counts (float64[n], not yet rounded) at standard normal deviates (float64[n]), increasing in them."""
        ...


@dataclass(frozen=True)
class Constant:
    tokens: int

    def at(self, normal: FloatArray) -> FloatArray:
        return np.full(len(normal), float(self.tokens))


@dataclass(frozen=True)
class Lognormal:
    """Median in tokens, sigma of the logarithm."""

    median: float
    sigma: float

    def at(self, normal: FloatArray) -> FloatArray:
        return self.median * np.exp(self.sigma * normal)


@dataclass(frozen=True)
class Zipf:
    """P(k) proportional to k^-exponent for k = 1 .. most."""

    exponent: float
    most: int

    def at(self, normal: FloatArray) -> FloatArray:
        cumulative = np.cumsum(np.arange(1, self.most + 1, dtype=np.float64) ** -self.exponent)
        ranks = np.searchsorted(cumulative / cumulative[-1], normal_cdf(normal), side="left") + 1
        return np.minimum(ranks, self.most).astype(np.float64)


@dataclass(frozen=True)
class QuantileTable:
    """`tokens[i]` is the quantile of `probabilities[i]`; linear between them. Both increase."""

    probabilities: Sequence[float]
    tokens: Sequence[float]

    def at(self, normal: FloatArray) -> FloatArray:
        return np.interp(normal_cdf(normal), self.probabilities, self.tokens)


def normal_cdf(normal: FloatArray) -> FloatArray:
    """The standard normal distribution function, float64[n]."""
    scaled = (normal / math.sqrt(2)).tolist()
    return 0.5 * (1 + np.fromiter(map(math.erf, scaled), np.float64, len(scaled)))


def draw_lengths(
    rng: np.random.Generator, n: int, prompt: Lengths, output: Lengths, rank_correlation: float
) -> tuple[IntArray, IntArray]:
    """n prompt and output lengths (int64, at least 1) with Spearman's rank correlation `rank_correlation`.

    Raises:
        InputError: a correlation outside (-1, 1).
    """
    if not -1 < rank_correlation < 1:
        raise InputError(f"corr={rank_correlation} must lie between -1 and 1")
    # Spearman's rho of a Gaussian copula is 6/pi asin(r/2).
    pearson = 2 * math.sin(math.pi * rank_correlation / 6)
    first, second = rng.standard_normal(n), rng.standard_normal(n)
    second = pearson * first + math.sqrt(1 - pearson**2) * second
    return _rounded(prompt.at(first)), _rounded(output.at(second))


def _rounded(tokens: FloatArray) -> IntArray:
    return np.clip(np.rint(tokens), 1, LONGEST).astype(np.int64)


def parse_lengths(text: str, role: str) -> Lengths:
    """`512` | `lognormal:MEDIAN:SIGMA` | `zipf:EXPONENT:MAX` | `table:NAME_OR_FILE` (role: prompt or output).

    Raises:
        InputError: anything else, or figures out of range.
    """
    kind, *figures = text.split(":")
    if not figures and kind.isdecimal():
        kind, figures = "constant", [kind]
    if kind not in _KINDS:
        raise unknown_name(f"length distribution of {role}", kind, [*_KINDS])
    try:
        return _KINDS[kind](figures, role)
    except (TypeError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        shapes = "512, lognormal:MEDIAN:SIGMA, zipf:EXPONENT:MAX or table:NAME"
        raise InputError(f"{role}={text} cannot be read; write {shapes}") from None


def _constant(figures: Sequence[str], role: str) -> Lengths:
    (tokens,) = figures
    return Constant(_whole(tokens, role))


def _lognormal(figures: Sequence[str], role: str) -> Lengths:
    median, sigma = map(float, figures)
    if not (1 <= median <= LONGEST and 0 <= sigma <= 10):
        raise InputError(f"{role}=lognormal:{median:g}:{sigma:g} needs a median of at least 1 and a sigma of 0 to 10")
    return Lognormal(median, sigma)


def _zipf(figures: Sequence[str], role: str) -> Lengths:
    exponent, most = figures
    if not 0 <= float(exponent) <= 20 or _whole(most, role) > 10**7:
        raise InputError(f"{role}=zipf:{exponent}:{most} needs an exponent of 0 to 20 and a maximum up to 10000000")
    return Zipf(float(exponent), int(most))


def _table(figures: Sequence[str], role: str) -> Lengths:
    return table_lengths(read_table(":".join(figures)), role)


def _whole(text: str, role: str) -> int:
    if not 1 <= int(text) <= LONGEST:
        raise InputError(f"{role}={text} must be at least 1 token")
    return int(text)


_KINDS: dict[str, Callable[[Sequence[str], str], Lengths]] = {
    "constant": _constant,
    "lognormal": _lognormal,
    "zipf": _zipf,
    "table": _table,
}


def shipped_tables() -> list[str]:
    """Names of the tables of figures that come with the package."""
    return sorted(path.stem for path in DATA.glob("*.json"))


def read_table(name: str) -> dict[str, Any]:
    """A table of figures measured from a trace: a shipped name, or the path of one written by `leankv traces measure`.

    Raises:
        InputError: no such table, or a file that is none.
    """
    path = DATA / f"{name}.json" if name in shipped_tables() else Path(name)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise unknown_name("table of figures", name, shipped_tables()) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: not a table of figures ({error}); write one with leankv traces measure") from None
    if not isinstance(table, dict) or table.get("kind") != "trace figures":
        raise InputError(f"{name}: not a table of figures; write one with leankv traces measure")
    return table


def table_lengths(table: Mapping[str, Any], role: str) -> QuantileTable:
    """The prompt or output quantiles of a table of figures."""
    return QuantileTable(tuple(table["probabilities"]), tuple(table[f"{role}_tokens"]))
