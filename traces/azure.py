"""Azure LLM inference traces (Azure/AzurePublicDataset): TIMESTAMP,ContextTokens,GeneratedTokens.

2023: `2023-11-16 18:15:46.6805900`; 2024: `2024-05-10 00:00:00.009930+00:00`, with the zone. Timestamps become
picoseconds since the first, exactly. Splitwise (ISCA 2024); DynamoLLM (HPCA 2025).
"""

from __future__ import annotations

from leankv.traces.columns import arrivals_ps, assembled, lengths
from leankv.traces.source import Source
from leankv.traces.tables import read_csv
from leankv.traces.trace import Trace

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_azure(source: Source) -> Trace:
    """Raises InputError naming file, row and mend for anything unreadable."""
    table = read_csv(source, COLUMNS)
    arrival, prompt, output = (table.column(name) for name in COLUMNS)
    return assembled(
        source,
        arrivals_ps(source, arrival, "TIMESTAMP"),
        lengths(source, prompt, "ContextTokens"),
        lengths(source, output, "GeneratedTokens"),
        format="azure",
    )
