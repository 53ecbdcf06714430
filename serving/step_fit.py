"""How long one step of the live engine lasts under one policy: physical terms, fitted to measured steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from leankv.serving.errors import InputError


@dataclass(frozen=True)
class StepFit:
    """Seconds of each part of a step; none is negative, and the parts add up.

    A step that decodes n sequences, which read b[i] bytes of tier i together, and computes chunks of c prompt tokens
    after `context` earlier ones, lasts

        linear(n + sum of c) + row_s * (sequences that get a token)
        + decode_s + (second_tier_s if b[1] > 0)
        + (decode_sequence_s + move_s / move_every) * n + sum of read_s_per_byte[i] * b[i]                   if n > 0
        + sum over chunks: chunk_s + chunk_token_s * c + context_token_s * context + pair_s * pairs
                           + block_token_s * (tokens that the chunk moves from a window into quantized blocks)
        + sum over prompts completed: prompt_s + prompt_token_s * prompt

    where b[i] are keys and values in their tier's format, and pairs = c * context + c (c + 1) / 2 positions attended.
    `linear` is linear between `linear_tokens` (the first 1) with the values `linear_s`, and the last slope goes on: the
    linear layers, and what every step costs. It need not rise: libraries multiply by 3 rows slower than by 4.
    `read_s_per_byte` has two tiers, the most that a live policy has. A policy that moves a sequence's tokens between
    tiers in bulk, every `move_every` steps, takes `move_s` for it.

    Raises:
        InputError: a negative term, or less time for the most tokens than for one.
    """

    linear_tokens: tuple[int, ...]
    linear_s: tuple[float, ...]
    row_s: float
    decode_s: float
    decode_sequence_s: float
    read_s_per_byte: tuple[float, float]
    chunk_s: float
    chunk_token_s: float
    context_token_s: float
    pair_s: float
    prompt_s: float
    prompt_token_s: float
    move_s: float = 0.0
    move_every: int = 1
    second_tier_s: float = 0.0
    block_token_s: float = 0.0

    def __post_init__(self) -> None:
        knots = self.linear_tokens
        if len(knots) < 2 or len(knots) != len(self.linear_s) or knots[0] != 1 or list(knots) != sorted(set(knots)):
            raise InputError("a step's fit needs two knots or more, rising from 1 token; calibrate again")
        terms = [value for value in asdict(self).values() if isinstance(value, float)]
        if not all(value >= 0 for value in (*terms, *self.linear_s, *self.read_s_per_byte)):
            raise InputError("a step's fit has a negative term; calibrate again")
        if self.linear_s[-1] < self.linear_s[0] or self.linear_s[-1] < self.linear_s[-2]:
            raise InputError("a step's fit takes less time for more tokens; calibrate again")

    def linear(self, tokens: int) -> float:
        """Seconds of a step's linear layers and of its own overhead, for `tokens` >= 1."""
        knots, values = self.linear_tokens, self.linear_s
        left = min(max(bisect_right(knots, tokens) - 1, 0), len(knots) - 2)
        slope = (values[left + 1] - values[left]) / (knots[left + 1] - knots[left])
        return values[left] + slope * (tokens - knots[left])

    @property
    def sequence_s(self) -> float:
        """Seconds that a decoding sequence adds beside what it reads, its share in moving tokens included."""
        return self.decode_sequence_s + self.move_s / self.move_every

    def decode(self, sequences: int, read_bytes: Sequence[float]) -> float:
        """Seconds that decoding adds; read_bytes: by tier, of all sequences."""
        if not sequences:
            return 0.0
        reads = sum(each * count for each, count in zip(self.read_s_per_byte, read_bytes, strict=False))
        second = self.second_tier_s if any(read_bytes[1:]) else 0.0
        return self.decode_s + second + self.sequence_s * sequences + reads

    def chunk(self, tokens: int, context: int) -> float:
        """Seconds that a chunk of a prompt adds, beside its linear layers."""
        pairs = tokens * context + tokens * (tokens + 1) / 2
        linear = self.chunk_token_s * tokens + self.context_token_s * context
        return self.chunk_s + linear + self.pair_s * pairs

    def prompt(self, tokens: int) -> float:
        """Seconds that the end of a prompt of `tokens` adds."""
        return self.prompt_s + self.prompt_token_s * tokens

    def slower(self, factor: float) -> StepFit:
        """The same on a machine that takes `factor` times as long for everything."""
        every: dict[str, Any] = {name: x * factor for name, x in asdict(self).items() if isinstance(x, float)}
        linear, read = ([value * factor for value in each] for each in (self.linear_s, self.read_s_per_byte))
        return replace(self, **every, linear_s=tuple(linear), read_s_per_byte=(read[0], read[1]))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> StepFit:
        """As `to_dict` writes it."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()}
        return cls(**fields)
