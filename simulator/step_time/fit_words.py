"""A fit of step times in words: what each part of a step costs."""

from __future__ import annotations

from collections.abc import Mapping

from leankv.serving.step_fit import StepFit


def in_words(fit: StepFit, tiers: Mapping[int, str] | None = None) -> list[str]:
    """What a fit says, a sentence a term; tiers: names of the cache's tiers, by number. Terms of 0 are left out."""
    first, last = fit.linear_tokens[0], fit.linear_tokens[-1]
    middle = fit.linear_tokens[len(fit.linear_tokens) // 2]
    sizes = ", ".join(f"{size:,} {_time(fit.linear(size))}" for size in (middle, last))
    lines = [f"a step of {first} token takes {_time(fit.linear(first))}, of {sizes}: linear layers and the host's work"]
    lines.append(_sum("a sequence that gets a token", {"": fit.row_s}, "output head and sampling"))
    decoding = {"a step": fit.decode_s, "a sequence": fit.decode_sequence_s}
    decoding[f"more with tokens in {(tiers or {}).get(1, 'tier 1')}"] = fit.second_tier_s
    for tier, per_byte in enumerate(fit.read_s_per_byte):
        decoding[f"a MiB read of {(tiers or {}).get(tier, f'tier {tier}')}"] = per_byte * (1 << 20)
    lines.append(_sum("decoding", decoding, "the cache's own work and attention"))
    moves = {f"a sequence, every {fit.move_every} steps": fit.move_s}
    lines.append(_sum("moving tokens to another tier", moves, "on average a share of it each step"))
    chunk = {"a chunk": fit.chunk_s, "a token": fit.chunk_token_s, "a token before it": fit.context_token_s}
    chunk |= {"a million pairs attended": fit.pair_s * 1e6, "a token moved into blocks": fit.block_token_s}
    lines.append(_sum("a prompt's chunk", chunk, "beside its layers"))
    ends = {"a prompt": fit.prompt_s, "a token of it": fit.prompt_token_s}
    lines.append(_sum("a prompt's end", ends, "scoring and compressing it"))
    return [line for line in lines if line]


def _sum(what: str, terms: Mapping[str, float], why: str) -> str:
    parts = [f"{_time(seconds)} {unit}".rstrip() for unit, seconds in terms.items() if seconds > 0]
    return f"{what} takes {', '.join(parts)}: {why}" if parts else ""


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-12:.3g} ps"
