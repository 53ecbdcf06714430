"""The next token of every request that is due one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leankv.backend.live_request import LiveRequest


def choose(likeliest: Sequence[int], logits: Tensor, due: Sequence[tuple[int, LiveRequest]]) -> dict[int, int]:
    """The new token by request id. likeliest: token by row of logits [rows, vocab]; due: a row and its request.

    Every sampled request draws once from its own generator; a forced token is taken as it is, and draws nothing.
    """
    return {request.request_id: _next(likeliest[row], logits[row], request) for row, request in due}


def _next(likeliest: int, logits: Tensor, request: LiveRequest) -> int:
    forced = request.next_forced
    if forced is not None:
        return forced
    return _drawn(logits.float(), request) if request.sampling.temperature > 0 else likeliest


def _drawn(logits: Tensor, request: LiveRequest) -> int:
    """Inverse transform over the tokens sorted by probability, the tail beyond `top_p` cut off."""
    sampling = request.sampling
    probability, token = torch.softmax(logits / sampling.temperature, -1).sort(descending=True, stable=True)
    reached = probability.double().cumsum(0)
    kept = int((reached - probability < sampling.top_p).sum())
    target = request.random.random() * float(reached[kept - 1])
    return int(token[min(kept - 1, int(torch.searchsorted(reached, target, right=True)))])
