"""Fits `StepFit` to measured steps: physical terms, none negative, relative errors, all policies of a device together.

Linear layers, logits and plain attention of prompts are the same work whatever the policy, so their terms are shared:
each policy's steps help to tell what is common from what is its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from leankv.serving.errors import InputError
from leankv.serving.paired import BASELINE
from leankv.serving.policies.held_tokens import blocked_tokens
from leankv.serving.policies.registry import policy_named
from leankv.serving.profile import HeldOut
from leankv.serving.step_fit import StepFit
from leankv.serving.step_samples import StepSample
from leankv.simulator.step_time.least_squares import Floats, non_negative_least_squares

KNOTS = tuple(1 << power for power in range(15))
BETWEEN = (3, 5, 6, 7)
"""Small steps between two knots, which may take longer than a line between these says."""
FOLDS = 5
STEADY = 1e-4
"""Weight of the wish for small coefficients (in columns of length 1): decides only what no measurement tells apart."""
REWEIGHTED = 3
"""Errors relative to the measured times alone favour fits that are too fast, by the square of the noise: what was
disturbed weighs least. Further rounds are relative to what the last one says, which leaves no such bias."""
WILD = 3.0
"""How far from the measured time a round's own may be and still be taken as the scale."""

READ_BYTES = ("read_bytes_tier0", "read_bytes_tier1")
OWN_TERMS = (
    "decode_s",
    "decode_sequence_s",
    "read_0",
    "read_1",
    "chunk_s",
    "chunk_token_s",
    "context_token_s",
    "pair_s",
    "prompt_s",
    "prompt_token_s",
    "move_s",
    "second_tier_s",
    "block_token_s",
)
SHARED_TERMS = ("row_s", "pair_s")


@dataclass(frozen=True)
class Point:
    """The repetitions of one step: mean of what they computed, median of how long they took at the usual pace."""

    policy: str
    regime: str
    seconds: float
    sample: StepSample


def points(samples: Iterable[StepSample]) -> list[Point]:
    """Undisturbed samples by point, apart where other numbers of requests moved their tokens."""

    def key(sample: StepSample) -> tuple[str, int, int]:
        return sample.policy, sample.point, sample.moved

    kept = sorted((sample for sample in samples if sample.kept), key=key)
    return [_point(list(group)) for _, group in groupby(kept, key)]


def fit_steps(measured: Sequence[Point], move_every: Mapping[str, int] | None = None) -> dict[str, StepFit]:
    """The fit of each policy among the points. move_every: by policy, see `StepFit`; where it is not said, 1.

    Raises InputError where there are no points of more than one token, or none without a prompt.
    """
    knots, bumps = _knots(measured), _bumps(measured)
    names = list(dict.fromkeys(point.policy for point in measured))
    seconds = np.array([point.seconds for point in measured])
    rows = np.array(
        [[*_row(point, knots, names), *(point.sample.tokens == bump for bump in bumps)] for point in measured]
    )
    scale = seconds
    for _ in range(1 + REWEIGHTED):
        solution = _solved(rows / scale[:, None], seconds / scale)
        scale = np.clip(rows @ solution, seconds / WILD, seconds * WILD)
    every = move_every or {}
    more = dict(zip(bumps, solution[len(solution) - len(bumps) :].tolist(), strict=True))
    return {name: _fit_of(solution, knots, more, index, every.get(name, 1)) for index, name in enumerate(names)}


def _solved(rows: Floats, target: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=0)
    steady = np.diag(STEADY * lengths)
    padded = np.concatenate([target, np.zeros(len(lengths))])
    return non_negative_least_squares(np.concatenate([rows, steady]), padded)


def predicted_s(fit: StepFit, sample: StepSample) -> float:
    """Seconds of a measured step by a fit."""
    read = sample.read_bytes_tier0, sample.read_bytes_tier1
    chunks = (
        fit.chunk_s * sample.chunks
        + fit.chunk_token_s * sample.chunk_tokens
        + fit.context_token_s * sample.context_tokens
        + fit.pair_s * sample.pairs
        + fit.block_token_s * _blocked(sample)
    )
    ends = fit.prompt_s * sample.completed + fit.prompt_token_s * sample.completed_tokens
    decoding = fit.decode(sample.decoding, read) + fit.move_s * (sample.moved - sample.decoding / fit.move_every)
    return fit.linear(sample.tokens) + fit.row_s * sample.rows + decoding + chunks + ends


def held_out(measured: Sequence[Point]) -> dict[str, dict[str, HeldOut]]:
    """Errors by policy and regime on points that the fit has not seen: each fifth of them by a fit to the others.

    The repetitions of a point stay together, and so do the same points of all policies.
    """
    errors: dict[tuple[str, str], list[float]] = {}
    for fold in range(FOLDS):
        seen = [point for point in measured if point.sample.point % FOLDS != fold]
        fits = fit_steps(seen)
        for point in measured:
            if point.policy in fits and point.sample.point % FOLDS == fold:
                error = predicted_s(fits[point.policy], point.sample) / point.seconds - 1.0
                errors.setdefault((point.policy, point.regime), []).append(error)
    found: dict[str, dict[str, HeldOut]] = {}
    for (policy, regime), each in sorted(errors.items()):
        found.setdefault(policy, {})[regime] = _held_out(each)
    return found


