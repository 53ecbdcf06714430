"""Length files without arrivals (Vidur's processed traces, ShareGPT lengths): num_prefill_tokens,num_decode_tokens,...

They say what requests look like, not when they come, so an arrival process must be joined to them.
"""

from __future__ import annotations

import numpy as np

from leankv.traces.arrivals import Arrivals
from leankv.traces.columns import assembled, lengths
from leankv.traces.source import Source
from leankv.traces.tables import read_csv
from leankv.traces.trace import Trace

COLUMNS = ("num_prefill_tokens", "num_decode_tokens")


def read_lengths(source: Source, arrivals: Arrivals | None = None, seed: int = 0) -> Trace:
    """The file's rows in order, at the times of `arrivals` (Poisson at 1/s, with a warning, where none is given).

    Raises:
        InputError: naming file, row and mend for anything unreadable.
    """
    process = arrivals or Arrivals()
    table = read_csv(source, COLUMNS)
    prompt = lengths(source, table.column(COLUMNS[0]), COLUMNS[0])
    output = lengths(source, table.column(COLUMNS[1]), COLUMNS[1])
    times = process.draw(np.random.default_rng(seed), len(prompt)) if len(prompt) else np.zeros(0, np.int64)
    provenance = {"arrivals": vars(process), "seed": seed}
    trace = assembled(source, times, prompt, output, "lengths", provenance=provenance)
    if arrivals is not None:
        return trace
    mend = "choose others with --arrivals, e.g. --arrivals gamma:rate=5,cv=2"
    return trace.with_step("arrivals", f"{source.label}: has no arrivals; given Poisson ones at 1 request/s ({mend})")
