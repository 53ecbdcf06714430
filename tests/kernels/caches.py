"""Small caches with known contents, for the tests of the decode step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from leankv.kernels import pages as pg
from leankv.kernels.layout import locate
from leankv.kernels.store import Tokens, gather, store
from leankv.serving.pages import PageLayout

Held = Sequence[tuple[int, float]]
"""Tokens of a tier as (position, stored score)."""


class SmallCache:
    """Rows of tables over one pool, filled tier by tier with given positions and scores."""

    def __init__(self, layouts: tuple[PageLayout, ...], rows: list[list[Held]], pages: int = 64) -> None:
        self.layouts = layouts
        generator = torch.Generator().manual_seed(7)
        self.pool = torch.randint(0, 256, (pages, layouts[0].page_bytes), dtype=torch.uint8, generator=generator)
        self.tables = pg.page_tables(1, 1, len(rows), 16, pages)
        number = torch.arange(len(rows), dtype=torch.int32)
        capacity = [[layout.tokens for layout in layouts] + [0] * (2 - len(layouts))] * len(rows)
        counts = [[len(tier) for tier in tiers] + [0] * (2 - len(tiers)) for tiers in rows]
        pg.resize(self.tables, number, torch.tensor(counts).int(), torch.tensor(capacity).int())
        assert bool(pg.last_met(self.tables))
        for row, tiers in enumerate(rows):
            for tier, held in enumerate(tiers):
                self._fill(row, tier, held)

    def _fill(self, row: int, tier: int, held: Held) -> None:
        if not held:
            return
        layout, generator = self.layouts[tier], torch.Generator().manual_seed(row * 2 + tier)
        keys, values = (torch.randn(len(held), 1, layout.head_dim, generator=generator) for _ in range(2))
        positions = torch.tensor([[position] for position, _ in held], dtype=torch.int32)
        scores = torch.tensor([[score] for _, score in held], dtype=torch.float32)
        page, place = self.where(row, tier, len(held))
        store(self.pool, layout, page[:, None], place[:, None], Tokens(keys, values, scores, positions))

    def where(self, row: int, tier: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        return locate(self.tables.table[row], torch.arange(tokens), tier, self.layouts[tier])

    def tokens(self, row: int, tier: int) -> Tokens:
        """All tokens of a tier, [n, 1, ...]."""
        page, place = self.where(row, tier, int(self.tables.counts[row, tier]))
        return gather(self.pool, self.layouts[tier], page[:, None], place[:, None])

    def held(self, row: int, tier: int) -> list[tuple[int, float]]:
        found = self.tokens(row, tier)
        return sorted(zip(found.positions.flatten().tolist(), found.scores.flatten().tolist(), strict=True))
