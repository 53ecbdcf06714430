"""A guard that fails where a step would wait for the device: a value read back, or a shape that depends on one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = (
    "aten._local_scalar_dense",
    "aten.item",
    "aten.nonzero",
    "aten.masked_select",
    "aten.unique",
    "aten._unique",
    "aten.repeat_interleave.Tensor",
    "aten.equal",
    "aten.is_nonzero",
)
INDEXING = ("aten.index.", "aten.index_put", "aten._index_put")
TO_HOST = ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")


class NoReadBack(TorchDispatchMode):
    """Raises at the first operation that synchronises on CUDA.

    An index by a mask is one whose size the device decides, though no `nonzero` shows at this level.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls = _NoCallToHost()

    def __enter__(self) -> NoReadBack:
        self._calls.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._calls.__exit__(*raised)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(function)
        if name.startswith(WAITING):
            raise AssertionError(f"{function} waits for the device")
        if name.startswith(INDEXING) and any(_is_mask(index) for index in args[1]):
            raise AssertionError(f"{function} by a mask waits for the device")
        return function(*args, **(kwargs or {}))


class _NoCallToHost(TorchFunctionMode):
    """Raises where a tensor becomes Python's: on a CPU that copies nothing, so no operation shows."""

    def __torch_function__(
        self, function: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__name__", "") in TO_HOST and not _interpreting():
            raise AssertionError(f"Tensor.{function.__name__} waits for the device")
        return function(*args, **(kwargs or {}))


def _is_mask(index: object) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _interpreting() -> bool:
    """Whether Triton's interpreter, which works on the host, is among the callers."""
    frame = sys._getframe(1)
    while frame is not None:
        if "triton/runtime" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