def _held_out(errors: Sequence[float]) -> HeldOut:
    sizes = np.abs(errors)
    return HeldOut(len(errors), float(np.median(sizes)), float(np.quantile(sizes, 0.9)), float(np.mean(errors)))


def _point(samples: Sequence[StepSample]) -> Point:
    first = samples[0]
    high, low = (float(np.mean([getattr(each, name) for each in samples])) for name in READ_BYTES)
    seconds = float(np.median([each.seconds / each.pace for each in samples]))
    sample = replace(first, read_bytes_tier0=high, read_bytes_tier1=low)
    return Point(first.policy, first.regime, seconds, sample)


def _knots(measured: Sequence[Point]) -> tuple[int, ...]:
    """Powers of two that have a measured size between them and the one before, and the largest size."""
    sizes = sorted({point.sample.tokens for point in measured})
    if len(sizes) < 2:
        raise InputError("a fit of step times needs steps of several sizes; calibrate again")
    knots = [1]
    for knot in (*(power for power in KNOTS if power < sizes[-1]), sizes[-1]):
        if any(knots[-1] < size <= knot for size in sizes):
            knots.append(knot)
    return tuple(knots)


def _bumps(measured: Sequence[Point]) -> tuple[int, ...]:
    """Sizes of their own: measured, and between two that are measured."""
    sizes = {point.sample.tokens for point in measured}
    return tuple(
        size for size in BETWEEN if size in sizes and {1 << (size.bit_length() - 1), 1 << size.bit_length()} <= sizes
    )


def _blocked(sample: StepSample) -> int:
    """Of a grid's chunks, which are alike where there are several."""
    if not sample.chunks:
        return 0
    chunk, context = sample.chunk_tokens // sample.chunks, sample.context_tokens // sample.chunks
    return sample.chunks * blocked_tokens(policy_named(sample.policy), chunk, context)


def _row(point: Point, knots: tuple[int, ...], names: Sequence[str]) -> Floats:
    """One line of the matrix but for the bumps: 1, the tokens in each stretch between knots, shared terms, then each
    policy's own.
    """
    sample = point.sample
    stretches = [
        min(max(sample.tokens - low, 0), high - low) for low, high in zip(knots, (*knots[1:-1], np.inf), strict=False)
    ]
    staged = policy_named(point.policy).staged
    own = {
        "decode_s": sample.decoding > 0,
        "decode_sequence_s": sample.decoding,
        "read_0": sample.read_bytes_tier0,
        "read_1": sample.read_bytes_tier1,
        "chunk_s": sample.chunks,
        # Beside chunks only a few decoded tokens tell what linear layers cost a token: all of it, under the baseline.
        "chunk_token_s": 0 if point.policy == BASELINE else sample.chunk_tokens,
        "context_token_s": sample.context_tokens,
        "pair_s": sample.pairs,
        # Who does not wait for a prompt's last query has nothing to do when it comes.
        "prompt_s": sample.completed if staged else 0,
        "prompt_token_s": sample.completed_tokens if staged else 0,
        "move_s": sample.moved,
        "second_tier_s": sample.decoding > 0 and sample.read_bytes_tier1 > 0,
        "block_token_s": _blocked(sample),
    }
    row = np.zeros(1 + len(stretches) + len(SHARED_TERMS) + len(OWN_TERMS) * len(names))
    row[: 1 + len(stretches) + len(SHARED_TERMS)] = [1.0, *stretches, sample.rows, sample.pairs]
    start = 1 + len(stretches) + len(SHARED_TERMS) + len(OWN_TERMS) * names.index(point.policy)
    row[start : start + len(OWN_TERMS)] = [float(own[name]) for name in OWN_TERMS]
    return row


def _fit_of(
    solution: Floats, knots: tuple[int, ...], bumps: Mapping[int, float], index: int, move_every: int
) -> StepFit:
    """bumps: seconds above the line between the knots, by size."""
    slopes = solution[1 : len(knots)]
    values = solution[0] + np.concatenate([[0.0], np.cumsum(slopes * np.diff(knots))])
    sizes = sorted({*knots, *bumps})
    lasting = [float(np.interp(size, knots, values)) + bumps.get(size, 0.0) for size in sizes]
    shared = dict(zip(SHARED_TERMS, solution[len(knots) :].tolist(), strict=False))
    start = len(knots) + len(SHARED_TERMS) + len(OWN_TERMS) * index
    own = dict(zip(OWN_TERMS, solution[start : start + len(OWN_TERMS)].tolist(), strict=True))
    return StepFit(
        linear_tokens=tuple(sizes),
        linear_s=tuple(lasting),
        row_s=shared["row_s"],
        decode_s=own["decode_s"],
        decode_sequence_s=own["decode_sequence_s"],
        read_s_per_byte=(own["read_0"], own["read_1"]),
        chunk_s=own["chunk_s"],
        chunk_token_s=own["chunk_token_s"],
        context_token_s=own["context_token_s"],
        pair_s=shared["pair_s"] + own["pair_s"],
        prompt_s=own["prompt_s"],
        prompt_token_s=own["prompt_token_s"],
        move_s=own["move_s"],
        move_every=move_every,
        second_tier_s=own["second_tier_s"],
        block_token_s=own["block_token_s"],
    )
