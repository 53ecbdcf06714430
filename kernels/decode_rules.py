"""The nouns of a decode step: who gives way to a new token, for which rows, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

APPEND, OVERWRITE, DEMOTE_OVER, DEMOTE = range(4)
NOWHERE = -1


@dataclass(frozen=True)
class DecodeRule:
    """Who gives way.

    kind: "append": nobody; "ring": the oldest but the first `sink`, once `capacity` tokens are held; "heavy": the least
        accumulated score outside the recent window, once `capacity` are held (H2O); "thresholds": the five cases.
    score_window: prompt queries that were summed into the prefill score (`capacity` and windows are per request).
    """

    kind: Literal["append", "ring", "heavy", "thresholds"]
    sink: int = 0
    score_window: int = 64


@dataclass(frozen=True, eq=False)
class StepInputs:
    """The step's rows and what their requests allow; tensors [n] on the device.

    rows        int32: rows of the page tables, -1 for padding
    position    int32: position p of the new token
    prompt      int32: tokens of the request's prompt
    alpha_low, alpha_high  float32: thresholds ("thresholds")
    capacity    int32: tokens a head may hold ("ring", "heavy")
    recent      int32: tokens of the recent window, the new one included ("heavy", "thresholds")
    """

    rows: Tensor
    position: Tensor
    prompt: Tensor
    alpha_low: Tensor
    alpha_high: Tensor
    capacity: Tensor
    recent: Tensor


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """What the step does to each row; tensors int32 [n].

    case: see `decode_step`. place: the new token's number in the high tier. spare: the number in the low tier that the
    demoted token (number `place` until now) takes, or NOWHERE. wanted [n, 2]: tokens a tier after the step.
    """

    case: Tensor
    place: Tensor
    spare: Tensor
    wanted: Tensor
