"""Every live policy's selector on a prompt against the NumPy oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leankv.kernels.classify import PRUNED
from leankv.kernels.selectors import place_prompt, score_prompt, scored_queries, select_prompt
from leankv.serving.policies.registry import policy_named

from .oracle import Head, prefill_sums

POLICIES = (
    "fp16", "fp8", "int8", "int4", "kivi:bits=4", "kivi:bits=2,residual=64", "streaming-llm",
    "streaming-llm:sink=4,recent=30",
    "h2o", "h2o:heavy=0.3,recent=0.2", "snapkv:budget=64", "snapkv:budget=48,window=16,kernel=5", "leankv",
    "leankv:alpha_high=2,alpha_low=0.5", "leankv:alpha_high=1,alpha_low=0.3,relative_to=position", "leankv-r",
    "leankv-r:prune=0.1,low_mass=0.5,window=16",
)  # fmt: skip


@pytest.mark.parametrize("path", ["reference", "torch"])
@pytest.mark.parametrize("tokens", [1, 40, 64, 65, 200])
@pytest.mark.parametrize("name", POLICIES)
def test_prompt_selection_is_the_oracles(name: str, tokens: int, path) -> None:  # type: ignore[no-untyped-def]
    policy = policy_named(name)
    generator = torch.Generator().manual_seed(tokens)
    queries = 2 * torch.randn(tokens, 6, 64, generator=generator)
    keys = torch.randn(tokens, 2, 64, generator=generator)
    window = scored_queries(policy, tokens)
    if window:
        sums = score_prompt(policy, queries[-window:], keys, 0.125, path)
        exact = prefill_sums(queries.numpy(), keys.numpy(), 0.125, window, policy.score.over_group)
        assert np.allclose(sums.numpy(), exact, atol=1e-5 * window)
    else:
        sums = torch.zeros(2, tokens)
    tiers = select_prompt(policy, sums, path)
    for head in range(2):
        found = {i: int(tier) for i, tier in enumerate(tiers[head]) if tier != PRUNED}
        assert found == Head(policy, sums[head].numpy()).held()


@pytest.mark.parametrize("name", POLICIES)
def test_places_are_dense_in_each_tier(name: str) -> None:
    policy = policy_named(name)
    tiers = select_prompt(policy, torch.rand(3, 150, generator=torch.Generator().manual_seed(1)))
    places, counts = place_prompt(policy, tiers)
    for head in range(3):
        for tier in (0, 1):
            taken = places[head, tiers[head] == tier]
            assert sorted(taken.tolist()) == list(range(int(counts[head, tier])))


def test_ties_go_to_the_older_token() -> None:
    tiers = select_prompt(policy_named("snapkv:budget=36,window=32,kernel=1"), torch.ones(1, 50))
    assert tiers[0].tolist() == [PRUNED] * 14 + [0] * 36
