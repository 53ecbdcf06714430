"""Run in a child process under Triton's interpreter: prefill scores against their reference."""

from __future__ import annotations

import torch

from leankv.kernels.significance import prefill_scores


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    for tokens, window, heads, kv_heads, head_dim in ((3, 3, 2, 1, 64), (150, 64, 4, 2, 96), (100, 100, 3, 1, 128)):
        for group in ("max", "mean") if tokens == 150 else ("max", None):
            queries = torch.randn(window, heads, head_dim, generator=generator).half()
            keys = torch.randn(tokens, kv_heads, head_dim, generator=generator).half()
            asked = (queries, keys, head_dim**-0.5, group)
            kernel, reference = prefill_scores(*asked, path="triton"), prefill_scores(*asked, path="reference")
            assert torch.allclose(kernel, reference, atol=2e-3 * float(reference.max())), (tokens, group)


if __name__ == "__main__":
    main()
