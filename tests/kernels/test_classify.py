"""Classification by threshold and by mass: cut-offs to the letter, and the vectorised form against the reference."""

from __future__ import annotations

import pytest
import torch

from leankv.kernels.classify import HIGH, LOW, PRUNED, by_mass, by_threshold
from leankv.kernels.paths import Path

PATHS = ("reference", "torch")


@pytest.mark.parametrize("path", PATHS)
def test_thresholds_are_exclusive_and_the_window_is_exempt(path: Path) -> None:
    # Of 16 tokens, uniform attention is 1/16: pruned below 1/32, low below 1/8; the last four stay.
    values = [1 / 64, 1 / 32, 1 / 16, 1 / 8, 0.0, 0.0]
    positions = torch.tensor([[0, 1, 2, 3, 11, 12]], dtype=torch.int32)
    tiers = by_threshold(torch.tensor([values]), positions, 16, 0.5, 2.0, window=4, path=path)
    assert tiers[0].tolist() == [PRUNED, LOW, LOW, HIGH, PRUNED, HIGH]


@pytest.mark.parametrize("path", PATHS)
def test_mass_cut_offs_are_inclusive_and_ties_fall_on_the_older_token(path: Path) -> None:
    # Ascending: 1/8 (older), 1/8, 1/4, 1/2; the mass up to them: 1/8, 1/4, 1/2, 1.
    values = torch.tensor([[0.5, 0.125, 0.25, 0.125]])
    positions = torch.tensor([[0, 3, 1, 2]], dtype=torch.int32)
    tiers = by_mass(values, positions, 100, 0.125, 0.5, window=4, path=path)
    assert tiers[0].tolist() == [HIGH, LOW, LOW, PRUNED]


@pytest.mark.parametrize("seed", range(5))
def test_vectorised_agrees_with_the_reference(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    significance = (torch.rand(4, 90, generator=generator) * 16).floor() / 16 / 64
    positions = torch.stack([torch.randperm(180, generator=generator)[:90] for _ in range(4)]).int()
    positions[torch.rand(4, 90, generator=generator) < 0.1] = -1
    lengths = torch.tensor([[180], [128], [64], [200]], dtype=torch.int32)
    for variant in ("code", "paper"):
        asked = (significance, positions, lengths, 0.5, 1.5, 10, variant)
        assert torch.equal(by_threshold(*asked, path="torch"), by_threshold(*asked, path="reference"))  # type: ignore[arg-type]
    for shares in ((0.0, 1.0), (0.25, 0.5), (0.1, 0.1)):
        mass = [by_mass(significance, positions, lengths, *shares, 10, path=path) for path in ("torch", "reference")]
        assert torch.equal(*mass), shares
