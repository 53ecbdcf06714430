"""The next token of every request that is due one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leankv.backend.live_request import LiveRequest
from leankv.serving.errors import InputError


def choose(likeliest: Sequence[int], logits: Tensor, due: Sequence[tuple[int, LiveRequest]]) -> dict[int, int]:
    """The new token by request id. likeliest: token by row of logits [rows, vocab]; due: a row and its request.

    Every sampled request draws once from its own generator; a forced token is taken as it is, and draws nothing.
    """
    return {request.request_id: _next(likeliest[row], logits[row], request) for row, request in due}


def stop_tokens(words: Sequence[str], tokenizer: Any, vocab: int) -> frozenset[int]:
    """Token ids of stop words: a number is an id, any other word is text of one token; \\n and \\t are as in C.

    Raises InputError for text of several tokens, and for an id that the model does not have.
    """
    return frozenset(_stop_token(word, tokenizer, vocab) for word in words)


def _stop_token(word: str, tokenizer: Any, vocab: int) -> int:
    if word.isdecimal():
        if int(word) >= vocab:
            raise InputError(f"--stop {word}: the model's tokens are 0 to {vocab - 1}; name one of them")
        return int(word)
    text = word.replace("\\n", "\n").replace("\\t", "\t")
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(found) != 1:
        raise InputError(f"--stop {word!r} is {len(found)} tokens of this model ({found}); give text of one, or an id")
    return int(found[0])


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
