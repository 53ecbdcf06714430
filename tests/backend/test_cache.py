"""The unified cache: every live policy through prompt and decode, against the oracle and against plain attention."""

from __future__ import annotations

import itertools

import pytest
import torch

from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape, KeyMeans
from leankv.serving.memory import MemoryModel
from leankv.serving.models import model_named
from leankv.serving.policies.registry import policy_named
from leankv.serving.pool_plan import page_bytes_of

SHAPE = CacheShape(layers=2, heads=4, kv_heads=2, head_dim=64)
SCALE = 0.125
LIVE = (
    "fp16", "fp8", "int8", "int4", "kivi:bits=4", "streaming-llm:sink=4,recent=60", "h2o:heavy=0.3,recent=0.2",
    "snapkv:budget=64", "leankv:alpha_high=1,alpha_low=0.3", "leankv-r:recompress_every=8",
    "leankv-r:recompress_every=8,bookkeeping=5", "leankv-r:recompress_every=8,key_transform=centred+rotated",
)  # fmt: skip


def cache_of(*names: str, slots: int = 4, memory: int = 1 << 23, max_tokens: int = 400) -> KVCache:
    plain, before = torch.randn(2, 2, 2, 64, generator=torch.Generator().manual_seed(9))
    means = KeyMeans(plain, before, 100 ** -torch.linspace(0, 1, 32))
    policies = [policy_named(name) for name in names]
    return KVCache(SHAPE, policies, slots=slots, memory_bytes=memory, max_tokens=max_tokens, key_means=means)


