"""Run in a child process under Triton's interpreter: classification by threshold and by mass."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from read_back import NoReadBack

from leankv.kernels import classify_triton
from leankv.kernels.classify import by_mass, by_threshold


def _tokens(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three heads with shuffled positions, empty places, zeros and ties."""
    generator = torch.Generator().manual_seed(seed)
    significance = (torch.rand(3, tokens, generator=generator) * 20).floor() / 20 / tokens
    positions = torch.stack([torch.randperm(2 * tokens, generator=generator)[:tokens] for _ in range(3)]).int()
    positions[torch.rand(3, tokens, generator=generator) < 0.1] = -1
    return significance, positions


def main() -> None:
    classify_triton.BLOCK = 64
    for tokens in (1, 100):
        given = _tokens(tokens, tokens)
        lengths = torch.tensor([[2 * tokens], [tokens], [3 * tokens]], dtype=torch.int32)
        for length in (2 * tokens, lengths):
            for variant in ("code", "paper"):
                asked = (*given, length, 0.3, 1.1, 10, variant)
                with NoReadBack():
                    found = by_threshold(*asked, path="triton")  # type: ignore[arg-type]
                assert torch.equal(found, by_threshold(*asked, path="reference")), (tokens, variant)  # type: ignore[arg-type]
        for shares in ((0.0, 1.0), (0.1, 0.4)):
            with NoReadBack():
                found = by_mass(*given, lengths, *shares, 10, path="triton")
            assert torch.equal(found, by_mass(*given, lengths, *shares, 10, path="reference")), (tokens, shares)


if __name__ == "__main__":
    main()
