"""Which of an operation's three forms runs: the readable reference, vectorised torch, or the Triton kernel."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Path = Literal["reference", "torch", "triton"]


def path_for(tensor: Tensor, path: Path | None = None) -> Path:
    """`path` if given; else Triton for tensors on a CUDA device and vectorised torch elsewhere."""
    if path is not None:
        return path
    return "triton" if tensor.is_cuda else "torch"