class Text:
    """Random queries, keys and values of one request, [layers, tokens, heads, head_dim]."""

    def __init__(self, tokens: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.queries = 2 * torch.randn(2, tokens, 4, 64, generator=generator)
        self.keys = torch.randn(2, tokens, 2, 64, generator=generator)
        self.values = torch.randn(2, tokens, 2, 64, generator=generator)

    def prefill(self, cache: KVCache, slot: int, tokens: int, chunk: int) -> None:
        for start in range(0, tokens, chunk):
            part = slice(start, min(start + chunk, tokens))
            cache.begin_chunk(slot, part.stop - part.start)
            for layer in range(2):
                earlier, _ = cache.prefix(slot, layer)
                assert len(earlier) <= start
                at = layer, part
                cache.store_chunk(slot, layer, self.queries[at], self.keys[at], self.values[at], SCALE)
            cache.end_chunk(slot, part.stop - part.start)
            assert cache.met
            cache.check_integrity()


def decode(cache: KVCache, texts: dict[int, Text], positions: dict[int, int]) -> dict[int, torch.Tensor]:
    """One step for all slots; their outputs [layers, heads, head_dim]."""
    slots = list(texts)
    cache.prepare_step(slots)
    cache.begin_step(torch.tensor([*slots, -1], dtype=torch.int32))
    assert cache.met
    outputs = []
    for layer in range(2):

        def batch(name: str, layer: int = layer) -> torch.Tensor:
            rows = [getattr(texts[slot], name)[layer, positions[slot]] for slot in slots]
            return torch.stack([*rows, torch.zeros_like(rows[0])])

        outputs.append(cache.decode(layer, batch("queries"), batch("keys"), batch("values"), SCALE))
    cache.end_step(slots)
    return {slot: torch.stack([output[i] for output in outputs]) for i, slot in enumerate(slots)}


def plain(text: Text, position: int) -> torch.Tensor:
    keys, values = (x[:, : position + 1].repeat_interleave(2, 2).double() for x in (text.keys, text.values))
    weights = torch.einsum("lhd,lnhd->lhn", text.queries[:, position].double(), keys) * SCALE
    return torch.einsum("lhn,lnhd->lhd", weights.softmax(-1), values)


@pytest.mark.parametrize("chunk", [1000, 33])
@pytest.mark.parametrize("name", LIVE)
def test_every_policy_prefills_decodes_and_gives_all_pages_back(name: str, chunk: int) -> None:
    cache, text = cache_of(name), Text(200)
    cache.admit(1, 150)
    text.prefill(cache, 1, 150, chunk)
    errors = []
    for position in range(150, 190):
        out = decode(cache, {1: text}, {1: position})[1]
        assert torch.isfinite(out).all()
        errors.append(float((out - plain(text, position)).norm() / plain(text, position).norm()))
        cache.check_integrity()
    limits = {"fp16": 1e-3, "fp8": 0.15, "int8": 0.03, "int4": 0.5, "kivi:bits=4": 0.5}
    assert max(errors) < limits.get(name, 10.0), max(errors)
    measured = cache.measure()
    assert measured.free_pages + sum(measured.tier_pages) == cache.pages and measured.staging_pages == 0
    cache.free([1])
    cache.check_integrity()
    assert cache.measure().free_pages == cache.pages


@pytest.mark.parametrize("name", ["fp16", "int8", "kivi:bits=2", "streaming-llm:sink=4,recent=60", "leankv", "h2o"])
def test_chunked_and_whole_prompts_leave_the_same_cache(name: str) -> None:
    outputs = []
    for chunk in (1000, 64, 33):
        cache, text = cache_of(name), Text(170)
        cache.admit(0, 160)
        text.prefill(cache, 0, 160, chunk)
        outputs.append(decode(cache, {0: text}, {0: 160})[0])
    # FP16 staging rounds keys and values; float32 ones were never staged.
    for other in outputs[1:]:
        difference = (outputs[0] - other).norm() / outputs[0].norm()
        assert difference < (5e-2 if name in ("leankv", "h2o", "kivi:bits=2") else 1e-6)


def test_policies_share_one_pool_and_do_not_disturb_each_other() -> None:
    names = ("fp16", "leankv", "kivi:bits=4", "h2o", "streaming-llm:sink=4,recent=60", "leankv-r:recompress_every=4")
    together = cache_of(*names, slots=8, memory=1 << 24)
    texts = {slot: Text(150, seed=slot) for slot in range(len(names))}
    for slot, text in texts.items():
        together.admit(slot, 100 + slot, policy=slot)
        text.prefill(together, slot, 100 + slot, 64)
    alone = {}
    for slot, _name in enumerate(names):
        cache = cache_of(*names, slots=8, memory=1 << 24)
        cache.admit(slot, 100 + slot, policy=slot)
        texts[slot].prefill(cache, slot, 100 + slot, 64)
        alone[slot] = [decode(cache, {slot: texts[slot]}, {slot: 100 + slot + i})[slot] for i in range(30)]
    for i in range(30):
        out = decode(together, texts, {slot: 100 + slot + i for slot in texts})
        together.check_integrity()
        for slot in texts:
            assert torch.allclose(out[slot], alone[slot][i], atol=1e-4), (names[slot], i)
    together.free([1, 3])
    together.check_integrity()
    assert len(together.requests) == 4


def test_a_shortage_in_a_step_changes_nothing_and_can_be_mended() -> None:
    cache = cache_of("leankv", memory=250_000, slots=3)
    texts = {slot: Text(400, seed=slot) for slot in range(3)}
    admitted = []
    for slot, text in texts.items():
        cache.admit(slot, 80)
        text.prefill(cache, slot, 80, 1000)
        admitted.append(slot)
    positions = dict.fromkeys(texts, 80)
    for _ in range(300):
        before = cache.tables.counts.clone(), cache.pool.clone()
        cache.begin_step(torch.tensor(list(texts), dtype=torch.int32))
        met = cache.met
        # A captured step runs to its end, shortage or not.
        for layer in range(2):
            names = ("queries", "keys", "values")
            rows = [torch.stack([getattr(texts[s], name)[layer, positions[s]] for s in texts]) for name in names]
            cache.decode(layer, *rows, SCALE)
        if not met:
            break
        cache.end_step(list(texts))
        positions = {slot: position + 1 for slot, position in positions.items()}
    else:
        pytest.fail("the pool was meant to run out")
    assert torch.equal(before[0], cache.tables.counts) and torch.equal(before[1], cache.pool)
    cache.check_integrity()
    cache.free([2])
    del texts[2]
    cache.begin_step(torch.tensor([0, 1], dtype=torch.int32))
    assert cache.met


def test_recompression_recycles_pages_while_decoding() -> None:
    cache, text = cache_of("leankv-r:recompress_every=40,prune=0.1,low_mass=0.5"), Text(400)
    cache.admit(0, 80)
    text.prefill(cache, 0, 80, 1000)
    free = []
    for position in range(80, 380):
        decode(cache, {0: text}, {0: position})
        free.append(cache.measure().free_pages)
    assert any(later > earlier for earlier, later in itertools.pairwise(free)), "no page came back"
    cache.check_integrity()


def test_requests_keep_their_own_thresholds() -> None:
    cache, text = cache_of("leankv"), Text(200)
    for slot, alphas in enumerate([(0.0, 0.0), (0.0, 1e9), (1e9, 1e9)]):
        cache.admit(slot, 200, alphas=alphas)
        text.prefill(cache, slot, 200, 1000)
    counts = cache.tables.counts.view(4, -1, 2)[:3, 0].tolist()
    assert counts == [[200, 0], [64, 136], [64, 0]]


@pytest.mark.parametrize("name", ["fp16", "int8", "int4", "kivi", "h2o", "snapkv", "leankv", "leankv-r"])
def test_page_size_is_the_memory_models(name: str) -> None:
    model = model_named("llama-3-8b")
    assert page_bytes_of([policy_named(name)], 128) == MemoryModel(policy_named(name), model).page_bytes


def test_bad_construction_says_why() -> None:
    with pytest.raises(ValueError, match="hold no page"):
        cache_of("fp16", memory=1000)
    with pytest.raises(ValueError, match="mean keys"):
        KVCache(SHAPE, [policy_named("leankv-r")], slots=1, memory_bytes=1 << 20, max_tokens=64)
    with pytest.raises((ValueError, TypeError), match="live"):
        cache_of("quest")


def test_a_step_tried_again_flushes_a_window_once() -> None:
    cache, text = cache_of("kivi:bits=4,residual=64"), Text(120)
    cache.admit(0, 64)
    text.prefill(cache, 0, 64, 64)
    for _ in range(2):
        cache.prepare_step([0])
        assert cache.tables.counts[0].tolist() == [32, 32]
