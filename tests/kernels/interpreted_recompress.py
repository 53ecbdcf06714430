"""Run in a child process under Triton's interpreter: recompression, byte for byte as its vectorised form."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from caches import SmallCache
from read_back import NoReadBack

from leankv.kernels import pages as pg
from leankv.kernels import recompress_triton
from leankv.kernels.decode_rules import StepInputs
from leankv.kernels.recompress import recompress
from leankv.serving.formats import FP8, K3V2, K4V2, K8V4, KVFormat
from leankv.serving.pages import layout_of, page_bytes_for
from leankv.serving.policies.budgets import MassTiers

ROWS, LENGTH, PROMPT = 5, 200, 150


def _cache(formats: tuple[KVFormat, KVFormat], bookkeeping: int, pages: int) -> SmallCache:
    """Rows of both tiers, of one, and of none; scores with ties and zeros."""
    draw = random.Random(pages)
    size = page_bytes_for(64, formats, bookkeeping)
    layouts = tuple(layout_of(f, 64, size, bookkeeping) for f in formats)
    rows: list[list[list[tuple[int, float]]]] = []
    for high, low in ((60, 40), (70, 0), (0, 50), (0, 0), (20, 45)):
        ids = draw.sample(range(LENGTH), high + low)
        tokens = [(i, draw.choice([0.0, 0.25, draw.random()]) * (1 if bookkeeping == 8 else 0.01)) for i in ids]
        rows.append([tokens[:high], tokens[high:]])
    return SmallCache(layouts, rows, pages)


def _step() -> StepInputs:
    # One row of padding in between, which must not touch row 0.
    rows = torch.tensor([0, 1, -1, 2, 3, 4], dtype=torch.int32)
    whole = [torch.full((len(rows),), value, dtype=torch.int32) for value in (LENGTH, PROMPT)]
    nothing = torch.zeros(len(rows), dtype=torch.int32)
    return StepInputs(rows, *whole, nothing.float(), nothing.float(), nothing, nothing)


def check(formats: tuple[KVFormat, KVFormat], bookkeeping: int, shares: tuple[float, float], pages: int = 64) -> bool:
    """Whether both forms found pages enough; all they left behind is equal."""
    kernel, plain = (_cache(formats, bookkeeping, pages) for _ in range(2))
    assert torch.equal(kernel.pool, plain.pool)
    workspace = recompress_triton.RecompressWorkspace.empty(8, LENGTH, 64, "cpu")
    for buffer in vars(workspace).values():
        buffer.fill_(77)
    errors, budget = torch.zeros(1, dtype=torch.int32), MassTiers(*shares, window=8, recompress_every=1)
    before = kernel.tables.counts.clone()
    with NoReadBack():
        recompress(
            kernel.pool, kernel.tables, kernel.layouts, budget, _step(), 64, errors, "triton", workspace  # type: ignore[arg-type]
        )  # fmt: skip
    recompress(plain.pool, plain.tables, plain.layouts, budget, _step(), path="torch")  # type: ignore[arg-type]
    for name in ("table", "counts", "free_list"):
        assert torch.equal(getattr(kernel.tables, name), getattr(plain.tables, name)), name
    assert torch.equal(kernel.pool, plain.pool) and int(errors) == 0
    assert kernel.tables.state[pg.DEFICIT : pg.OK].tolist() == [0, 0, 0], "no shortage is on record"
    pg.check_integrity(kernel.tables)
    print([f.name for f in formats], bookkeeping, shares, kernel.tables.counts.tolist(), flush=True)
    return not torch.equal(before, kernel.tables.counts)


def main() -> None:
    recompress_triton.BLOCK = 32  # several blocks a tier, so that running counts between blocks are exercised
    assert check((K8V4, K4V2), 8, (0.05, 0.4))
    assert check((K8V4, K3V2), 5, (0.2, 0.6))
    assert check((FP8, K4V2), 8, (0.0, 0.3))
    # Everything that may fall is lowered: the low tier needs pages that the high one has not given up yet.
    probe = _cache((K8V4, K4V2), 8, 64)
    held = 64 - int(probe.tables.state[pg.FREE])
    assert not check((K8V4, K4V2), 8, (0.0, 1.0), pages=held)
    assert check((K8V4, K4V2), 8, (0.0, 1.0), pages=held + 12)


if __name__ == "__main__":
    main()
