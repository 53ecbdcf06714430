"""How fast the machine was while a live run lasted: a calibration's reference, timed around a step now and then.

A machine that others share changes its speed by tens of per cent within minutes. What the reference takes during a run,
over what it usually took while the profile was measured, tells that change apart from errors of the projection.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from leankv.backend.calibration.reference import Reference
    from leankv.backend.engine import Engine
    from leankv.backend.live_request import LiveRequest

EVERY_S = 2.0
"""Between two of them: the reference takes milliseconds, so it costs a run less than one per cent."""


class PaceMeter:
    """Takes the engine's steps, some of them between two references."""

    def __init__(self, reference: Reference, every_s: float = EVERY_S) -> None:
        self._reference, self._every_s = reference, every_s
        self._times_s: list[float] = []
        self._due_s = 0.0
        self._reference.seconds()

    def step(self, engine: Engine) -> list[LiveRequest]:
        """`engine.step`, measured as a calibration measures a step where the last time is long enough ago."""
        if time.monotonic() < self._due_s:
            return engine.step()
        before = self._reference.seconds()
        finished = engine.step()
        self._times_s.append(max(before, self._reference.seconds()))
        self._due_s = time.monotonic() + self._every_s
        return finished

    def reference_s(self) -> float | None:
        """The reference's mean over the run, geometric as a calibration's pace is; None before the first step."""
        return float(np.exp(np.mean(np.log(self._times_s)))) if self._times_s else None
