"""Recorded decode steps: equal to steps computed call by call, and blind to everything but buffers and the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from leankv.backend.engine import Engine
from leankv.backend.graphs import DecodeGraphs
from leankv.backend.live_request import LiveRequest
from leankv.serving.policies.registry import policy_named

from . import tiny
from .test_engine import LIVE

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("most", "buckets"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])]
)
def test_buckets_double_up_to_the_most(most: int, buckets: list[int]) -> None:
    graphs = DecodeGraphs(lambda inputs: inputs, most, CPU)
    assert graphs.buckets == buckets
    assert [graphs.bucket(batch) for batch in buckets] == buckets
    assert graphs.bucket(most) == most


def test_a_recording_is_made_once_a_bucket_and_padded() -> None:
    seen: list[tuple[int, list[list[int]]]] = []

    def note(inputs: torch.Tensor) -> torch.Tensor:
        seen.append((inputs.data_ptr(), inputs.tolist()))
        return inputs

    graphs = DecodeGraphs(note, 8, CPU)
    graphs.run([5, 6, 7], [10, 11, 12], [2, 0, 4])
    graphs.run([8], [3], [1])
    graphs.run([1, 2, 3, 4], [0, 1, 2, 3], [3, 2, 1, 0])
    assert seen[0][1] == [[5, 6, 7, 0], [10, 11, 12, 0], [2, 0, 4, -1]]
    assert seen[1][1] == [[8], [3], [1]]
    assert seen[2] == (seen[0][0], [[1, 2, 3, 4], [0, 1, 2, 3], [3, 2, 1, 0]])


class Sealed:
    """Stands where the host's records are while a recorded step runs: a replay on a GPU would not look at them."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"a recorded step asks the host for {name}")

    __getitem__ = __len__ = __iter__ = __contains__ = lambda self, *_: self.never


def sealed(engine: Engine) -> None:
    graphs = engine.steps.graphs
    assert graphs is not None
    function = graphs.function

    def alone(inputs: torch.Tensor) -> Any:
        records, engine.cache.requests = engine.cache.requests, Sealed()  # type: ignore[assignment]
        try:
            return function(inputs)
        finally:
            engine.cache.requests = records

    graphs.function = alone


def history(name: str, recorded: bool) -> tuple[list[list[int]], list[torch.Tensor], Engine]:
    """Outputs and logits of requests that join, leave and are preempted."""
    seen: list[torch.Tensor] = []
    engine = tiny.engine_of(policy_named(name), batched=80, recorded=recorded)
    if recorded:
        sealed(engine)
    engine.on_logits = lambda _, logits: seen.append(logits.clone())
    lengths = ((20, 9), (75, 30), (41, 3), (90, 22), (64, 17), (33, 26), (50, 12))
    requests = [LiveRequest(i, tiny.prompt_of(n, i), output, tiny.TO_LENGTH) for i, (n, output) in enumerate(lengths)]
    coming = list(requests)
    while coming or not engine.idle:
        if coming and len(engine.log.rows) % 4 == 0:
            engine.add(coming.pop(0))
        engine.step()
        if len(engine.log.rows) in (9, 23):
            engine.scheduler._preempt_last()
        engine.cache.check_integrity()
    return [request.output for request in requests], seen, engine


@pytest.mark.parametrize("name", LIVE)
def test_recorded_steps_are_the_steps(name: str) -> None:
    """Batches of many sizes, each padded to its bucket; pages are the same after every step."""
    outputs, logits, engine = history(name, recorded=True)
    expected, plain, called = history(name, recorded=False)
    assert outputs == expected
    # Padding regroups sums, and a last bit that differs may fall to the other side of a code's edge.
    assert float((torch.cat(logits) - torch.cat(plain)).norm() / torch.cat(plain).norm()) < 1e-3
    rows = [(row.decoding, row.tier0, row.tier1, row.staging) for row in engine.log.rows]
    assert rows == [(row.decoding, row.tier0, row.tier1, row.staging) for row in called.log.rows]
    assert engine.preemptions == 2
    alone = {row.decoding for row in engine.log.rows if not row.chunks}
    assert len(alone) >= 4, "steps of decodes alone, at several batch sizes"


def test_a_decode_step_on_kernels_reads_nothing_back() -> None:
    """Triton's interpreter runs the recorded function under a guard, in a process of its own."""
    pytest.importorskip("triton", reason="triton is part of the extra `live`")
    child = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).parent / "interpreted_graphs.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stdout + child.stderr
