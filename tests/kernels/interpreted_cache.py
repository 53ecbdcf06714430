"""Run in a child process under Triton's interpreter: the unified cache on its kernels, beside its vectorised form.

A mixed batch of every kind of live policy prefills in chunks, decodes, recompresses and flushes; outputs and tables
must agree. Nothing on the way may wait for the device, prompts, recompression and flushes included.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from read_back import NoReadBack

from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape, KeyMeans
from leankv.kernels.paths import Path as Form
from leankv.serving.policies.registry import policy_named

NAMES = (
    "fp16",
    "leankv:alpha_high=1.5,alpha_low=0.7,window=8",
    "streaming-llm:sink=2,recent=9",
    "h2o:heavy=0.3,recent=0.2",
    "leankv-r:recompress_every=1,prune=0.1,low_mass=0.5,window=4",
    "kivi:bits=4,residual=32",
    "leankv:alpha_high=1.5,alpha_low=0.7,window=8,key_transform=rope-centred+rotated",
)
SHAPE = CacheShape(layers=2, heads=4, kv_heads=2, head_dim=64)
PROMPT, STEPS = 31, 2


def _cache(path: Form) -> KVCache:
    policies = [policy_named(name) for name in NAMES]
    plain, before = torch.randn(2, 2, 2, 64, generator=torch.Generator().manual_seed(2))
    means = KeyMeans(plain, before, 100 ** -torch.linspace(0, 1, 32))
    return KVCache(SHAPE, policies, slots=len(NAMES), memory_bytes=1 << 21, max_tokens=40, key_means=means, path=path)


def _run(path: Form) -> tuple[KVCache, list[torch.Tensor]]:
    cache, generator = _cache(path), torch.Generator().manual_seed(4)

    def guard() -> AbstractContextManager[object]:
        return NoReadBack() if path == "triton" else nullcontext()

    def draw(tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, 64, generator=generator).half()

    for slot in range(len(NAMES)):
        with guard():
            cache.admit(slot, PROMPT, policy=slot)
            for tokens in (6, PROMPT - 6):
                cache.begin_chunk(slot, tokens)
                for layer in range(SHAPE.layers):
                    cache.prefix(slot, layer)
                    cache.store_chunk(slot, layer, 2 * draw(tokens, 4), draw(tokens, 2), draw(tokens, 2), 0.125)
                cache.end_chunk(slot, tokens)
        assert cache.met
    outputs, slots = [], list(range(len(NAMES)))
    for _ in range(STEPS):
        batch = torch.tensor([*slots, -1], dtype=torch.int32)
        new = [(2 * draw(len(batch), 4), draw(len(batch), 2), draw(len(batch), 2)) for _ in range(SHAPE.layers)]
        with guard():
            cache.prepare_step(slots)
            cache.begin_step(batch)
            outputs += [cache.decode(layer, *new[layer], 0.125) for layer in range(SHAPE.layers)]
            cache.end_step(slots)
        assert cache.met
        cache.check_integrity()
    assert cache.faults().tolist() == [0, 0, 0]
    return cache, outputs


def main() -> None:
    (kernels, found), (plain, expected) = _run("triton"), _run("torch")
    assert torch.equal(kernels.tables.counts, plain.tables.counts)
    quantized = kernels.tables.counts.view(len(NAMES), -1, 2)[NAMES.index("kivi:bits=4,residual=32"), :, 1]
    assert bool((quantized == 32).all()), "KIVI's window was meant to be flushed in a decode step"
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all()
        assert torch.allclose(one.float(), other.float(), atol=4e-3 * float(other.abs().max()))


if __name__ == "__main__":
    main()
