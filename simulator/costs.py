"""A step-time model as integer tables: seconds are rounded to ticks here, once, and only added afterwards."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from leankv.serving.policies.base import Policy
from leankv.simulator.clock import ticks
from leankv.simulator.step_time.base import StepTimeModel

UNBOUNDED = 1 << 80
LONG_CHUNK = 1 << 20
"""Longer than any window: who has no work on it has none on any chunk."""


class DecodeLine(NamedTuple):
    """Ticks of a pure decode step of a given batch that reads `start <= read < end` bytes: `constant + slope * read`.

    `linear` of the constant are linear layers and logits, which a step with prompt tokens pays by its own size.
    """

    constant: int
    slope: int
    start: int
    end: int
    linear: int


class StepCosts:
    """Ticks of the parts of a step, looked up by integers.

    A pure decode step of `n` sequences that read `read` effective bytes follows `decode_line(n, read)`. With chunks of
    prompts it costs `tokens_and_logits(n + chunk tokens, n + finished prompts)`, the line without its linear layers,
    and the sum of `prefill` over the chunks.
    """

    def __init__(self, model: StepTimeModel, policy: Policy, max_tokens: int, max_seqs: int) -> None:
        self._model = model
        self._policy = policy
        one_token = ticks(model.tokens_s(1, 0))
        self.tokens = [one_token] + [ticks(model.tokens_s(count, 0)) for count in range(1, max_tokens + 1)]
        self.logits = [ticks(model.tokens_s(1, count)) - one_token for count in range(max_seqs + 1)]
        self._lines: dict[int, tuple[DecodeLine, ...]] = {}
        self._whole_prompts: dict[int, int] = {}
        self._from_start = GridTable(32, lambda tokens: self._chunk_ticks(tokens, 0))
        self._prompt_work = GridTable(256, self._prompt_ticks)
        self._chunks_cost_work = model.chunk_work_s(policy, LONG_CHUNK, 0) > 0

    def tokens_and_logits(self, tokens: int, sequences: int) -> int:
        if tokens < len(self.tokens):
            return self.tokens[tokens] + self.logits[sequences]
        return ticks(self._model.tokens_s(tokens, 0)) + self.logits[sequences]

    def decode_line(self, sequences: int, read: int) -> DecodeLine:
        """The line that holds for `sequences` >= 1 that read `read` bytes."""
        for line in self._lines.get(sequences) or self._build_lines(sequences):
            if read < line.end:
                return line
        raise AssertionError("the last line has no end")

    def decode_beside_prompts(self, sequences: int, read: int) -> int:
        """Attention of the decoding sequences, and their policy's work, in a step that computes prompts too."""
        if sequences == 0:
            return 0
        line = self.decode_line(sequences, read)
        return line.constant - line.linear + line.slope * read

    def prefill(self, chunk: int, context: int, last: bool) -> int:
        """Attention of a chunk over its context, and the policy's work on it; at the last one, on the whole prompt.

        Chunks from the start of a prompt, by far the most frequent, and work on whole prompts are interpolated.
        """
        if context:
            cost = self._chunk_ticks(chunk, context)
            return cost + self._prompt_work.at(chunk + context) if last else cost
        if not last:
            return self._from_start.at(chunk)
        found = self._whole_prompts.get(chunk)
        if found is None:
            found = self._whole_prompts[chunk] = self._from_start.at(chunk) + self._prompt_work.at(chunk)
        return found

    def _chunk_ticks(self, chunk: int, context: int) -> int:
        seconds = self._model.prefill_attention_s(chunk, context)
        if self._chunks_cost_work:
            seconds += self._model.chunk_work_s(self._policy, chunk, context)
        return ticks(seconds)

    def _prompt_ticks(self, tokens: int) -> int:
        return ticks(self._model.prompt_work_s(self._policy, tokens))

    def _build_lines(self, sequences: int) -> tuple[DecodeLine, ...]:
        knots = self._model.decode_attention_s(sequences)
        linear = self.tokens_and_logits(sequences, sequences)
        fixed = linear + ticks(self._model.decode_work_s(self._policy, sequences))
        lines = []
        for (read, seconds), (next_read, next_seconds) in pairwise(knots):
            slope, start = ticks((next_seconds - seconds) / (next_read - read)), round(read)
            lines.append(DecodeLine(fixed + ticks(seconds) - slope * start, slope, start, round(next_read), linear))
        lines[-1] = lines[-1]._replace(end=UNBOUNDED)
        self._lines[sequences] = tuple(lines)
        return self._lines[sequences]


class GridTable:
    """An integer function of a token count: linear between multiples of `width`, exact below the first; 0 at 0.

    Exact there because what a function costs for its first token, as launches do, is no matter of proportion.
    """

    def __init__(self, width: int, exact: Callable[[int], int]) -> None:
        self._width = width
        self._exact = exact
        self._known = {0: 0}

    def at(self, tokens: int) -> int:
        low, rest = divmod(tokens, self._width)
        if not low or not rest:
            return self._exactly(tokens)
        at_low = self._exactly(low * self._width)
        return at_low + (self._exactly((low + 1) * self._width) - at_low) * rest // self._width

    def _exactly(self, tokens: int) -> int:
        found = self._known.get(tokens)
        if found is None:
            found = self._known[tokens] = self._exact(tokens)
        return found
