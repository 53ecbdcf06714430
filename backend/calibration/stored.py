"""Fills a cache without running the model: keys and values of real texts, captured once, go through its own interface.

A request that was filled so holds what the model would have stored for the same tokens, so its steps last as long and
keep as much; only the filling is quicker, by the linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from leankv.backend.cache import KVCache
from leankv.backend.capture import Captured
from leankv.backend.live_request import LiveRequest
from leankv.backend.step_model import Computed
from leankv.backend.step_read import report
from leankv.serving.scheduler import Chunk


@dataclass(frozen=True, eq=False)
class Text:
    """Token ids of a text and what the model's attention saw of it."""

    tokens: Sequence[int]
    captured: Captured


@dataclass(eq=False)
class StoredSteps:
    """Stands in for `StepModel`: stores the chunks of a step and lets decoding requests wait. texts: by request id."""

    cache: KVCache
    texts: dict[int, Text] = field(default_factory=dict)
    windows: set[int] = field(default_factory=set)

    @torch.inference_mode()
    def compute(self, decoding: Sequence[LiveRequest], chunks: Sequence[Chunk[LiveRequest]]) -> Computed:
        """Store the chunks; whoever completes its prompt is due a token: the first of all, if none is forced."""
        due: list[tuple[int, LiveRequest]] = []
        for chunk in chunks:
            self._store(chunk)
            if chunk.last:
                due.append((len(due), chunk.request))
        tokens = torch.zeros(len(due), dtype=torch.int32, device=self.cache.pool.device)
        return Computed(due, torch.zeros(len(due), 1), report(self.cache, tokens))

    def _store(self, chunk: Chunk[LiveRequest]) -> None:
        request, text = chunk.request, self.texts[chunk.request.request_id].captured
        stop = chunk.context + chunk.tokens
        self.cache.begin_chunk(request.slot, chunk.tokens)
        layers = zip(text.queries, text.keys, text.values, text.scales, strict=True)
        for layer, (queries, keys, values, scale) in enumerate(layers):
            at = slice(chunk.context, stop)
            self.cache.store_chunk(request.slot, layer, queries[at], keys[at], values[at], scale)
        self.cache.end_chunk(request.slot, chunk.tokens)
        request.cached = stop
