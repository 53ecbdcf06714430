"""What a router may predict of a request on one replica: how long its answer gets, and how fast its tokens come.

The throughput and length predictors of Rethinking KV Cache Compression (MLSys 2025, arXiv 2503.24000), as
one sees them from outside: right on average, with a stated error. Departures: the paper's throughput predictor is
fitted to profiled runs, here it is the simulator's own step-time model; its length predictor reads prompts, a trace has
none, so predictions are the true lengths times a random error; and what a replica holds already counts in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, erf, exp, sqrt
from typing import Protocol

import numpy as np

from leankv.serving.errors import InputError
from leankv.simulator.costs import DecodeLine
from leankv.simulator.curves import ReadCurves
from leankv.simulator.ledger import PageModel
from leankv.simulator.resident import Resident

LENGTH_ACCURACY = 0.92
"""Of the paper's output-length predictor: 87.8 to 95.7 %."""
THROUGHPUT_ACCURACY = 0.87
"""Of the paper's throughput predictor on an A6000: 85.8 to 88.5 %."""
HALVINGS = 53
"""Of the interval that holds the deviation: from 0 to 1, where the mean error is 1.13."""


class Costs(Protocol):
    """What a forecast asks of `leankv.simulator.costs.StepCosts`."""

    def decode_line(self, sequences: int, read: int) -> DecodeLine: ...

    def prefill(self, chunk: int, context: int, last: bool) -> int: ...


@dataclass(frozen=True)
class Accuracy:
    """1 minus the mean relative error of each predictor; 1 predicts exactly."""

    length: float = LENGTH_ACCURACY
    throughput: float = THROUGHPUT_ACCURACY

    def __post_init__(self) -> None:
        for name in ("length", "throughput"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} accuracy is {getattr(self, name)}: give a share above 0, at most 1")


@dataclass(frozen=True)
class Predictions:
    """By row of the trace: output tokens as predicted, and the factor by which predicted step times are wrong."""

    tokens: Sequence[int]
    slowness: Sequence[float]


def predictions(outputs: np.ndarray, accuracy: Accuracy, seed: Sequence[int]) -> Predictions:
    """Predictions for true output lengths int64[n] on one replica; `seed` names the run and the replica."""
    draw = np.random.default_rng(seed)
    tokens = np.maximum(1, np.rint(outputs * _errors(draw, accuracy.length, len(outputs)))).astype(np.int64)
    return Predictions(tokens.tolist(), _errors(draw, accuracy.throughput, len(outputs)).tolist())


def _errors(draw: np.random.Generator, accuracy: float, count: int) -> np.ndarray:
    """Log-normal factors of median 1 whose mean distance from 1 is `1 - accuracy`."""
    return np.exp(_deviation(1.0 - accuracy) * draw.standard_normal(count))


def _deviation(error: float) -> float:
    """The sigma at which E|exp(sigma Z) - 1| is `error`, below 1, for a standard normal Z.

    As E[exp(sigma Z); Z > 0] = exp(sigma^2/2) Phi(sigma), the mean is exp(sigma^2/2) (2 Phi(sigma) - 1), which grows.
    """
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if exp(middle**2 / 2) * erf(middle / sqrt(2)) < error else (low, middle)
    return low


class Forecast:
    """Predictions for one replica, and the predicted load of what it was given and has not finished.

    It knows what a router in front of the replica knows: requests given and finished, never the engine's state.
    """

    def __init__(
        self,
        costs: Costs,
        curves: ReadCurves,
        memory: PageModel,
        capacity: int,
        max_seqs: int,
        predicted: Predictions,
    ) -> None:
        self._costs = costs
        self._curves = curves
        self._memory = memory
        self._capacity = capacity
        self._max_seqs = max_seqs
        self._predicted = predicted
        self._count = 0
        self._tokens = 0
        self._read = 0
        self._pages = 0

    def given(self, request: Resident) -> None:
        self._change(request, 1)

    def finished(self, request: Resident) -> None:
        self._change(request, -1)

    def outstanding_tokens(self, request: Resident) -> int:
        """Predicted output tokens of all that the replica has, and of `request` if it came here."""
        return self._tokens + self._predicted.tokens[request.request_id]

    def ticks_a_token(self, request: Resident) -> float:
        """Predicted time between the request's tokens, in ticks, if it came here.

        As if all that the replica has decoded at once, half way through their answers; where so many do not fit, they
        take turns.
        """
        read, pages = self._half_way(request)
        count = self._count + 1
        crowd = max(1.0, count / self._max_seqs, (self._pages + pages) / self._capacity)
        running = min(self._max_seqs, ceil(count / crowd))
        read = int((self._read + read) / crowd)
        line = self._costs.decode_line(running, read)
        return crowd * (line.constant + line.slope * read) * self._predicted.slowness[request.request_id]

    def ticks_to_finish(self, request: Resident) -> float:
        """Predicted time that the request would take here: its own prompt, then its predicted tokens."""
        prompt = self._costs.prefill(request.prompt_tokens, 0, True)
        return prompt + self._predicted.tokens[request.request_id] * self.ticks_a_token(request)

    def _change(self, request: Resident, sign: int) -> None:
        read, pages = self._half_way(request)
        self._count += sign
        self._tokens += sign * self._predicted.tokens[request.request_id]
        self._read += sign * read
        self._pages += sign * pages

    def _half_way(self, request: Resident) -> tuple[int, int]:
        """Effective bytes that a step reads of the request, and its pages, in the middle of its predicted answer."""
        prompt = request.prompt_tokens
        context = prompt + (self._predicted.tokens[request.request_id] + 1) // 2
        return self._curves.segment_at(prompt, context).at(context), self._memory.pages(prompt, context)
