"""BurstGPT (HPMLL/BurstGPT, arXiv 2401.17644): seconds since the first day, request and response tokens.

`BurstGPT_1.csv` and later files keep failed requests, documented as `Response tokens` = 0. They never produced a
token, so they are left out and counted in a warning.
"""

from __future__ import annotations

import numpy as np

from leankv.traces.columns import arrivals_ps, assembled, lengths
from leankv.traces.source import Source
from leankv.traces.tables import read_csv
from leankv.traces.trace import Trace

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def read_burstgpt(source: Source) -> Trace:
    """Raises InputError naming file, row and mend for anything unreadable."""
    table = read_csv(source, COLUMNS)
    output = lengths(source, table.column(COLUMNS[2]), COLUMNS[2], least=0)
    succeeded = np.flatnonzero(output > 0)
    failed = len(output) - len(succeeded)
    warnings = (f"{source.label}: {failed} failed requests (0 response tokens) left out",) if failed else ()
    table = table.take(succeeded)
    return assembled(
        source,
        arrivals_ps(source, table.column(COLUMNS[0]), COLUMNS[0]),
        lengths(source, table.column(COLUMNS[1]), COLUMNS[1]),
        output[succeeded],
        format="burstgpt",
        warnings=warnings,
    )
