"""Pure changes to a trace: Trace -> Trace. Each is recorded in the provenance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from leankv.serving.errors import InputError
from leankv.traces.trace import PS_PER_S, PrefixBlocks, Trace


def rate_scale(trace: Trace, factor: float) -> Trace:
    """The same requests arriving `factor` times as fast (every arrival time divided by it, rounded to 1 ps)."""
    if not (np.isfinite(factor) and factor > 0):
        raise InputError(f"rate scale {factor} is not a positive number; give for example 2 for twice the rate")
    if factor == 1:
        return trace
    latest = float(trace.arrival_ps[-1]) / factor
    if latest >= 2**63:
        raise InputError(f"rate scale {factor} stretches {trace.name} beyond 106 days; give a larger factor")
    return replace(trace, arrival_ps=_divide(trace.arrival_ps, factor)).with_step(f"rate_scale({factor:g})")


def _divide(arrival_ps: npt.NDArray[np.int64], factor: float) -> npt.NDArray[np.int64]:
    # Beyond 2.5 hours a float64 cannot hold a picosecond, so whole seconds and the rest are divided apart.
    seconds, rest = np.divmod(arrival_ps, PS_PER_S)
    scaled_seconds = seconds / factor
    whole = np.floor(scaled_seconds)
    remainder = np.rint((scaled_seconds - whole) * PS_PER_S + rest / factor)
    return np.maximum.accumulate(whole.astype(np.int64) * PS_PER_S + remainder.astype(np.int64))


def window(trace: Trace, start_s: float, end_s: float) -> Trace:
    """The requests that arrive in [start_s, end_s) seconds; the window's start becomes time 0."""
    if not 0 <= start_s < end_s:
        raise InputError(f"window {start_s:g}:{end_s:g} s is empty; its start must be at least 0 and before its end")
    start_ps = round(start_s * PS_PER_S)
    end_ps = min(round(end_s * PS_PER_S), 2**63 - 1) if np.isfinite(end_s) else 2**63 - 1
    first, last = np.searchsorted(trace.arrival_ps, [start_ps, end_ps])
    if first == last:
        raise InputError(
            f"{trace.name} has no request between {start_s:g} and {end_s:g} s; it runs from "
            f"{trace.arrival_ps[0] / PS_PER_S:g} to {trace.arrival_ps[-1] / PS_PER_S:g} s"
        )
    rows = np.arange(first, last)
    return trace.take(rows, trace.arrival_ps[rows] - start_ps).with_step(f"window({start_s:g}, {end_s:g})")


def sample(trace: Trace, fraction: float, seed: int = 0) -> Trace:
    """Each request kept with probability `fraction`, independently; a thinned Poisson stream stays Poisson."""
    if not 0 < fraction <= 1:
        raise InputError(f"sample fraction {fraction} is not in (0, 1]; give for example 0.1 for a tenth")
    kept = np.flatnonzero(np.random.default_rng(seed).random(len(trace)) < fraction)
    if not len(kept):
        raise InputError(
            f"sampling {fraction} of {trace.name} ({len(trace)} requests) keeps none; take a larger fraction"
        )
    return trace.take(kept).with_step(f"sample({fraction:g}, seed={seed})")


def limit(trace: Trace, requests: int) -> Trace:
    """The first `requests` requests (all, where there are no more)."""
    if requests < 1:
        raise InputError(f"limit {requests} keeps no request; give at least 1")
    if requests >= len(trace):
        return trace
    return trace.take(np.arange(requests)).with_step(f"limit({requests})")


def cap_lengths(trace: Trace, max_prompt: int | None = None, max_output: int | None = None) -> Trace:
    """Longer prompts and outputs cut to the caps; prefix blocks beyond a cut prompt are dropped."""
    for cap in (max_prompt, max_output):
        if cap is not None and cap < 1:
            raise InputError(f"length cap {cap} leaves no tokens; give at least 1")
    if max_prompt is None and max_output is None:
        return trace
    prompts = trace.prompt_tokens if max_prompt is None else np.minimum(trace.prompt_tokens, max_prompt)
    outputs = trace.output_tokens if max_output is None else np.minimum(trace.output_tokens, max_output)
    cut = int(((prompts < trace.prompt_tokens) | (outputs < trace.output_tokens)).sum())
    blocks = trace.prefix_hashes
    if blocks is not None and max_prompt is not None:
        blocks = _cut_blocks(blocks, np.asarray(prompts, np.int64))
    capped = replace(trace, prompt_tokens=prompts, output_tokens=outputs, prefix_hashes=blocks)
    return capped.with_step(f"cap_lengths({max_prompt}, {max_output}): {cut} requests cut")


def _cut_blocks(blocks: PrefixBlocks, prompts: npt.NDArray[np.int64]) -> PrefixBlocks:
    lengths = np.minimum(np.diff(blocks.offsets), -(-prompts // blocks.block_tokens))
    within = np.arange(len(blocks.hashes)) - np.repeat(blocks.offsets[:-1], np.diff(blocks.offsets))
    kept = within < np.repeat(lengths, np.diff(blocks.offsets))
    return PrefixBlocks(np.concatenate(([0], np.cumsum(lengths))), blocks.hashes[kept], blocks.block_tokens)


def repeat(trace: Trace, requests: int) -> Trace:
    """The trace played again and again until there are `requests` requests, one mean gap between two plays.

    Prefix hashes of each play are made distinct, so that a repeat shares no prefix with an earlier play.
    """
    if requests < 1:
        raise InputError(f"repeat to {requests} requests is empty; give at least 1")
    n = len(trace)
    span = int(trace.arrival_ps[-1] - trace.arrival_ps[0])
    period = span + (span // (n - 1) if n > 1 else PS_PER_S)
    plays = -(-requests // n)
    if int(trace.arrival_ps[-1]) + (plays - 1) * period >= 2**63:
        raise InputError(f"{requests} requests of {trace.name} span more than 106 days; raise the rate scale first")
    play, rows = np.divmod(np.arange(requests), n)
    if trace.prefix_hashes is not None:
        # Numbered from 0 without holes, so that each play can have a range of numbers of its own.
        distinct, dense = np.unique(trace.prefix_hashes.hashes, return_inverse=True)
        trace = replace(trace, prefix_hashes=replace(trace.prefix_hashes, hashes=dense.astype(np.int64)))
    repeated = trace.take(rows, trace.arrival_ps[rows] + play * period)
    if repeated.prefix_hashes is not None:
        blocks = repeated.prefix_hashes
        shift = len(distinct) * np.repeat(play, np.diff(blocks.offsets))
        repeated = replace(repeated, prefix_hashes=replace(blocks, hashes=blocks.hashes + shift))
    return repeated.with_step(f"repeat({requests})")
