"""A step-time model as integer tables: seconds are rounded to ticks here, once, and only added afterwards."""

from __future__ import annotations

from typing import NamedTuple

from leankv.serving.policies.base import Policy
from leankv.serving.models import ModelSpec
from leankv.simulator.clock import ticks
from leankv.simulator.step_time.base import StepTimeModel, Work


class AttentionPiece(NamedTuple):
    """Decode attention over `read` bytes, `start <= read < end`: `base + slope * (read - start)` ticks."""

    start: int
    end: int
    base: int
    slope: int


UNBOUNDED = 1 << 80


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
        self._pieces: dict[int, tuple[AttentionPiece, ...]] = {}
        self._prefill: dict[tuple[int, int, bool], int] = {}

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
        one = self._policy.decode_work(self._spec, self._tp)
        if one.is_nothing or sequences == 0:
            return 0
        return ticks(self._model.work_s(Work(one.bytes * sequences, one.flops * sequences, one.launches)))

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
        """Attention of a chunk over its context, and the policy's work on it."""
        key = (chunk, context, last)
        found = self._prefill.get(key)
        if found is None:
            work = self._policy.prefill_work(chunk, context, last, self._spec, self._tp)
            seconds = self._model.prefill_attention_s(chunk, context)
            if not work.is_nothing:
                seconds += self._model.work_s(work)
            found = self._prefill[key] = ticks(seconds)
        return found

    def _build_pieces(self, sequences: int) -> tuple[AttentionPiece, ...]:
        knots = self._model.decode_attention_s(sequences)
        pieces = []
        for index, ((read, seconds), (next_read, next_seconds)) in enumerate(zip(knots, knots[1:], strict=False)):
            slope = ticks((next_seconds - seconds) / (next_read - read))
            start = round(read)
            end = UNBOUNDED if index == len(knots) - 2 else round(next_read)
            pieces.append(AttentionPiece(start, end, ticks(seconds), slope))
        return tuple(pieces)
