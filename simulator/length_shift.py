"""Longer (or shorter) answers under a lossy policy, as a change to the trace: each output scaled by a measured ratio.

A ratio is one prompt's output length under the policy over its length uncompressed. Which sample a request gets is
decided by a quantile that is the request's own, whatever the policy: with common quantiles two policies differ by their
ratios and not by luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from leankv.serving.errors import InputError
from leankv.traces.trace import Trace

STREAM = 7
"""Keeps these draws apart from others of the same seed."""


@dataclass(frozen=True)
class LengthShift:
    """Measured ratios of output lengths, each above 0, and where they are from (a file's name).

    Raises:
        InputError: there is no ratio, or one is not a positive number.
    """

    ratios: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.ratios:
            raise InputError(f"{self.source}: no output lengths to learn a shift from; measure some, or leave it out")
        wrong = [ratio for ratio in self.ratios if not (np.isfinite(ratio) and ratio > 0)]
        if wrong:
            raise InputError(f"{self.source}: a ratio of output lengths is {wrong[0]}; all must be positive numbers")

    @property
    def mean(self) -> float:
        return float(np.mean(self.ratios))


def length_ratios(policy_tokens: Sequence[int], uncompressed_tokens: Sequence[int], source: str) -> LengthShift:
    """From output lengths of the same prompts under the policy and uncompressed, sample by sample.

    Raises InputError where they differ in number or a length is below 1.
    """
    if len(policy_tokens) != len(uncompressed_tokens):
        raise InputError(
            f"{source}: {len(policy_tokens)} output lengths and {len(uncompressed_tokens)} uncompressed ones; "
            "measure both on the same samples"
        )
    if min([*policy_tokens, *uncompressed_tokens], default=1) < 1:
        raise InputError(f"{source}: an output of no tokens has no ratio; leave out samples without an answer")
    pairs = zip(policy_tokens, uncompressed_tokens, strict=True)
    return LengthShift(tuple(shifted / plain for shifted, plain in pairs), source)


def shifted(trace: Trace, ratios: Sequence[float], seed: int, max_context: int | None = None) -> Trace:
    """Every output length times a ratio drawn from `ratios`, rounded to whole tokens, at least 1.

    The draw depends on `seed` and the request's row alone. With `max_context` an output grows no further than prompt
    and output together may (one that exceeded it before stays as it was). The sum over many requests is scaled by the
    mean ratio, but for rounding and the cap.
    """
    quantiles = np.random.default_rng([seed, STREAM]).random(len(trace))
    drawn = _at_quantiles(np.sort(np.asarray(ratios, dtype=np.float64)), quantiles)
    outputs = trace.output_tokens.astype(np.int64)
    scaled = np.maximum(1, np.rint(outputs * drawn)).astype(np.int64)
    if max_context is not None:
        room = np.maximum(outputs, max_context - trace.prompt_tokens.astype(np.int64))
        scaled = np.minimum(scaled, room)
    scaled = np.minimum(scaled, np.iinfo(np.int32).max)
    step = f"length_shift({len(drawn)} outputs by {len(ratios)} ratios of mean {np.mean(ratios):.4g}, seed={seed})"
    return replace(trace, output_tokens=scaled.astype(np.int32)).with_step(step)


def _at_quantiles(ordered: npt.NDArray[np.float64], quantiles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sample at each quantile of the empirical distribution."""
    drawn: npt.NDArray[np.float64] = ordered[(quantiles * len(ordered)).astype(np.int64)]
    return drawn
