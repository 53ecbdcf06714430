"""Whether the simulator puts the policies in the right order, and says rightly where compression helps.

Policies are compared repeat by repeat: the runs of one repeat were made in turns, so that a drift of the machine falls
on all alike. A live difference whose sign changes over the repeats, or which is below `TIE`, is a tie: it has no right
order. A simulated difference that is large where live has a tie is an error all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, product
from statistics import median
from typing import Literal

from leankv.serving.paired import BASELINE
from leankv.simulator.validation_parity import Summary, median_of, number

Outcome = Literal["right", "tie", "wrong", "overstated"]
OUTCOMES: tuple[Outcome, ...] = ("right", "tie", "wrong", "overstated")
Repeats = Mapping[int, Summary]
"""Live summaries by repeat."""

TIE = 0.02
"""A relative difference below this decides nothing, however steady it is."""
CLAIM = 0.1
"""What a simulated difference may exceed the live range by where live has a tie."""
HIGHER_IS_BETTER = {"output_throughput": True, "mean_e2el_ms": False}


@dataclass(frozen=True)
class Difference:
    """`policy` against `other` by one metric under one load: value / other's value - 1; live over the repeats.

    better: which of the two live prefers, None in a tie. outcome: what the simulated difference makes of it.
    """

    policy: str
    other: str
    load: str
    by: str
    simulated: float
    live: float
    live_low: float
    live_high: float
    better: str | None
    outcome: Outcome

    @property
    def holds(self) -> bool:
        return self.outcome in ("right", "tie")

    @property
    def verdict(self) -> str:
        """What live says of `policy` against `other`: "helps", "hurts" or "tie"."""
        if self.better is None:
            return "tie"
        return "helps" if self.better == self.policy else "hurts"


@dataclass(frozen=True)
class Ranking:
    """Policies from best to worst by one metric under one load; in live's, ties stand in order of their medians."""

    load: str
    by: str
    simulated: tuple[str, ...]
    live: tuple[str, ...]
    pairs: tuple[Difference, ...]

    @property
    def holds(self) -> bool:
        return all(pair.holds for pair in self.pairs)


def rankings(load: str, simulated: Mapping[str, Summary], live: Mapping[str, Repeats]) -> list[Ranking]:
    """One a metric; of the policies that both have. Empty for fewer than two."""
    names = [name for name in live if name in simulated and live[name]]
    return [_ranking(load, by, names, simulated, live) for by in HIGHER_IS_BETTER] if len(names) > 1 else []


def compression_helps(load: str, simulated: Mapping[str, Summary], live: Mapping[str, Repeats]) -> list[Difference]:
    """Every other policy against fp16, by each metric; empty where fp16 did not run."""
    if BASELINE not in simulated or not live.get(BASELINE):
        return []
    others = [name for name in live if name != BASELINE and name in simulated]
    found = [_difference(name, BASELINE, load, by, simulated, live) for name in others for by in HIGHER_IS_BETTER]
    return [each for each in found if each is not None]


def _ranking(
    load: str, by: str, names: list[str], simulated: Mapping[str, Summary], live: Mapping[str, Repeats]
) -> Ranking:
    pairs = [_difference(a, b, load, by, simulated, live) for a, b in combinations(names, 2)]
    predicted = {name: number(simulated[name].get(by)) for name in names}
    medians = {name: median_of(_known(live[name], by)) for name in names}
    return Ranking(load, by, _best_first(predicted, by), _best_first(medians, by), tuple(p for p in pairs if p))


def _best_first(values: Mapping[str, float | None], by: str) -> tuple[str, ...]:
    known = {name: value for name, value in values.items() if value is not None}
    return tuple(sorted(known, key=known.__getitem__, reverse=HIGHER_IS_BETTER[by]))


def _difference(
    policy: str, other: str, load: str, by: str, simulated: Mapping[str, Summary], live: Mapping[str, Repeats]
) -> Difference | None:
    """None where a value is missing. Where no repeat has both, every repeat of one is held against all of the other."""
    mine, theirs = live[policy], live[other]
    both = [(mine[repeat], theirs[repeat]) for repeat in mine if repeat in theirs]
    changes = [_change(*pair, by) for pair in both or product(mine.values(), theirs.values())]
    predicted = _change(simulated[policy], simulated[other], by)
    known = [change for change in changes if change is not None]
    if predicted is None or not known:
        return None
    middle, low, high = median(known), min(known), max(known)
    tied = low <= 0 <= high or abs(middle) < TIE
    better = None if tied else policy if (middle > 0) == HIGHER_IS_BETTER[by] else other
    return Difference(
        policy, other, load, by, predicted, middle, low, high, better, _outcome(tied, predicted, middle, low, high)
    )


def _outcome(tied: bool, predicted: float, middle: float, low: float, high: float) -> Outcome:
    if tied:
        return "tie" if low - CLAIM <= predicted <= high + CLAIM else "overstated"
    return "right" if predicted * middle > 0 else "wrong"


def _change(one: Summary, other: Summary, by: str) -> float | None:
    mine, theirs = number(one.get(by)), number(other.get(by))
    return None if mine is None or not theirs else mine / theirs - 1


def _known(repeats: Repeats, by: str) -> list[float]:
    return [value for summary in repeats.values() if (value := number(summary.get(by))) is not None]
