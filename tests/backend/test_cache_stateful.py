"""The unified cache under random operations in too little memory: mixed policies, chunks, preemption, recompression."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape, KeyMeans
from leankv.serving.policies.registry import policy_named

NAMES = (
    "fp16", "int8", "kivi:bits=4,residual=32", "streaming-llm:sink=2,recent=20", "h2o:heavy=0.3,recent=0.2",
    "snapkv:budget=40,window=8", "leankv:alpha_high=1.5,alpha_low=0.6,window=8",
    "leankv-r:recompress_every=4,prune=0.1,low_mass=0.5,window=8", "leankv:window=8,key_transform=rope-centred",
)  # fmt: skip
SLOTS, LONGEST = 5, 160


class CrowdedCache(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        shape, policies = CacheShape(1, 4, 2, 64), [policy_named(name) for name in NAMES]
        means = KeyMeans(*torch.zeros(2, 1, 2, 64), torch.ones(32))
        self.cache = KVCache(shape, policies, slots=SLOTS, memory_bytes=100_000, max_tokens=LONGEST, key_means=means)
        self.running: list[int] = []

    def _pages(self) -> int:
        return int(self.cache.free_pages)

    @precondition(lambda self: len(self.running) < SLOTS)
    @rule(policy=st.integers(0, len(NAMES) - 1), prompt=st.integers(1, 110), chunk=st.integers(1, 120))
    def prefill(self, policy: int, prompt: int, chunk: int) -> None:
        slot = min(set(range(SLOTS)) - set(self.running))
        self.cache.admit(slot, prompt, policy)
        for start in range(0, prompt, chunk):
            tokens = min(chunk, prompt - start)
            free = self._pages()
            self.cache.begin_chunk(slot, tokens)
            if self.cache.met:
                earlier, _ = self.cache.prefix(slot, 0)
                assert torch.isfinite(earlier).all()
                new = torch.randn(tokens, 2, 64)
                self.cache.store_chunk(slot, 0, 2 * torch.randn(tokens, 4, 64), new, new, 0.125)
            if not self.cache.met:
                assert self._pages() <= free, "a shortage gave pages back"
                self.cache.free([slot])
                return
            self.cache.end_chunk(slot, tokens)
            self.cache.check_integrity()
        self.running.append(slot)

    @precondition(lambda self: self.running)
    @rule(steps=st.integers(1, 12))
    def decode(self, steps: int) -> None:
        for _ in range(steps):
            going = [slot for slot in self.running if self.cache.requests[slot].done < LONGEST]
            if not going:
                return
            self.cache.prepare_step(going)
            before = self.cache.tables.counts.clone()
            self.cache.begin_step(torch.tensor([*going, -1], dtype=torch.int32))
            if not self.cache.met:
                assert torch.equal(before, self.cache.tables.counts), "a shortage changed a row"
                self._preempt(len(self.running) - 1)
                return
            new = torch.randn(len(going) + 1, 2, 64)
            output = self.cache.decode(0, torch.randn(len(going) + 1, 4, 64), new, new, 0.125)
            assert torch.isfinite(output).all() and not output[-1].any()
            self.cache.end_step(going)
            self.cache.check_integrity()

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, SLOTS))
    def finish(self, which: int) -> None:
        self._preempt(which % len(self.running))

    def _preempt(self, which: int) -> None:
        self.cache.free([self.running.pop(which)])

    @invariant()
    def whole(self) -> None:
        self.cache.check_integrity()
        measured = self.cache.measure()
        assert measured.free_pages + sum(measured.tier_pages) == self.cache.pages, "a page leaked"
        assert measured.staging_pages == 0


CrowdedCache.TestCase.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
TestCrowdedCache = CrowdedCache.TestCase
