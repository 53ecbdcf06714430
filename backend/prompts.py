"""Prompts of real text, cut to the lengths of a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leankv.backend.texts import Text


def prompts_of(texts: Sequence[Text], tokenizer: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Token ids of one prompt a length, each where the last one ended; the texts begin again when they are used up.

    Each prompt begins with the tokenizer's begin-of-text token, where it has one, as a served prompt does.
    """
    joined = "\n\n".join(text.content for text in texts)
    stream: list[int] = tokenizer(joined, add_special_tokens=False, verbose=False)["input_ids"]
    first = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    prompts, at = [], 0
    for length in lengths:
        body = length - len(first)
        rounds = -(-(at + body) // len(stream))
        prompts.append(first[:length] + (stream * rounds)[at : at + body])
        at = (at + max(0, body)) % len(stream)
    return prompts
