"""How long a piece of device work takes: medians, CUDA graphs and events on a GPU, the wall clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

LEAST, MOST = 5, 60
BUSY_CYCLES = 200_000
"""Some 0.1 ms on a GPU: longer than the host takes to launch a graph."""


def seconds(
    run: Callable[[], None],
    device: torch.device,
    reset: Callable[[], None] | None = None,
    graph: bool = True,
    budget_s: float = 0.4,
) -> float:
    """Median seconds of `run`, after a warm-up; `reset` undoes it before each further call, untimed.

    On CUDA `run` is captured in a graph and replayed, so the host's launches are no part of it; with `graph` False
    it is launched as it stands.
    """
    undo = reset or (lambda: None)
    run()
    undo()
    timed = _event_timer(_replay(run) if graph else run, device) if device.type == "cuda" else _wall_timer(run)
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < LEAST or (len(found) < MOST and time.perf_counter() - began < budget_s):
        found.append(timed())
        undo()
    return median(found)


def copy_bandwidth(device: torch.device, gigabytes: float) -> float:
    """Bytes a second, read and written together, of one large copy: the limit that the other figures stand beside."""
    source = torch.zeros(int(gigabytes * 1e9), dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / seconds(lambda: _into(target, source), device)


def _into(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)


def _wall_timer(run: Callable[[], None]) -> Callable[[], float]:
    def timed() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return timed


def _event_timer(run: Callable[[], None], device: torch.device) -> Callable[[], float]:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def timed() -> float:
        torch.cuda.synchronize(device)
        # While the GPU is kept busy, the host launches what is timed; else the launch would be timed with it.
        torch.cuda._sleep(BUSY_CYCLES)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return timed


def _replay(run: Callable[[], None]) -> Callable[[], None]:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
