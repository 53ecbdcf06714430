"""Run in a child process under Triton's interpreter: the page manager's kernels against its reference."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch

from leankv.kernels import pages as pg
from leankv.kernels import pages_triton

sys.path.insert(0, str(Path(__file__).parent))
from read_back import NoReadBack


def _same(one: pg.PageTables, other: pg.PageTables) -> None:
    for name in ("table", "counts", "tokens_per_page", "free_list", "state"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def main() -> None:
    pages_triton.BLOCK_ROWS = 4  # several blocks, so that the sums between blocks are exercised
    draw = random.Random(0)
    met = 0
    for pages in (11, 29):
        kernel, reference = (pg.page_tables(3, 2, 2, 6, pages) for _ in range(2))
        for _ in range(9):
            rows = [*draw.sample(range(12), draw.randint(1, 12)), -1]
            capacity = [draw.choice([(4, 7), (3, 0), (2, 5)]) for _ in rows]
            tokens = [[draw.randint(0, 9) if per else 0 for per in pair] for pair in capacity]
            asked = [torch.tensor(each, dtype=torch.int32) for each in (rows, tokens, capacity)]
            pg.resize(reference, *asked, path="reference")
            with NoReadBack():
                pg.resize(kernel, *asked, path="triton")
            _same(kernel, reference)
            pg.check_integrity(kernel)
            met += int(pg.last_met(kernel))
        with NoReadBack():
            pg.free(kernel, torch.arange(12, dtype=torch.int32), path="triton")
        assert int(kernel.state[pg.FREE]) == pages
    assert 3 < met < 15, "both outcomes must occur"


if __name__ == "__main__":
    main()
