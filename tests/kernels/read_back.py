"""A guard that fails where a step would wait for the device: a value read back, or a shape that depends on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

WAITING = (
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.masked_select",
    "aten.unique",
    "aten.repeat_interleave.Tensor",
)


class NoReadBack(TorchDispatchMode):
    """Raises at the first operation that synchronises on CUDA."""

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if str(function).startswith(WAITING):
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))
