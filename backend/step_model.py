"""The model over the cache: computes what the scheduler asked of a step and reports on it, without waiting in between.

A step with chunks of prompts is computed call by call. One of decodes alone can be a recording (`graphs.py`), where
only its static buffers change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leankv.backend.attention import Packed, Span, past_window
from leankv.backend.cache import KVCache
from leankv.backend.graphs import DecodeGraphs, on_host
from leankv.backend.live_request import LiveRequest
from leankv.backend.step_read import report
from leankv.serving.errors import InputError
from leankv.serving.scheduler import Chunk

if TYPE_CHECKING:
    from leankv.backend.weights import Loaded


@dataclass(frozen=True, eq=False)
class Computed:
    """A step on the device. due: who is due a token, and by which row of logits [rows, vocab]. report: to be `read`."""

    due: Sequence[tuple[int, LiveRequest]]
    logits: Tensor
    report: Tensor


class StepModel:
    """See the module. most: requests that decode at once. recorded: whether decode steps are recordings.

    windows: lengths of the sliding windows that layers were found to attend to.
    """

    def __init__(self, loaded: Loaded, cache: KVCache, most: int, recorded: bool) -> None:
        self.model, self.cache, self.device = loaded.model, cache, loaded.model.device
        self.windows: set[int] = set()
        self.graphs = DecodeGraphs(self._decode, most, self.device) if recorded else None

    @torch.inference_mode()
    def record_all(self) -> None:
        """Record decode steps of every batch bucket, where they are recordings."""
        if self.graphs is not None:
            self.graphs.record_all()

    @torch.inference_mode()
    def compute(self, decoding: Sequence[LiveRequest], chunks: Sequence[Chunk[LiveRequest]]) -> Computed:
        """Advance the cache and the requests' `cached` by the step. Raises InputError beyond a sliding window."""
        slots = [request.slot for request in decoding]
        _advance(decoding, chunks)
        if decoding:
            self.cache.prepare_step(slots)
        for chunk in chunks:
            self.cache.begin_chunk(chunk.request.slot, chunk.tokens)
        if self.graphs is None or chunks:
            due, logits, tokens = self._call_by_call(decoding, chunks)
        else:
            due = [(row, request) for row, request in enumerate(decoding) if request.wants_token]
            logits, tokens = self.graphs.run(*_decoded(decoding), slots)
        if decoding:
            self.cache.end_step(slots)
        for chunk in chunks:
            self.cache.end_chunk(chunk.request.slot, chunk.tokens)
        # Windows are known once the layers have been called, so the check comes after.
        reason = past_window(self.windows, max(r.cached for r in [*decoding, *(chunk.request for chunk in chunks)]))
        if reason is not None:
            raise InputError(reason)
        return Computed(due, logits, report(self.cache, tokens))

    def _decode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [bucket, vocab] and likeliest tokens [bucket] from the buffer that `DecodeGraphs.run` fills."""
        tokens, positions, slots = inputs
        self.cache.begin_step(slots.int())
        logits = self._forward(tokens, positions, Packed(self.cache, len(tokens), (), self.windows))
        return logits, logits.argmax(-1)

    def _call_by_call(
        self, decoding: Sequence[LiveRequest], chunks: Sequence[Chunk[LiveRequest]]
    ) -> tuple[list[tuple[int, LiveRequest]], Tensor, Tensor]:
        tokens, positions = _decoded(decoding)
        spans, at = [], len(decoding)
        kept = [(row, request) for row, request in enumerate(decoding) if request.wants_token]
        for chunk in chunks:
            stop = chunk.context + chunk.tokens
            tokens += chunk.request.tokens(chunk.context, stop)
            positions += range(chunk.context, stop)
            spans.append(Span(chunk.request.slot, at, at + chunk.tokens))
            at += chunk.tokens
            if chunk.last and chunk.request.wants_token:
                kept.append((at - 1, chunk.request))
        slots, rows = [request.slot for request in decoding], [row for row, _ in kept]
        sent = on_host([*tokens, *positions, *rows, *slots], self.device).to(self.device, non_blocking=True)
        ids, places, keep, decoded = sent.split([at, at, len(rows), len(slots)])
        if decoding:
            self.cache.begin_step(decoded.int())
        packed = Packed(self.cache, len(decoding), tuple(spans), self.windows)
        logits = self._forward(ids, places, packed, logits_to_keep=keep)
        return [(row, request) for row, (_, request) in enumerate(kept)], logits, logits.argmax(-1)

    def _forward(self, tokens: Tensor, positions: Tensor, packed: Packed, **others: Any) -> Tensor:
        """Logits [rows, vocab]."""
        call = {"use_cache": False, "leankv_step": packed, **others}
        logits: Tensor = self.model(input_ids=tokens[None], position_ids=positions[None], **call).logits
        return logits[0]


def _advance(decoding: Sequence[LiveRequest], chunks: Sequence[Chunk[LiveRequest]]) -> None:
    for request in decoding:
        request.cached += 1
    for chunk in chunks:
        chunk.request.cached = chunk.context + chunk.tokens


def _decoded(decoding: Sequence[LiveRequest]) -> tuple[list[int], list[int]]:
    """The token that each request computes next, and its position."""
    tokens = [request.tokens(request.cached - 1, request.cached)[0] for request in decoding]
    return tokens, [request.cached - 1 for request in decoding]
