"""The noun of this package: when requests arrive, how long they are, and which prompt blocks they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from leankv.serving.errors import InputError

PS_PER_S = 10**12
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PrefixBlocks:
    """Hashes of prompt blocks, request after request (compressed rows).

    Request i holds `hashes[offsets[i]:offsets[i + 1]]`; each hash stands for `block_tokens` prompt tokens together
    with everything before them, so equal hashes mean equal prefixes (Mooncake, FAST 2025, appendix).
    """

    offsets: IntArray
    hashes: IntArray
    block_tokens: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: IntArray) -> PrefixBlocks:
        """The blocks of `rows` (int64[m]), in that order; a row may be named more than once."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return PrefixBlocks(offsets, self.hashes[np.repeat(self.offsets[rows], lengths) + within], self.block_tokens)


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival; all arrays have the same length n >= 1.

    arrival_ps: int64[n], picoseconds since the start, not decreasing, first >= 0.
    prompt_tokens, output_tokens: int32[n], all >= 1.
    provenance: where the trace came from and what was done to it (JSON-able).
    warnings: what was mended or assumed on the way, one line each.

    Raises:
        InputError: the arrays break one of these rules.
    """

    name: str
    arrival_ps: IntArray
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    prefix_hashes: PrefixBlocks | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.arrival_ps)
        if n == 0:
            raise InputError(f"{self.name}: the trace is empty; give one with at least one request")
        if len(self.prompt_tokens) != n or len(self.output_tokens) != n:
            raise InputError(
                f"{self.name}: arrival, prompt and output columns differ in length; give one row a request"
            )
        if self.prefix_hashes is not None and len(self.prefix_hashes) != n:
            raise InputError(f"{self.name}: prefix hashes are not one row a request; give one list a request")
        self._check_arrivals()
        self._set_lengths("prompt_tokens")
        self._set_lengths("output_tokens")

    def _check_arrivals(self) -> None:
        arrivals = np.asarray(self.arrival_ps)
        if arrivals.dtype != np.int64:
            raise InputError(f"{self.name}: arrivals must be whole picoseconds (int64), not {arrivals.dtype}")
        if arrivals[0] < 0:
            raise InputError(f"{self.name}: row 1 arrives before time 0; shift the arrivals to start at 0")
        if (arrivals[1:] < arrivals[:-1]).any():
            row = int(np.argmax(arrivals[1:] < arrivals[:-1])) + 2
            raise InputError(f"{self.name}: row {row} arrives before the row above it; sort the rows by arrival")

    def _set_lengths(self, column: str) -> None:
        lengths = np.asarray(getattr(self, column))
        if (lengths < 1).any():
            row = int(np.argmax(lengths < 1)) + 1
            raise InputError(f"{self.name}: row {row} has {column} = {lengths[row - 1]}; lengths must be at least 1")
        object.__setattr__(self, column, lengths.astype(np.int32, copy=False))

    def __len__(self) -> int:
        return len(self.arrival_ps)

    @property
    def span_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return float(self.arrival_ps[-1] - self.arrival_ps[0]) / PS_PER_S

    def take(self, rows: IntArray, arrival_ps: IntArray | None = None) -> Trace:
        """The requests at `rows` (int64[m]), with new arrivals (int64[m], sorted) or their own."""
        return replace(
            self,
            arrival_ps=self.arrival_ps[rows] if arrival_ps is None else arrival_ps,
            prompt_tokens=self.prompt_tokens[rows],
            output_tokens=self.output_tokens[rows],
            prefix_hashes=None if self.prefix_hashes is None else self.prefix_hashes.take(rows),
        )

    def with_step(self, step: str, *warnings: str) -> Trace:
        """The same trace with `step` appended to the steps in its provenance, and `warnings` to its warnings."""
        steps = [*self.provenance.get("steps", ()), step]
        return replace(self, provenance={**self.provenance, "steps": steps}, warnings=self.warnings + warnings)
