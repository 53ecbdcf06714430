"""Run in a child process under Triton's interpreter: the unified cache on its kernels, beside its vectorised form.

A mixed batch prefills in chunks, decodes and recompresses; outputs and tables must agree. From `begin_step` to the last
`decode` nothing may wait for the device, since a CUDA graph will hold that part.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from read_back import NoReadBack

from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape
from leankv.kernels.paths import Path as Form
from leankv.serving.policies.registry import policy_named

NAMES = (
    "fp16",
    "leankv:alpha_high=1.5,alpha_low=0.7,window=8",
    "streaming-llm:sink=2,recent=9",
    "h2o:heavy=0.3,recent=0.2",
    "leankv-r:recompress_every=2,prune=0.1,low_mass=0.5,window=4",
    "kivi:bits=4,residual=32",
)
SHAPE = CacheShape(1, 2, 1, 64)
PROMPT, STEPS = 34, 3


def _cache(path: Form) -> KVCache:
    policies = [policy_named(name) for name in NAMES]
    means = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(2))
    return KVCache(SHAPE, policies, slots=6, memory_bytes=1 << 19, max_tokens=48, key_means=means, path=path)


def _run(path: Form) -> tuple[KVCache, list[torch.Tensor]]:
    cache, generator = _cache(path), torch.Generator().manual_seed(4)

    def draw(tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, 64, generator=generator).half()

    for slot in range(len(NAMES)):
        cache.admit(slot, PROMPT, policy=slot)
        for tokens in (6, 28):
            cache.begin_chunk(slot, tokens)
            cache.prefix(slot, 0)
            cache.store_chunk(slot, 0, 2 * draw(tokens, 2), draw(tokens, 1), draw(tokens, 1), 0.125)
            cache.end_chunk(slot, tokens)
            assert cache.met
    outputs, slots = [], list(range(len(NAMES)))
    for _ in range(STEPS):
        batch = torch.tensor([*slots, -1], dtype=torch.int32)
        new = (2 * draw(len(batch), 2), draw(len(batch), 1), draw(len(batch), 1))
        cache.prepare_step(slots)
        if path == "triton":
            with NoReadBack():
                cache.begin_step(batch)
                outputs.append(cache.decode(0, *new, 0.125))
        else:
            cache.begin_step(batch)
            outputs.append(cache.decode(0, *new, 0.125))
        assert cache.met
        cache.end_step(slots)
        cache.check_integrity()
    assert int(cache.errors) == 0
    return cache, outputs


def main() -> None:
    (kernels, found), (plain, expected) = _run("triton"), _run("torch")
    assert torch.equal(kernels.tables.counts, plain.tables.counts)
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all()
        assert torch.allclose(one.float(), other.float(), atol=4e-3 * float(other.abs().max()))


if __name__ == "__main__":
    main()
