"""Decode steps as recordings: a function over static buffers, captured once a batch bucket, then replayed.

On CUDA a recording is a CUDA graph: one launch for the model's hundreds of kernels. Elsewhere it is the function
itself, called again, so that a test can hold it to the same rule: what it computes follows from its input buffer and
from device memory alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Outputs = TypeVar("Outputs")
WARM_UPS = 2
NO_SLOT = -1


@dataclass(frozen=True, eq=False)
class Recording(Generic[Outputs]):
    """inputs: int64 [3, bucket] on the device, rows as in `DecodeGraphs.run`. replay: computes from what they hold."""

    inputs: Tensor
    replay: Callable[[], Outputs]


class DecodeGraphs(Generic[Outputs]):
    """Recordings of `function` by batch bucket: 1, 2, 4, ... and `most`, made when they are first needed.

    function: from int64 [3, bucket] to tensors of sizes that depend on the bucket only; it neither reads the device
    back nor looks at anything on the host that changes between steps. Its outputs are overwritten by the next step.
    """

    def __init__(self, function: Callable[[Tensor], Outputs], most: int, device: torch.device) -> None:
        self.function, self.device = function, device
        self.buckets = [*(1 << power for power in range(most.bit_length()) if 1 << power < most), most]
        self._recorded: dict[int, Recording[Outputs]] = {}
        self._pool: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def bucket(self, batch: int) -> int:
        """The least bucket that holds `batch` requests."""
        return next(bucket for bucket in self.buckets if batch <= bucket)

    def run(self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int]) -> Outputs:
        """A step of `len(slots)` requests; of outputs by request, the first so many count, the rest is padding."""
        recording = self._recording(self.bucket(len(slots)))
        padding = recording.inputs.shape[1] - len(slots)
        columns = [*tokens, *[0] * padding, *positions, *[0] * padding, *slots, *[NO_SLOT] * padding]
        recording.inputs.copy_(on_host(columns, self.device).view(3, -1), non_blocking=True)
        return recording.replay()

    def record_all(self) -> None:
        """Record every bucket now, the largest first, so that the smaller ones find room in its memory."""
        for bucket in reversed(self.buckets):
            self._recording(bucket)

    def _recording(self, bucket: int) -> Recording[Outputs]:
        if bucket not in self._recorded:
            inputs = torch.zeros(3, bucket, dtype=torch.int64, device=self.device)
            inputs[2] = NO_SLOT
            self._recorded[bucket] = Recording(inputs, self._replay_of(inputs))
        return self._recorded[bucket]

    def _replay_of(self, inputs: Tensor) -> Callable[[], Outputs]:
        if self.device.type != "cuda":
            return lambda: self.function(inputs)
        graph, outputs = _captured(lambda: self.function(inputs), self._pool)

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay


def on_host(numbers: Sequence[int], device: torch.device) -> Tensor:
    """int64 [n] on the host, pinned where it is to be copied to a GPU without waiting for it."""
    return torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")


def _captured(step: Callable[[], Outputs], pool: Any) -> tuple[torch.cuda.CUDAGraph, Outputs]:
    """The step as a graph, and the tensors that a replay writes to.

    It first runs beside the main stream, on padding, so that kernels are compiled and workspaces exist: neither may
    happen during a capture.
    """
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            step()
    main.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        outputs = step()
    return graph, outputs
