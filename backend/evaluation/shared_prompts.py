"""A prompt's forward pass computed once and stored into every policy's cache.

A prompt that comes whole attends to itself in full precision under every policy; policies differ only in what they then
store. So the queries, keys and values of one pass, given to each cache in turn, leave exactly what a pass of its own
would have left, and cost it only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from leankv.backend.attention import Packed
from leankv.backend.cache import KVCache


@dataclass(frozen=True, eq=False)
class _Stored:
    """One prompt's share of one layer: the last queries of `tokens`, all keys and values, and the softmax's scale."""

    tokens: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float

    def all_queries(self) -> Tensor:
        """[tokens, heads, head_dim], zeros where no policy reads."""
        unread = self.queries.new_zeros(self.tokens - len(self.queries), *self.queries.shape[1:])
        return torch.cat([unread, self.queries])


class _Recorder:
    """A cache that writes down what is stored into it."""

    def __init__(self, cache: KVCache, queries: int) -> None:
        self.cache, self.queries = cache, queries
        self.stored: list[tuple[int, int, _Stored]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def store_chunk(self, slot: int, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> None:
        last = queries[max(0, len(queries) - self.queries) :].clone()
        self.stored.append((slot, layer, _Stored(len(queries), last, keys.clone(), values.clone(), scale)))
        self.cache.store_chunk(slot, layer, queries, keys, values, scale)


class SharedPrompts:
    """A model, to be given to engines in its place. It remembers the last step that computed whole prompts only.

    queries: how many of a prompt's last queries some policy reads.
    """

    def __init__(self, model: Any, queries: int) -> None:
        self.model, self.queries = model, queries
        self._asked: tuple[Tensor, tuple[int, ...]] | None = None
        self._stored: list[tuple[int, int, _Stored]] = []
        self._logits = torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, input_ids: Tensor, leankv_step: Packed, **others: Any) -> Any:
        if leankv_step.decoding or not _whole(leankv_step):
            return self.model(input_ids=input_ids, leankv_step=leankv_step, **others)
        lengths = tuple(span.stop - span.start for span in leankv_step.chunks)
        if not self._remembers(input_ids, lengths):
            return self._record(input_ids, lengths, leankv_step, others)
        for place, layer, stored in self._stored:
            slot = leankv_step.chunks[place].slot
            leankv_step.cache.store_chunk(slot, layer, stored.all_queries(), stored.keys, stored.values, stored.scale)
        return SimpleNamespace(logits=self._logits.clone())

    def _remembers(self, ids: Tensor, lengths: Sequence[int]) -> bool:
        return self._asked is not None and self._asked[1] == lengths and torch.equal(self._asked[0], ids)

    def _record(self, ids: Tensor, lengths: tuple[int, ...], step: Packed, others: dict[str, Any]) -> Any:
        self._asked, self._stored = None, []
        recorder: Any = _Recorder(step.cache, self.queries)
        found = self.model(input_ids=ids, leankv_step=replace(step, cache=recorder), **others)
        places = {span.slot: place for place, span in enumerate(step.chunks)}
        self._stored = [(places[slot], layer, stored) for slot, layer, stored in recorder.stored]
        self._asked, self._logits = (ids.clone(), lengths), found.logits.clone()
        return found


def _whole(step: Packed) -> bool:
    """Whether every chunk is a prompt from its first token to its last."""
    requests = ((step.cache.requests[span.slot], span.stop - span.start) for span in step.chunks)
    return all(request.done == 0 and tokens == request.prompt for request, tokens in requests)
