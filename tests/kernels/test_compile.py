"""Attention and store compile for Ampere and Hopper without a GPU: no spills, no loads of single bytes in attention."""

from __future__ import annotations

import subprocess
import sys

import pytest

from leankv.kernels.codecs import codec_of
from leankv.serving.formats import FORMATS, KVFormat
from leankv.serving.pages import layout_of, page_bytes_for

ON_DEVICE = sorted({f for f in FORMATS.values() if f.k_bits <= 16}, key=lambda f: f.name)

SHARED_MEMORY = 99 * 1024
"""Bytes that a block may have on an L40S, less than on an A100 or H100."""

SCRIPT = """
import sys
from leankv.kernels.compile_report import HEADER, attention_variant, compiled, other_variants, store_variants
from leankv.serving.formats import FP8, FP16, K3V2, K4V2, K8V4, KIVI2
capability = int(sys.argv[1])
# Two head sizes an architecture, to save time; `leankv bench kernels --compile` takes all on both.
head_dims = (64, 128) if capability == 90 else (96, 256)
variants = [attention_variant((K8V4, K4V2), head_dim, 4) for head_dim in head_dims]
variants += [attention_variant((FP8,), head_dims[0], 4), *other_variants()]
variants += [attention_variant((FP16, KIVI2), 64, 3, keep_weights=False)]
variants += [attention_variant((K8V4, K4V2), head_dims[1], 4, by_position=True)]
variants += [*store_variants(K8V4, 128), *store_variants(KIVI2, 64), *store_variants(K3V2, 64, rotated=True)]
for variant in variants:
    found = compiled(variant, capability)
    widths = min(found.loads, default=0), max(found.loads, default=0)
    print(found.name, found.spilled_bytes, found.shared_bytes, *widths, sep="|", flush=True)
"""


@pytest.mark.parametrize("capability", (80, 90))
def test_kernels_compile_without_spills_and_attention_loads_are_wide(capability: int) -> None:
    pytest.importorskip("triton", reason="triton is part of the extra `live`")
    child = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, str(capability)], capture_output=True, text=True, timeout=280
    )
    assert child.returncode == 0, child.stderr
    rows = [line.split("|") for line in child.stdout.splitlines()]
    assert len(rows) == 16
    assert all(spilled == "0" for _name, spilled, *_rest in rows), child.stdout
    assert all(int(shared) <= SHARED_MEMORY for _name, _spilled, shared, *_widths in rows), child.stdout
    attention = [(int(row[3]), int(row[4])) for row in rows if row[0].startswith(("attention K", "attention FP8"))]
    # Two bytes: a float16 query, once a program. Pages come in 16 bytes a thread.
    assert len(attention) == 4 and all(least >= 2 and most == 16 for least, most in attention), child.stdout


@pytest.mark.parametrize("head_dim", (64, 96, 128, 256))
@pytest.mark.parametrize("format", ON_DEVICE, ids=lambda f: f.name)
def test_planes_cover_every_channel_once(format: KVFormat, head_dim: int) -> None:
    codec = codec_of(layout_of(format, head_dim, page_bytes_for(head_dim, (format,))))
    for parts, groups in ((codec.key_parts, codec.key_groups), (codec.value_parts, codec.value_groups)):
        seen: dict[int, int] = {}
        for part in parts:
            for plane in part.planes:
                step = 1 if part.bits == 16 else 2
                columns = [(c % part.padded, c // part.padded) for c in range(part.padded * part.copies)]
                for word, copy in columns:
                    if word < part.words:
                        channel = plane.channel + step * word + copy
                        seen[channel] = seen.get(channel, 0) + 1
                        assert not groups or channel // (head_dim // groups) == plane.group
        expected = 2 if format.k_bits == 3 and parts is codec.key_parts else 1
        assert seen == dict.fromkeys(range(head_dim), expected)
