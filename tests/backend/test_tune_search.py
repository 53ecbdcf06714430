"""The search of `leankv tune` on landscapes whose answer is known."""

from __future__ import annotations

import json
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leankv.backend.evaluation.tune import JOURNAL, Trials, knobs_of, tune
from leankv.backend.evaluation.tune_search import Knobs, Search, Trial
from leankv.serving.errors import InputError

FIRST, SECOND = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5), (0, 0.3, 1, 2, 3, 5, 8)
KNOBS = Knobs("leankv", ("alpha_low", "alpha_high"), FIRST, SECOND)
GRID = [(first, second) for first, second in product(FIRST, SECOND) if first <= second]

weights = st.floats(0, 1)


class Landscape:
    """Loss and compression rise with both knobs; counts what is asked of it."""

    def __init__(self, prune: float, lower: float, gain: float, floor: float = 0.0) -> None:
        self.prune, self.lower, self.gain, self.floor = prune, lower, gain, floor
        self.asked: dict[tuple[float, float], Trial] = {}

    def __call__(self, point: tuple[float, float]) -> Trial:
        first, second = point
        if point not in self.asked:
            loss = self.floor + self.prune * first + self.lower * second / 16
            physical = 2 + second / (1 + second) + self.gain * first
            self.asked[point] = Trial(point, loss, (loss - 0.01, loss + 0.01), 1.2 * physical, physical)
        return self.asked[point]


@settings(max_examples=300, deadline=None)
@given(weights, weights, st.floats(0, 10), st.floats(0.001, 1))
def test_the_grid_is_searched_as_if_every_point_were_tried(prune, lower, gain, bound) -> None:
    landscape = Landscape(prune, lower, gain)
    found = Search(KNOBS, landscape, bound, rounds=0).run()
    allowed = [trial for point in GRID if (trial := Landscape(prune, lower, gain)(point)).loss <= bound]
    assert found is not None
    assert found.loss <= bound
    assert found.physical == max(trial.physical for trial in allowed)
    assert len(landscape.asked) <= 3 + len(FIRST) + len(SECOND)


@settings(max_examples=300, deadline=None)
@given(weights, weights, st.floats(0, 10), st.floats(0.001, 1))
def test_refinement_stays_allowed_and_makes_nothing_larger(prune, lower, gain, bound) -> None:
    coarse = Search(KNOBS, Landscape(prune, lower, gain), bound, rounds=0).run()
    refined = Search(KNOBS, Landscape(prune, lower, gain), bound).run()
    assert coarse is not None and refined is not None
    assert refined.loss <= bound and refined.physical >= coarse.physical
    assert refined.point[0] <= refined.point[1]


@settings(max_examples=200, deadline=None)
@given(weights, weights, st.floats(0, 10), st.floats(0.001, 1), st.floats(0.001, 1))
def test_a_looser_bound_gives_a_smaller_cache(prune, lower, gain, one, other) -> None:
    tight, loose = (
        Search(KNOBS, Landscape(prune, lower, gain), bound, rounds=0).run() for bound in sorted((one, other))
    )
    assert tight is not None and loose is not None
    assert loose.physical >= tight.physical


def test_nothing_allowed_is_none() -> None:
    assert Search(KNOBS, Landscape(1, 1, 1, floor=0.5), 0.01).run() is None


def test_the_upper_end_of_the_interval_can_judge() -> None:
    mean = Search(KNOBS, Landscape(0.1, 0.1, 1), 0.02, "mean").run()
    upper = Search(KNOBS, Landscape(0.1, 0.1, 1), 0.02, "upper").run()
    assert mean is not None and upper is not None
    assert upper.interval[1] <= 0.02 < mean.interval[1]


def test_a_search_that_was_cut_off_goes_on(tmp_path) -> None:
    """Stopped at the fifth trial, then again: nothing is measured twice, and the result is that of one run."""

    class StoppedError(Exception):
        pass

    measured: list[str] = []
    left = [5]

    def held_in(policy, point):
        if not left[0]:
            raise StoppedError
        left[0] -= 1
        measured.append(policy.name)
        return Landscape(0.1, 0.1, 1)(point)

    def run(folder):
        trials = [Trials(folder, {"part": "in"}), Trials(folder, {"part": "out"})]
        return tune(KNOBS, [0.01, 0.05], [held_in, held_in], trials, "mean", lambda share: None)

    with pytest.raises(StoppedError):
        run(tmp_path)
    with (tmp_path / JOURNAL).open("a") as stream:
        stream.write('{"half a li')
    left[0] = 1000
    resumed = run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines()]
    assert len(lines) == len(measured) == len({(line["settings"], line["policy"]) for line in lines})
    assert resumed == run(None)
    assert [each.bound for each in resumed] == [0.01, 0.05]
    assert resumed[1].held_in.physical >= resumed[0].held_in.physical


def test_policies_that_cannot_be_tuned_are_named() -> None:
    assert knobs_of("leankv-r:low=K3V2").spec((0.01, 0.2)) == "leankv-r:low=K3V2,prune=0.01,low_mass=0.2"
    assert knobs_of("leankv").spec((0, 1)) == "leankv:alpha_low=0,alpha_high=1"
    with pytest.raises(InputError, match="no thresholds"):
        knobs_of("kivi")
    with pytest.raises(InputError, match="alpha_low is what is tuned"):
        knobs_of("leankv:alpha_low=0.1")
