"""Whether what is asked for fits the device's memory: found before it is loaded where it can be, told where not."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leankv.backend.weights import RANDOM
from leankv.serving.errors import InputError
from leankv.serving.models import ModelSpec, model_named, read_model_config

GIB = 1 << 30
BYTES_A_PARAMETER = {"cpu": 4, "cuda": 2}
NO_MEMORY = ("out of memory", "not enough memory", "allocate memory")
"""What torch says of memory that it could not get; on a CPU in a plain RuntimeError."""


@contextmanager
def memory_told(line: str) -> Iterator[None]:
    """Raise InputError with this line where memory cannot be had within, on a CPU or a GPU."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(said in str(error).lower() for said in NO_MEMORY):
            raise
        raise InputError(line) from error


def release_ended(device: str) -> None:
    """Give back the memory of engines that nothing refers to but their own cycles, before another one is made."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()


def free_bytes(device: str) -> int | None:
    """Memory that is free on the device, None where this cannot be known."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def require_room_for_model(model: str, device: str) -> None:
    """Raise InputError for a model (as `weights.load` names it) whose weights do not fit what is free.

    Says nothing where the shape is known only once it has been loaded.
    """
    spec, free = _shape(model), free_bytes(device)
    if spec is None or free is None:
        return
    needed = spec.parameters * BYTES_A_PARAMETER[device]
    if needed > free:
        where = "the GPU" if device == "cuda" else "this machine"
        raise InputError(
            f"{model} takes {needed / GIB:.1f} GiB for its weights and {where} has {free / GIB:.1f} free; choose a "
            "smaller model or free memory"
        )


def _shape(model: str) -> ModelSpec | None:
    if model.startswith(RANDOM):
        return model_named(model.removeprefix(RANDOM))
    config = Path(model).expanduser() / "config.json"
    return read_model_config(config) if config.is_file() else None
