"""Arrival processes: renewal gaps by burstiness, Markov-modulated bursts and a diurnal shape, all seeded.

Every process is made in unit operational time (one arrival a unit on average) and then stretched by the rate, so that
a change of shape keeps the rate, and a diurnal shape may modulate any of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from leankv.serving.errors import InputError, unknown_name
from leankv.traces.trace import PS_PER_S, IntArray

FloatArray = npt.NDArray[np.float64]
PROCESSES = ("poisson", "gamma", "weibull", "mmpp", "even", "closed")
DAY_S = 86_400.0


@dataclass(frozen=True)
class Arrivals:
    """`rate` requests a second on average.

    process: poisson; gamma or weibull gaps with coefficient of variation `cv`; mmpp, a two-state Markov-modulated
    Poisson process whose bursts of `burst_s` seconds (mean) run at `burst` times the rate of the calm, and take a
    share `burst_share` of the time; even, a fixed gap; closed, all at time 0 (for closed-loop replay).
    diurnal: the rate follows 1 - diurnal * cos(2 pi t / `period_s`), lowest at the start; 0 is flat.

    Raises:
        InputError: a knob out of its range.
    """

    process: str = "poisson"
    rate: float = 1.0
    cv: float = 1.0
    burst: float = 10.0
    burst_s: float = 30.0
    burst_share: float = 0.1
    diurnal: float = 0.0
    period_s: float = DAY_S

    def __post_init__(self) -> None:
        if self.process not in PROCESSES:
            raise unknown_name("arrival process", self.process, PROCESSES)
        for knob in ("rate", "cv", "burst", "burst_s", "period_s"):
            value = getattr(self, knob)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{self.process}: {knob}={value} must be a positive number")
        if not 0 < self.burst_share < 1:
            raise InputError(f"{self.process}: burst_share={self.burst_share} must lie between 0 and 1")
        if not 0 <= self.diurnal <= 1:
            raise InputError(f"{self.process}: diurnal={self.diurnal} must lie between 0 (flat) and 1")
        if self.process == "weibull" and not 0.05 <= self.cv <= 20:
            raise InputError(f"weibull: cv={self.cv} must lie between 0.05 and 20; gamma takes any")

    def draw(self, rng: np.random.Generator, n: int) -> IntArray:
        """n arrivals in ps, int64, not decreasing.

        Raises:
            InputError: they would span more than 106 days.
        """
        if self.process == "closed":
            return np.zeros(n, np.int64)
        seconds = self._unmodulated(rng, n)
        if self.diurnal:
            seconds = diurnal_time(seconds, self.diurnal, self.period_s)
        if seconds[-1] * PS_PER_S >= 2**63:
            raise InputError(
                f"{self.process}: {n} requests at {self.rate:g}/s span over 106 days; raise rate or lower n"
            )
        return np.rint(seconds * PS_PER_S).astype(np.int64)

    def _unmodulated(self, rng: np.random.Generator, n: int) -> FloatArray:
        if self.process == "mmpp":
            return mmpp(rng, n, self.rate, self.burst, self.burst_s, self.burst_share)
        return np.cumsum(unit_gaps(rng, self.process, shape_of(self.process, self.cv), n)) / self.rate


def shape_of(process: str, cv: float) -> float:
    """The shape of a gamma or Weibull gap with coefficient of variation `cv`; 1 for the others (unused)."""
    if process == "gamma":
        return 1 / cv**2
    return weibull_shape(cv) if process == "weibull" else 1.0


def weibull_shape(cv: float) -> float:
    """Shape k with Gamma(1 + 2/k) / Gamma(1 + 1/k)^2 = 1 + cv^2, by bisection (the left side falls in k)."""
    low, high = 0.05, 50.0
    for _ in range(80):
        middle = math.sqrt(low * high)
        excess = math.lgamma(1 + 2 / middle) - 2 * math.lgamma(1 + 1 / middle) - math.log1p(cv**2)
        low, high = (middle, high) if excess > 0 else (low, middle)
    return middle


def unit_gaps(rng: np.random.Generator, process: str, shape: float, n: int) -> FloatArray:
    """n independent gaps of mean 1: poisson, gamma, weibull (with `shape`) or even."""
    if process == "gamma":
        return rng.gamma(shape, 1 / shape, n)
    if process == "weibull":
        return rng.weibull(shape, n) / math.gamma(1 + 1 / shape)
    return np.ones(n) if process == "even" else rng.exponential(1.0, n)


def bridged_gaps(rng: np.random.Generator, process: str, shape: float, n: int, width_s: float) -> FloatArray:
    """n arrivals in (0, width_s): n + 1 gaps of that shape, scaled to fill the window, so that the count is exact.

    For exponential gaps these are uniform order statistics: a Poisson process given its count.
    """
    if n == 0:
        return np.zeros(0)
    times = np.cumsum(unit_gaps(rng, process, shape, n + 1))
    # With shapes near 0 all gaps may underflow; then nothing is known of the order and even gaps stand in.
    return width_s * times[:-1] / times[-1] if times[-1] > 0 else width_s * np.arange(1, n + 1) / (n + 1)


def mmpp(rng: np.random.Generator, n: int, rate: float, burst: float, burst_s: float, share: float) -> FloatArray:
    """n arrival times in s of a two-state Markov-modulated Poisson process with mean `rate` (see Arrivals)."""
    calm_rate = rate / (1 - share + share * burst)
    calm_s = burst_s * (1 - share) / share
    mean_cycle = (calm_s + burst_s) * rate
    starts_in_burst = bool(rng.random() < share)
    edges_s, edges_n = np.zeros(1), np.zeros(1)
    while edges_n[-1] <= 2 * n:
        cycles = int(2 * n / mean_cycle) + 8
        calm, burst_stays = rng.exponential(calm_s, cycles), rng.exponential(burst_s, cycles)
        pair = (burst_stays, calm) if starts_in_burst else (calm, burst_stays)
        rates = (burst * calm_rate, calm_rate) if starts_in_burst else (calm_rate, burst * calm_rate)
        stays = np.column_stack(pair).ravel()
        edges_s = np.append(edges_s, edges_s[-1] + np.cumsum(stays))
        edges_n = np.append(edges_n, edges_n[-1] + np.cumsum(stays * np.tile(rates, cycles)))
    # A unit Poisson process in expected arrivals, mapped back to time through the states' cumulative intensity.
    return np.interp(np.cumsum(rng.exponential(1.0, n)), edges_n, edges_s)


def diurnal_time(seconds: FloatArray, depth: float, period_s: float) -> FloatArray:
    """Times of a process of constant rate, moved so that its rate follows 1 - depth * cos(2 pi t / period).

    The cumulative intensity t - depth * period / (2 pi) * sin(2 pi t / period) is inverted on a fine grid of one
    period; it returns to t at each period's end.
    """
    grid = np.linspace(0.0, 1.0, 4097)
    cumulative = grid - depth / (2 * np.pi) * np.sin(2 * np.pi * grid)
    periods, phase = np.divmod(seconds / period_s, 1.0)
    return (periods + np.interp(phase, cumulative, grid)) * period_s
