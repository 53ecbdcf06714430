"""KV formats: how many bits a cached key and value take, and what metadata travels with them.

Quantization is asymmetric min/max (LeanKV, arXiv 2412.03131, section 4): per token, per KV head and per group of
channels, a float16 scale and a float16 zero (4 bytes a group). KIVI (arXiv 2402.02750) quantizes keys per channel over
groups of 32 tokens instead, and values per token over groups of 32 channels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

SCALE_AND_ZERO_BYTES = 4
INT_BITS = (1, 2, 3, 4, 8)
FLOAT_BITS = (8, 16, 32)


@dataclass(frozen=True)
class KVFormat:
    """Bits of a key and of a value element, and the groups that share a scale and a zero.

    `kind="float"` stores elements as float32 (32 bits), float16 (16) or e4m3 (8) without metadata. With
    `key_axis="channel"` a key group is one channel over `group_tokens` tokens and a value group is `group_tokens`
    channels of one token (KIVI's group size serves both), so `k_groups` and `v_groups` stay 1.
    """

    k_bits: int
    v_bits: int
    k_groups: int = 1
    v_groups: int = 1
    kind: Literal["int", "float"] = "int"
    key_axis: Literal["token", "channel"] = "token"
    group_tokens: int = 32

    def __post_init__(self) -> None:
        allowed = INT_BITS if self.kind == "int" else FLOAT_BITS
        if self.k_bits not in allowed or self.v_bits not in allowed:
            raise ValueError(f"a {self.kind} format takes bits out of {allowed}, not {self.k_bits} and {self.v_bits}")
        if self.kind == "float" and self.k_bits != self.v_bits:
            raise ValueError("a float format has one width for keys and values")
        if min(self.k_groups, self.v_groups) < 1:
            raise ValueError("a format has at least one group")

    @property
    def name(self) -> str:
        """`K8V4`, `K4V2g2.4` (groups of keys and values), `FP32`, `FP16`, `FP8` or `KIVI-2`."""
        if self.kind == "float":
            return f"FP{self.k_bits}"
        if self.key_axis == "channel":
            return f"KIVI-{self.k_bits}"
        groups = "" if self.k_groups == self.v_groups == 1 else f"g{self.k_groups}.{self.v_groups}"
        return f"K{self.k_bits}V{self.v_bits}{groups}"

    def key_groups(self, head_dim: int) -> int:
        """Scale-and-zero pairs of one token's key; 0 where keys have none of their own (float, per channel)."""
        return 0 if self.kind == "float" or self.key_axis == "channel" else self.k_groups

    def value_groups(self, head_dim: int) -> int:
        """Scale-and-zero pairs of one token's value."""
        if self.kind == "float":
            return 0
        return head_dim // self.group_tokens if self.key_axis == "channel" else self.v_groups

    def key_bytes(self, head_dim: int) -> int:
        """Payload bytes of one token's key."""
        return head_dim * self.k_bits // 8

    def value_bytes(self, head_dim: int) -> int:
        """Payload bytes of one token's value."""
        return head_dim * self.v_bits // 8

    def payload_bytes(self, head_dim: int) -> int:
        """Bytes of one token's key and value elements."""
        return self.key_bytes(head_dim) + self.value_bytes(head_dim)

    def metadata_bytes(self, head_dim: int) -> float:
        """Bytes of scales and zeros a token: whole per token, a mean over its group where keys are per channel."""
        per_channel = head_dim / self.group_tokens if self.key_axis == "channel" else 0
        return SCALE_AND_ZERO_BYTES * (self.key_groups(head_dim) + self.value_groups(head_dim) + per_channel)

    def bytes_per_token(self, head_dim: int) -> float:
        """Payload, scales and zeros of one token of one KV head; score and position are the policy's bookkeeping."""
        return self.payload_bytes(head_dim) + self.metadata_bytes(head_dim)


FP32 = KVFormat(32, 32, kind="float")
"""As a float32 model computes: to hold the cache against plain attention, on a CPU only."""
FP16 = KVFormat(16, 16, kind="float")
FP8 = KVFormat(8, 8, kind="float")
K8V8 = KVFormat(8, 8)
K8V4 = KVFormat(8, 4)
K8V4_2 = KVFormat(8, 4, 1, 2)
K8V2 = KVFormat(8, 2)
K4V8 = KVFormat(4, 8)
K4V4 = KVFormat(4, 4)
K4V2 = KVFormat(4, 2)
K4V2_24 = KVFormat(4, 2, 2, 4)
K4V1 = KVFormat(4, 1)
K3V2 = KVFormat(3, 2)
K2V4 = KVFormat(2, 4)
INT8 = K8V8
INT4 = K4V4
KIVI4 = KVFormat(4, 4, key_axis="channel")
KIVI2 = KVFormat(2, 2, key_axis="channel")

FORMATS: dict[str, KVFormat] = {
    f.name: f for f in (FP16, FP8, K8V8, K8V4, K8V4_2, K8V2, K4V8, K4V4, K4V2, K4V2_24, K4V1, K3V2, K2V4, KIVI4, KIVI2)
} | {"INT8": INT8, "INT4": INT4}


def format_named(name: str) -> KVFormat:
    """The format called `name`; `K<bits>V<bits>` may name any pair of integer widths.

    Raises ValueError for a name that is none.
    """
    upper = name.upper()
    if upper in FORMATS:
        return FORMATS[upper]
    match = re.fullmatch(r"K(\d+)V(\d+)(?:G(\d+)\.(\d+))?", upper)
    if match is None:
        raise ValueError(f"no KV format is called {name!r}; known are {', '.join(FORMATS)} and K<bits>V<bits>")
    k_bits, v_bits, k_groups, v_groups = (int(part or 1) for part in match.groups())
    return KVFormat(k_bits, v_bits, k_groups, v_groups)
