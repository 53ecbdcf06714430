"""The next token of every request from its logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leankv.backend.live_request import LiveRequest


def choose(logits: Tensor, requests: Sequence[LiveRequest]) -> list[int]:
    """One token a request from logits [len(requests), vocab]; every sampled one draws once from its own generator.

    A forced token is taken as it is, and draws nothing.
    """
    tokens: list[int] = logits.argmax(-1).tolist()
    for row, request in enumerate(requests):
        forced = request.next_forced
        if forced is not None:
            tokens[row] = forced
        elif request.sampling.temperature > 0:
            tokens[row] = _drawn(logits[row].float(), request)
    return tokens


def _drawn(logits: Tensor, request: LiveRequest) -> int:
    """Inverse transform over the tokens sorted by probability, the tail beyond `top_p` cut off."""
    sampling = request.sampling
    probability, token = torch.softmax(logits / sampling.temperature, -1).sort(descending=True, stable=True)
    reached = probability.double().cumsum(0)
    kept = int((reached - probability < sampling.top_p).sum())
    target = request.random.random() * float(reached[kept - 1])
    return int(token[min(kept - 1, int(torch.searchsorted(reached, target, right=True)))])
