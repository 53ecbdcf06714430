"""A question as a chat model is asked it, and the beginning of its answer, in token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MARK = "<<the question>>"


def frame(tokenizer: Any) -> tuple[str, str]:
    """What the model's chat template puts before and after a user's message, the answer's turn opened.

    Without a template: the begin-of-text token, and an empty line.
    """
    if not getattr(tokenizer, "chat_template", None):
        return tokenizer.bos_token or "", "\n\n"
    messages = [{"role": "user", "content": MARK}]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, _, after = text.partition(MARK)
    return before, after


def ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text as it stands; a template's special tokens become theirs."""
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def asked(tokenizer: Any, message: str) -> list[int]:
    """The prompt for a user's message."""
    before, after = frame(tokenizer)
    return ids(tokenizer, before + message + after)


def begun(tokenizer: Any, lead: str, answer: str) -> tuple[list[int], int]:
    """Tokens of `lead` and `answer` together, and where the answer's own begin."""
    whole = ids(tokenizer, lead + answer)
    return whole, common_prefix([ids(tokenizer, lead), whole])


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with alike."""
    for place, tokens in enumerate(zip(*sequences, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, sequences))
