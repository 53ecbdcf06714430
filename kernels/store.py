"""Tokens into pages and out of them: transform, quantize, pack and write; read, unpack and dequantize.

Three forms: `reference` (a token at a time, written to be read), `torch` (vectorised; what runs on a CPU) and `triton`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from leankv.kernels import store_reference, store_torch
from leankv.kernels.paths import Path, path_for
from leankv.kernels.quantization import HALF_MAX, require_finite, require_storable
from leankv.kernels.transforms import AS_THEY_ARE, KeyTransform
from leankv.serving.pages import PageLayout


@dataclass(frozen=True, eq=False)
class Tokens:
    """keys, values [n, kv_heads, head_dim] (any float dtype); scores float32 and positions int32 [n, kv_heads]."""

    keys: Tensor
    values: Tensor
    scores: Tensor
    positions: Tensor


def store(
    pool: Tensor,
    layout: PageLayout,
    pages: Tensor,
    places: Tensor,
    tokens: Tokens,
    transform: KeyTransform = AS_THEY_ARE,
    errors: Tensor | None = None,
    path: Path | None = None,
) -> None:
    """Write token (i, h) at place places[i, h] of page pages[i, h] (int [n, kv_heads]); a negative page skips it.

    Keys are transformed, then quantized by `layout.format`. Keys per channel come in whole groups: rows 32g to 32g + 31
    of a head go to 32 neighbouring places of one page, the first a multiple of 32.
    Scores and positions are written where the layout keeps them.

    Raises ValueError if a token that is written is not finite or, before or after the transform, beyond float16's range
    of +-65504 (32-bit formats: not finite). The Triton form cannot raise without waiting for the device: it adds the
    number of such rows to `errors` int32 [1] (required), and stores zeros for such elements.
    """
    n, heads, head_dim = tokens.keys.shape
    assert tokens.values.shape == (n, heads, head_dim) and head_dim == layout.head_dim
    assert pages.shape == places.shape == (n, heads)
    assert layout.format.key_axis == "token" or n % layout.format.group_tokens == 0
    assert transform.turns is None or layout.bookkeeping, "keys that are centred by position need their positions"
    form = path_for(pool, path)
    if form == "triton":
        from leankv.kernels import store_triton

        assert errors is not None, "the Triton form counts bad rows in `errors`"
        store_triton.store(pool, layout, pages, places, tokens, transform, errors)
        return
    written = (pages >= 0)[..., None]
    require = require_finite if layout.format.k_bits == 32 else require_storable
    centred = transform.centred(tokens.keys, tokens.positions)
    keys = transform.turned(centred)
    stages = [tokens.keys, *([] if transform.mean is None else [centred]), *([keys] if transform.rotated else [])]
    for given in (*stages, tokens.values):
        require(given.where(written, 0))
    moved = Tokens(keys, tokens.values.float(), tokens.scores, tokens.positions)
    (store_reference if form == "reference" else store_torch).store(pool, layout, pages, places, moved)


def gather(
    pool: Tensor,
    layout: PageLayout,
    pages: Tensor,
    places: Tensor,
    transform: KeyTransform = AS_THEY_ARE,
    path: Path | None = None,
) -> Tokens:
    """Read the tokens at `places` of `pages` (int [n, kv_heads]) back as float32; negative pages give zeros.

    What integer codes give beyond +-65504 comes back as that, so that whatever was stored can be stored again.
    `transform` is the one the keys were stored with; it is undone. Without bookkeeping, scores are 0 and positions -1.
    """
    form = path_for(pool, path)
    if form == "triton":
        from leankv.kernels import store_triton

        found = store_triton.gather(pool, layout, pages, places)
    else:
        found = (store_reference if form == "reference" else store_torch).gather(pool, layout, pages, places)
        if layout.format.kind == "int":
            found = Tokens(_limited(found.keys), _limited(found.values), found.scores, found.positions)
    held = (pages >= 0)[..., None]
    keys = transform.of_stored(found.keys, found.positions).where(held, 0)
    return Tokens(keys, found.values, found.scores, found.positions)


def _limited(x: Tensor) -> Tensor:
    return x.clamp(-HALF_MAX, HALF_MAX)
