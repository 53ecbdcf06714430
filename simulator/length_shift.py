"""Longer (or shorter) answers under a lossy policy, as a change to the trace: each output scaled by a measured ratio.

A ratio is one prompt's output length under the policy over its length uncompressed. Which pair a request gets is
decided by a quantile that is the request's own, whatever the policy: with common quantiles two policies differ by their
ratios and not by luck.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from leankv.serving.errors import InputError
from leankv.traces.trace import Trace

Floats = npt.NDArray[np.float64]
STREAM = 7
"""Keeps these draws apart from others of the same seed."""


@dataclass(frozen=True)
class LengthShift:
    """Output tokens of the same prompts under the policy and uncompressed, and where they are from (a file's name).

    Raises:
        InputError: there is no pair, the two differ in number, or a length is below 1.
    """

    policy: tuple[int, ...]
    uncompressed: tuple[int, ...]
    source: str

    def __post_init__(self) -> None:
        if len(self.policy) != len(self.uncompressed):
            raise InputError(
                f"{self.source}: {len(self.policy)} output lengths and {len(self.uncompressed)} uncompressed ones; "
                "measure both on the same samples"
            )
        if not self.policy:
            raise InputError(f"{self.source}: no output lengths to learn a shift from; measure some, or leave it out")
        if min(self.policy + self.uncompressed) < 1:
            raise InputError(f"{self.source}: an output of no tokens has no ratio; leave out samples without an answer")

    @property
    def pairs(self) -> int:
        return len(self.policy)

    @property
    def total_ratio(self) -> float:
        """All tokens under the policy over all tokens uncompressed: what outputs are scaled by on average."""
        return sum(self.policy) / sum(self.uncompressed)


def shifted(trace: Trace, shift: LengthShift, seed: int, max_context: int | None = None) -> Trace:
    """Every output length times the ratio of a drawn pair, rounded to whole tokens, at least 1.

    The draw depends on `seed` and the request's row alone. With `max_context` an output grows no further than prompt
    and output together may (one that exceeded it before stays as it was). The sum over many requests is scaled by
    `total_ratio`, but for rounding and the cap.
    """
    quantiles = np.random.default_rng([seed, STREAM]).random(len(trace))
    outputs = trace.output_tokens.astype(np.int64)
    scaled = np.maximum(1, np.rint(outputs * _at_quantiles(shift, quantiles))).astype(np.int64)
    if max_context is not None:
        room = np.maximum(outputs, max_context - trace.prompt_tokens.astype(np.int64))
        scaled = np.minimum(scaled, room)
    scaled = np.minimum(scaled, np.iinfo(np.int32).max)
    pairs = f"{shift.pairs} pairs of total ratio {shift.total_ratio:.4g}"
    step = f"length_shift({len(outputs)} outputs by {pairs}, seed={seed})"
    return replace(trace, output_tokens=scaled.astype(np.int32)).with_step(step)


def _at_quantiles(shift: LengthShift, quantiles: Floats) -> Floats:
    """The ratio at each quantile, pairs weighted by their uncompressed length."""
    # Unweighted, the mean of ratios exceeds the ratio of totals even where lengths are only exchanged between prompts:
    # short answers grow by much and long ones shrink by little, and a request's own length says nothing of its ratio.
    lengths = np.asarray(shift.uncompressed, dtype=np.float64)
    ratios: Floats = np.asarray(shift.policy, dtype=np.float64) / lengths
    order = np.argsort(ratios, kind="stable")
    covered = np.cumsum(lengths[order])
    return ratios[order][np.searchsorted(covered, quantiles * covered[-1], side="right")]
