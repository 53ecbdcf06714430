"""The search of `leankv tune`: of all settings of two knobs whose loss stays under a bound, the smallest cache found.

Both knobs push tokens out of the way (the first prunes, the second lowers), so compression rises with either, and in
the main so does loss. A loss that is measured on few windows does not rise everywhere, though: it scatters. What order
there is only decides which points are tried. A staircase follows the edge of what is allowed on a coarse grid, in as
many trials as the grid has rows and columns. The answer is the smallest cache of all trials that are allowed, whichever
bound they were made for; from it the search climbs the grid, then halves the way to what is not allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

Point = tuple[float, float]
Judge = Literal["mean", "upper"]
ROUNDS = 3


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

    def at_end(self, point: Point) -> list[str]:
        """The knobs, as name=value, that stand at the last level of the grid: what lies beyond is never tried."""
        ends = (self.first[-1], self.second[-1])
        placed = zip(self.names, point, ends, strict=True)
        return [f"{name}={value:g}" for name, value, end in placed if value >= end]


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

    def beats(self, other: Trial) -> bool:
        """Whether the cache is smaller, or as small at less loss."""
        return (self.physical, -self.loss) > (other.physical, -other.loss)


def smallest(trials: Iterable[Trial], bound: float, judge: Judge) -> Trial | None:
    """The trial with the smallest cache among those allowed; None where none is."""
    allowed = [trial for trial in trials if trial.allowed(bound, judge)]
    return max(allowed, key=lambda trial: (trial.physical, -trial.loss), default=None)


def search(
    knobs: Knobs,
    evaluate: Callable[[Point], Trial],
    bounds: Sequence[float],
    judge: Judge = "mean",
    rounds: int = ROUNDS,
) -> dict[float, Trial | None]:
    """By bound the smallest allowed of all trials made for any of them; None where none is allowed.

    evaluate: measures a point; asked again for one, it should remember. rounds: of halving; 0: the coarse grid alone.
    """
    seen: dict[Point, Trial] = {}

    def tried(point: Point) -> Trial:
        seen[point] = evaluate(point)
        return seen[point]

    stages = {bound: _Stage(knobs, tried, bound, judge) for bound in bounds}
    for stage in stages.values():
        stage.follow_edge()
    if rounds:
        _refine_all(stages, seen, rounds)
    return {bound: smallest(seen.values(), bound, judge) for bound in bounds}


def _refine_all(stages: Mapping[float, _Stage], seen: Mapping[Point, Trial], rounds: int) -> None:
    """Until no bound's best is another than the one that its own refinement ended at."""
    ended: dict[float, Trial] = {}
    restless = True
    while restless:
        restless = False
        for bound, stage in stages.items():
            best = smallest(seen.values(), bound, stage.judge)
            if best is not None and best != ended.get(bound):
                ended[bound] = stage.refined(best, rounds)
                restless = True


@dataclass(frozen=True)
class _Stage:
    """The search under one bound. `evaluate` keeps what it measures: both methods are called for the trials made."""

    knobs: Knobs
    evaluate: Callable[[Point], Trial]
    bound: float
    judge: Judge

    def follow_edge(self) -> None:
        """For each level of the first knob try the second one's levels downwards, from where the level before ended."""
        highest = self._highest_of_first_column()
        for first in self.knobs.first:
            while highest >= 0 and self.knobs.second[highest] >= first:
                if self._allowed(self.evaluate((first, self.knobs.second[highest]))):
                    break
                highest -= 1
            else:
                return

    def refined(self, best: Trial, rounds: int) -> Trial:
        """Climb level by level while that is allowed and makes the cache smaller, then halve the way to what is not."""
        best = self._climbed(best)
        ceiling = [self._next_level(axis, best.point[axis]) for axis in (0, 1)]
        for _ in range(rounds):
            for axis in (1, 0):
                point = _moved(best.point, axis, _between(best.point[axis], ceiling[axis]))
                if point is None or point == best.point:
                    continue
                trial = self.evaluate(point)
                if not self._allowed(trial):
                    ceiling[axis] = point[axis]
                elif trial.beats(best):
                    best = trial
        return best

    def _climbed(self, best: Trial) -> Trial:
        climbing = True
        while climbing:
            climbing = False
            for axis in (1, 0):
                point = _moved(best.point, axis, self._next_level(axis, best.point[axis]))
                if point is None or point == best.point:
                    continue
                trial = self.evaluate(point)
                if self._allowed(trial) and trial.beats(best):
                    best, climbing = trial, True
        return best

    def _highest_of_first_column(self) -> int:
        """Index of the highest second knob that may be allowed beside the lowest first one, by bisection."""
        low, high = -1, len(self.knobs.second) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._allowed(self.evaluate((self.knobs.first[0], self.knobs.second[middle]))):
                low = middle
            else:
                high = middle - 1
        return low

    def _allowed(self, trial: Trial) -> bool:
        return trial.allowed(self.bound, self.judge)

    def _next_level(self, axis: int, value: float) -> float:
        """The level above `value`; at the grid's end, the value itself."""
        levels = (self.knobs.first, self.knobs.second)[axis]
        return next((level for level in levels if level > value), value)


def _between(low: float, high: float) -> float:
    """Half way by ratio, as the levels are spaced; from zero, half way. Rounded to what a policy's name shows."""
    return float(f"{sqrt(low * high) if low > 0 else high / 2:.3g}")


def _moved(point: Point, axis: int, value: float) -> Point | None:
    """The point with one knob at `value`; None where the first would exceed the second."""
    moved = (value, point[1]) if axis == 0 else (point[0], value)
    return moved if moved[0] <= moved[1] else None
