"""How close one trace is to another, or to the table of figures it was generated from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from leankv.traces.describe import describe, gaps_s, ks_distance, ks_to_quantiles
from leankv.traces.trace import Trace


def compare_to_figures(trace: Trace, table: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of the trace beside those stored in a table (JSON-able), with KS distances of lengths and gaps.

    The table's quantiles are those of the real trace, so the distances are to the real one within the grid's 0.1 %.
    """
    grid = np.asarray(table["probabilities"])
    return {
        "to": table.get("of", table["name"]),
        "ks": {
            "prompt": round(ks_to_quantiles(trace.prompt_tokens, grid, table["prompt_tokens"]), 4),
            "output": round(ks_to_quantiles(trace.output_tokens, grid, table["output_tokens"]), 4),
            "gaps": round(ks_to_quantiles(gaps_s(trace), np.asarray(table["gap_probabilities"]), table["gap_s"]), 4),
        },
        "figures": table["figures"],
    }


def compare(trace: Trace, other: Trace) -> dict[str, Any]:
    """The same against another trace, request by request (exact KS distances)."""
    return {
        "to": other.name,
        "ks": {
            "prompt": round(ks_distance(trace.prompt_tokens, other.prompt_tokens), 4),
            "output": round(ks_distance(trace.output_tokens, other.output_tokens), 4),
            "gaps": round(ks_distance(gaps_s(trace), gaps_s(other)), 4),
        },
        "figures": describe(other).figures(),
    }
