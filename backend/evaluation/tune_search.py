"""The search of `leankv tune`: of all settings of two knobs whose loss stays under a bound, the smallest cache.

Both knobs push tokens out of the way (the first prunes, the second lowers), so loss and compression rise with either.
On a coarse grid a staircase follows the edge of what is allowed, which takes as many trials as the grid has rows and
columns, not as it has points; the best of it is then refined by halving the way to its infeasible neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

Point = tuple[float, float]
Judge = Literal["mean", "upper"]


@dataclass(frozen=True)
class Knobs:
    """Two knobs of a policy, `names`, with the levels of a coarse grid, rising; the first never exceeds the second.

    policy: a registered name, with fixed knobs after a colon where some are.
    """

    policy: str
    names: tuple[str, str]
    first: Sequence[float]
    second: Sequence[float]

    def spec(self, point: Point) -> str:
        """The policy at a point, as `policy_named` reads it."""
        settings = ",".join(f"{name}={value:g}" for name, value in zip(self.names, point, strict=True))
        return f"{self.policy}{',' if ':' in self.policy else ':'}{settings}"


@dataclass(frozen=True)
class Trial:
    """What a setting did: `loss` is relative (0.01: 1 % more perplexity than fp16), with its 95 % interval."""

    point: Point
    loss: float
    interval: tuple[float, float]
    nominal: float
    physical: float

    def allowed(self, bound: float, judge: Judge) -> bool:
        """Whether the mean loss, or the upper end of its interval, is at most `bound`."""
        return (self.loss if judge == "mean" else self.interval[1]) <= bound


class Search:
    """One search. `evaluate` measures a point; asked twice for the same one, it should remember."""

    def __init__(
        self, knobs: Knobs, evaluate: Callable[[Point], Trial], bound: float, judge: Judge = "mean", rounds: int = 3
    ) -> None:
        self.knobs = knobs
        self.bound = bound
        self._evaluate = evaluate
        self._judge: Judge = judge
        self._rounds = rounds

    def run(self) -> Trial | None:
        """The trial with the smallest cache among those allowed; None where even the mildest setting is not."""
        edge = self._staircase()
        if not edge:
            return None
        best = max(edge, key=lambda trial: (trial.physical, -trial.loss))
        return self._refined(best)

    def _staircase(self) -> list[Trial]:
        """For each level of the first knob the allowed trial of the highest second one."""
        edge: list[Trial] = []
        highest = self._highest_of_first_column()
        for first in self.knobs.first:
            while highest >= 0 and self.knobs.second[highest] >= first:
                trial = self._evaluate((first, self.knobs.second[highest]))
                if trial.allowed(self.bound, self._judge):
                    edge.append(trial)
                    break
                highest -= 1
            else:
                return edge
        return edge

    def _highest_of_first_column(self) -> int:
        """Index of the highest second knob that may be allowed beside the lowest first one, by bisection."""
        low, high = -1, len(self.knobs.second) - 1
        while low < high:
            middle = (low + high + 1) // 2
            point = (self.knobs.first[0], self.knobs.second[middle])
            if self._evaluate(point).allowed(self.bound, self._judge):
                low = middle
            else:
                high = middle - 1
        return low

    def _refined(self, best: Trial) -> Trial:
        ceiling = [
            _next_level(self.knobs.first, best.point[0]),
            _next_level(self.knobs.second, best.point[1]),
        ]
        for _ in range(self._rounds):
            for axis in (1, 0):
                point = _moved(best.point, axis, _between(best.point[axis], ceiling[axis]))
                if point is None or point == best.point:
                    continue
                trial = self._evaluate(point)
                if not trial.allowed(self.bound, self._judge):
                    ceiling[axis] = point[axis]
                elif trial.physical > best.physical:
                    best = trial
        return best


def _next_level(levels: Sequence[float], value: float) -> float:
    """The level above `value`; beyond the last one, the value itself: the grid's end is not passed."""
    return next((level for level in levels if level > value), value)


def _between(low: float, high: float) -> float:
    """Half way by ratio, as the levels are spaced; from zero, half way. Rounded to what a policy's name shows."""
    return float(f"{sqrt(low * high) if low > 0 else high / 2:.3g}")


def _moved(point: Point, axis: int, value: float) -> Point | None:
    """The point with one knob at `value`; None where the first would exceed the second."""
    moved = (value, point[1]) if axis == 0 else (point[0], value)
    return moved if moved[0] <= moved[1] else None
