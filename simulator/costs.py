"""A step-time model as integer tables: seconds are rounded to ticks here, once, and only added afterwards."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from leankv.serving.models import ModelSpec
from leankv.serving.policies.base import Policy
from leankv.serving.policies.work import NO_WORK, Work
from leankv.simulator.clock import ticks
from leankv.simulator.step_time.base import StepTimeModel


class AttentionPiece(NamedTuple):
    """Decode attention over `read` bytes, `start <= read < end`: `base + slope * (read - start)` ticks."""

    start: int
    end: int
    base: int
    slope: int


UNBOUNDED = 1 << 80
GRID = 32


class StepCosts:
    """Ticks of the parts of a step, looked up by integers.

    A step with `n` decoding sequences that read `read` effective bytes, and chunks of prompts, costs
    `tokens(n + chunk tokens) + logits(n + finished prompts) + decode(n) + attention(n, read) + sum of prefill(...)`.
    """

    def __init__(
        self, model: StepTimeModel, spec: ModelSpec, policy: Policy, tp: int, max_tokens: int, max_seqs: int
    ) -> None:
        self._model = model
        self._spec = spec
        self._policy = policy
        self._tp = tp
        one_token = ticks(model.tokens_s(1, 0))
        self.tokens = [one_token] + [ticks(model.tokens_s(count, 0)) for count in range(1, max_tokens + 1)]
        self.logits = [ticks(model.tokens_s(1, count)) - one_token for count in range(max_seqs + 1)]
        self._decode: dict[int, int] = {}
        self._decode_work: dict[int, int] = {}
        self._first_chunks: dict[int, int] = {}
        self._prompts: dict[int, int] = {}
        self._pieces: dict[int, tuple[AttentionPiece, ...]] = {}

    def tokens_and_logits(self, tokens: int, sequences: int) -> int:
        if tokens < len(self.tokens):
            return self.tokens[tokens] + self.logits[sequences]
        return ticks(self._model.tokens_s(tokens, 0)) + self.logits[sequences]

    def decode(self, sequences: int) -> int:
        """A pure decode step but for its attention: linear layers, logits, the policy's work on each new token."""
        found = self._decode.get(sequences)
        if found is None:
            found = self.tokens_and_logits(sequences, sequences) + self.decode_work(sequences)
            self._decode[sequences] = found
        return found

    def decode_work(self, sequences: int) -> int:
        """The policy's work on each new token, beyond attention's own reads."""
        found = self._decode_work.get(sequences)
        if found is None:
            one = self._policy.decode_work(self._spec, self._tp)
            batch = Work(one.bytes * sequences, one.flops * sequences, one.launches)
            found = self._decode_work[sequences] = ticks(self._seconds(NO_WORK if one == NO_WORK else batch))
        return found

    def attention_pieces(self, sequences: int) -> tuple[AttentionPiece, ...]:
        found = self._pieces.get(sequences)
        if found is None:
            found = self._pieces[sequences] = self._build_pieces(sequences)
        return found

    def attention_piece(self, sequences: int, read: int) -> AttentionPiece:
        pieces = self.attention_pieces(sequences)
        for piece in pieces:
            if read < piece.end:
                return piece
        raise AssertionError("the last piece has no end")

    def attention(self, sequences: int, read: int) -> int:
        if sequences == 0:
            return 0
        piece = self.attention_piece(sequences, read)
        return piece.base + piece.slope * (read - piece.start)

    def prefill(self, chunk: int, context: int, last: bool) -> int:
        """Attention of a chunk over its context, and the policy's work on it; at the last one, on the whole prompt.

        Whole prompts, by far the most frequent, are interpolated between multiples of 32 tokens.
        """
        if context == 0:
            cost = _interpolated(self._chunk_from_start, chunk)
        else:
            cost = self._chunk_ticks(chunk, context)
        return cost + _interpolated(self._prompt_ticks, context + chunk) if last else cost

    def _chunk_from_start(self, tokens: int) -> int:
        found = self._first_chunks.get(tokens)
        if found is None:
            found = self._first_chunks[tokens] = self._chunk_ticks(tokens, 0) if tokens else 0
        return found

    def _chunk_ticks(self, chunk: int, context: int) -> int:
        seconds = self._model.prefill_attention_s(chunk, context)
        return ticks(seconds + self._seconds(self._policy.chunk_work(chunk, context, self._spec, self._tp)))

    def _prompt_ticks(self, tokens: int) -> int:
        found = self._prompts.get(tokens)
        if found is None:
            work = self._policy.prompt_work(tokens, self._spec, self._tp) if tokens else NO_WORK
            found = self._prompts[tokens] = ticks(self._seconds(work))
        return found

    def _seconds(self, work: Work) -> float:
        return 0.0 if work == NO_WORK else self._model.work_s(work)

    def _build_pieces(self, sequences: int) -> tuple[AttentionPiece, ...]:
        knots = self._model.decode_attention_s(sequences)
        pieces = []
        for index, ((read, seconds), (next_read, next_seconds)) in enumerate(pairwise(knots)):
            slope = ticks((next_seconds - seconds) / (next_read - read))
            start = round(read)
            end = UNBOUNDED if index == len(knots) - 2 else round(next_read)
            pieces.append(AttentionPiece(start, end, ticks(seconds), slope))
        return tuple(pieces)


def _interpolated(table: Callable[[int], int], tokens: int) -> int:
    """`table` at the multiples of GRID around `tokens`, linear between; exact in integers."""
    low = tokens // GRID * GRID
    at_low = table(low)
    return at_low + (table(low + GRID) - at_low) * (tokens - low) // GRID
