"""The page manager against a plain Python model of it, under random operations (Triton: interpreted_pages.py)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from leankv.kernels import pages as pg

SLOTS, LAYERS, HEADS, MAX_PAGES, PAGES = 3, 2, 2, 6, 20
ROWS = SLOTS * LAYERS * HEADS
CAPACITIES = st.sampled_from([(4, 7), (3, 0), (2, 5)])


class Model:
    """Token counts and capacities by row, and nothing else: pages follow from them."""

    def __init__(self) -> None:
        self.counts = [(0, 0)] * ROWS
        self.capacity = [(0, 0)] * ROWS

    @staticmethod
    def row_pages(counts: tuple[int, int], capacity: tuple[int, int]) -> int:
        return sum(-(-count // per) if per else 0 for count, per in zip(counts, capacity, strict=True))

    def resize(self, rows: list[int], counts: list[tuple[int, int]], capacity: list[tuple[int, int]]) -> bool:
        wanted, per = list(self.counts), list(self.capacity)
        for row, count, cap in zip(rows, counts, capacity, strict=True):
            wanted[row], per[row] = count, cap
        each = [self.row_pages(*pair) for pair in zip(wanted, per, strict=True)]
        if sum(each) > PAGES or max(each) > MAX_PAGES:
            return False
        self.counts, self.capacity = wanted, per
        return True


class PageManager(RuleBasedStateMachine):
    path: pg.Path = "torch"

    def __init__(self) -> None:
        super().__init__()
        self.tables = pg.page_tables(SLOTS, LAYERS, HEADS, MAX_PAGES, PAGES)
        self.model = Model()
        self.unmet = 0

    def _compare(self, ok: bool, before: torch.Tensor) -> None:
        self.unmet += not ok
        assert bool(pg.last_met(self.tables)) == ok
        assert int(self.tables.state[pg.UNMET]) == self.unmet and bool(pg.all_met(self.tables)) == (self.unmet == 0)
        if not ok:
            assert torch.equal(before, self.tables.table), "a shortage wrote to the tables"
            assert int(self.tables.state[pg.DEFICIT]) > 0 or int(self.tables.state[pg.OVERFLOW]) > 0
        assert self.tables.counts.tolist() == [list(pair) for pair in self.model.counts]

    @rule(data=st.data())
    def resize(self, data: st.DataObject) -> None:
        rows = data.draw(st.lists(st.integers(0, ROWS - 1), unique=True, max_size=ROWS))
        capacity = [data.draw(CAPACITIES) for _ in rows]
        counts = [tuple(data.draw(st.integers(0, 18 if per else 0)) for per in pair) for pair in capacity]
        before = self.tables.table.clone()
        ok = self.model.resize(rows, counts, capacity)  # type: ignore[arg-type]
        padded = torch.tensor([*rows, -1], dtype=torch.int32)
        wanted = torch.tensor([*counts, (99, 99)], dtype=torch.int32)
        pg.resize(self.tables, padded, wanted, torch.tensor([*capacity, (1, 1)], dtype=torch.int32), path=self.path)
        self._compare(ok, before)

    @precondition(lambda self: any(any(capacity) for capacity in self.model.capacity))
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        rows = [row for row in range(ROWS) if any(self.model.capacity[row])]
        grow = [tuple(data.draw(st.integers(0, 1)) if per else 0 for per in self.model.capacity[row]) for row in rows]
        before = self.tables.table.clone()
        ok = self.model.resize(
            rows,
            [(self.model.counts[r][0] + g[0], self.model.counts[r][1] + g[1]) for r, g in zip(rows, grow, strict=True)],
            [self.model.capacity[r] for r in rows],
        )
        number = torch.tensor(rows, dtype=torch.int32)
        wanted = self.tables.counts[number] + torch.tensor(grow, dtype=torch.int32)
        pg.resize(self.tables, number, wanted, path=self.path)
        self._compare(ok, before)

    @rule(slot=st.integers(0, SLOTS - 1))
    def free(self, slot: int) -> None:
        rows = pg.rows_of(self.tables, torch.tensor([slot, -1]))
        live = [row for row in rows.flatten().tolist() if row >= 0]
        self.model.resize(live, [(0, 0)] * len(live), [self.model.capacity[r] for r in live])
        pg.free(self.tables, rows, path=self.path)
        self._compare(True, self.tables.table)

    @rule()
    def forget(self) -> None:
        shortages = self.tables.state[pg.DEFICIT : pg.UNMET].tolist()
        pg.forget_unmet(self.tables)
        self.unmet = 0
        assert self.tables.state[pg.DEFICIT : pg.UNMET].tolist() == shortages

    @invariant()
    def whole(self) -> None:
        pg.check_integrity(self.tables)
        held = sum(Model.row_pages(*pair) for pair in zip(self.model.counts, self.model.capacity, strict=True))
        assert int(self.tables.state[pg.FREE]) == PAGES - held, "a page leaked"


class ReferencePageManager(PageManager):
    path = "reference"


PageManager.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
ReferencePageManager.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestPageManager = PageManager.TestCase
TestReferencePageManager = ReferencePageManager.TestCase


def _tables(pages: int = 8, path: pg.Path = "torch") -> pg.PageTables:
    tables = pg.page_tables(1, 1, 2, 6, pages)
    rows, capacity = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([[4, 4], [4, 4]], dtype=torch.int32)
    pg.resize(tables, rows, torch.tensor([[8, 4], [4, 0]], dtype=torch.int32), capacity, path=path)
    return tables


@pytest.mark.parametrize("path", ["reference", "torch"])
def test_tiers_fill_from_both_ends(path: pg.Path) -> None:
    assert _tables(path=path).table.tolist() == [[0, 1, -1, -1, -1, 2], [3, -1, -1, -1, -1, -1]]


@pytest.mark.parametrize("path", ["reference", "torch"])
def test_a_page_freed_by_one_row_serves_another_in_the_same_call(path: pg.Path) -> None:
    tables = _tables(pages=4, path=path)
    pg.resize(tables, torch.tensor([0, 1]), torch.tensor([[4, 4], [8, 0]]).int(), path=path)
    assert bool(pg.last_met(tables))
    assert tables.table.tolist() == [[0, -1, -1, -1, -1, 2], [3, 1, -1, -1, -1, -1]]


def test_a_row_past_its_table_is_a_shortage() -> None:
    tables = _tables(pages=30)
    pg.resize(tables, torch.tensor([0]), torch.tensor([[24, 4]]).int())
    assert tables.state[pg.OVERFLOW] == 1 and not pg.last_met(tables)
    pg.check_integrity(tables)


@pytest.mark.parametrize("damage", ["twice", "lost", "count", "tail"])
def test_damage_is_found(damage: str) -> None:
    tables = _tables()
    if damage == "twice":
        tables.table[1, 0] = 0
    elif damage == "lost":
        tables.state[pg.FREE] -= 1
        tables.state[pg.TAIL] -= 1
    elif damage == "count":
        tables.counts[0, 0] = 9
    else:
        tables.state[pg.TAIL] += 1
    with pytest.raises(pg.PageIntegrityError):
        pg.check_integrity(tables)
