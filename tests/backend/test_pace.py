"""The pace of the machine during a live run: some steps between two references, and never at a loss of a step."""

import math
from typing import Any

import pytest

from leankv.backend.pace import PaceMeter


class Scripted:
    """A reference that takes the given seconds one after another, and an engine that counts its steps."""

    def __init__(self, *seconds: float) -> None:
        self.left, self.steps = list(seconds), 0

    def seconds(self) -> float:
        return self.left.pop(0)

    def step(self) -> list[Any]:
        self.steps += 1
        return []


def test_the_slower_of_two_references_around_a_step_counts_and_their_mean_is_geometric() -> None:
    both: Any = Scripted(9.0, 1.0, 2.0, 8.0, 3.0)
    meter = PaceMeter(both, every_s=0.0)
    assert meter.reference_s() is None
    meter.step(both)
    meter.step(both)
    assert meter.reference_s() == pytest.approx(math.sqrt(2.0 * 8.0)) and both.steps == 2


def test_between_two_measurements_steps_go_straight_through() -> None:
    both: Any = Scripted(9.0, 1.0, 1.0)
    meter = PaceMeter(both, every_s=3600.0)
    for _ in range(50):
        meter.step(both)
    assert both.steps == 50 and meter.reference_s() == 1.0
