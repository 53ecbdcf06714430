"""What a policy keeps of a prompt, layer by layer and head by head, for two kinds of text."""

from __future__ import annotations

import argparse
import ast
import inspect
import tarfile
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import numpy.typing as npt
from torch import Tensor

from leankv.backend.capture import capture
from leankv.backend.retention_report import kept_tokens
from leankv.backend.texts import Text
from leankv.backend.weights import Loaded
from leankv.serving.policies.base import Policy

CODE: tuple[ModuleType, ...] = (argparse, tarfile, inspect, ast)


def code() -> list[Text]:
    """Program text that is always there: modules of Python's standard library."""
    return [Text(f"{module.__name__}.py", inspect.getsource(module)) for module in CODE]


def kept_shares(loaded: Loaded, policies: Sequence[Policy], windows: Sequence[Tensor]) -> list[npt.NDArray[np.float64]]:
    """For each policy the share of the positions kept, float64 [layers, kv_heads, tiers], mean over the windows."""
    totals: list[npt.NDArray[np.float64]] = []
    for window in windows:
        captured = capture(loaded, window)
        kept = [kept_tokens(policy, captured, len(window)).double().cpu().numpy() / len(window) for policy in policies]
        totals = kept if not totals else [total + one for total, one in zip(totals, kept, strict=True)]
    return [total / len(windows) for total in totals]
