"""Quantization: round trips within half a stored step, packing, e4m3, and the two torch forms against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leankv.kernels import quantization as qz
from leankv.kernels.attention import TurnedCentres
from leankv.kernels.rope import turned_back, turns_of
from leankv.kernels.transforms import KeyTransform, hadamard, rotate

HEAD_DIMS = (64, 96, 128, 256)
BITS = (1, 2, 3, 4, 8)
PATHS = ("reference", "torch")


@st.composite
def rows(draw: st.DrawFn) -> torch.Tensor:
    """Rows of a head_dim: random around a random level, at any scale, or constant, some with an outlier."""
    head_dim = draw(st.sampled_from(HEAD_DIMS))
    seed = draw(st.integers(0, 2**31))
    scale = 10.0 ** draw(st.floats(-9, 4))
    x = np.random.default_rng(seed).standard_normal((3, head_dim)) * scale + draw(st.floats(-300, 300))
    if draw(st.booleans()):
        x[:, draw(st.integers(0, head_dim - 1))] = draw(st.floats(-1000, 1000))
    return torch.from_numpy(x.astype(np.float32))


def half_a_step(quantized: qz.Quantized, x: torch.Tensor) -> torch.Tensor:
    """The bound, plus what float32 itself rounds."""
    steps = quantized.scale.float().repeat_interleave(x.shape[-1] // quantized.scale.shape[-1], -1)
    return steps / 2 * (1 + 1e-5) + x.abs() * 2**-22


@given(rows(), st.sampled_from(BITS), st.sampled_from((1, 2, 4)), st.sampled_from(PATHS))
def test_round_trip_is_within_half_a_stored_step(x: torch.Tensor, bits: int, groups: int, path: str) -> None:
    quantized = qz.quantize(x, bits, groups, path)
    assert int(quantized.codes.max()) < 2**bits
    packed = qz.pack(quantized.codes, bits, path)
    assert packed.shape[-1] == x.shape[-1] * bits // 8
    unpacked = qz.Quantized(qz.unpack(packed, bits, path), quantized.scale, quantized.zero, bits)
    error = (qz.dequantize(unpacked) - x).abs()
    assert bool((error <= half_a_step(quantized, x)).all())


@given(rows(), st.sampled_from(BITS), st.sampled_from((1, 2, 4)))
def test_vectorised_form_equals_the_reference(x: torch.Tensor, bits: int, groups: int) -> None:
    ours, oracle = qz.quantize(x, bits, groups), qz.quantize(x, bits, groups, "reference")
    # float32 against float64 bounds: a scale may come out one float16 apart only where the bound is met by rounding.
    same = (ours.scale == oracle.scale).repeat_interleave(x.shape[-1] // groups, -1)
    assert torch.equal(ours.zero, oracle.zero)
    assert torch.equal(ours.codes[same], oracle.codes[same])
    assert float(same.float().mean()) > 0.5 or x.shape[0] * groups <= 3
    assert torch.equal(qz.pack(ours.codes, bits), qz.pack(ours.codes, bits, "reference"))


@pytest.mark.parametrize("path", PATHS)
@given(st.floats(-65504, 65504, width=16), st.sampled_from(BITS))
def test_constant_half_group_is_exact(path: str, value: float, bits: int) -> None:
    x = torch.full((1, 64), value)
    assert torch.equal(qz.dequantize(qz.quantize(x, bits, 1, path)), x)


@pytest.mark.parametrize("path", PATHS)
def test_the_largest_element_is_never_beyond_the_last_code(path: str) -> None:
    """In float32 the range of this group is 3, three steps of 1; but they end below its largest element."""
    x = torch.tensor([[-3.0, 1e-8] * 32])
    assert float(qz.quantize(x, 2, 1, path).scale) == 1 + 2**-10


@pytest.mark.parametrize("path", PATHS)
def test_extremes_are_defined(path: str) -> None:
    tiny = torch.tensor([[0.0, 1e-9] * 32])
    assert float(qz.quantize(tiny, 8, 1, path).scale) == pytest.approx(2**-24)
    huge = torch.tensor([[-1e6, 1e6] * 32])
    back = qz.dequantize(qz.quantize(huge, 8, 1, path))
    assert float(back.min()) == -65504 and 65504 <= float(back.max()) < 66500
    wide = qz.quantize(huge, 1, 1, path)
    assert float(wide.scale) == 65504 and bool(torch.isfinite(qz.dequantize(wide)).all())


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), float("-inf")))
def test_non_finite_input_is_an_error(bad: float) -> None:
    x = torch.zeros(2, 64)
    x[1, 3] = bad
    with pytest.raises(ValueError, match="finite"):
        qz.quantize(x, 4)
    with pytest.raises(ValueError, match="finite"):
        qz.encode_e4m3(x)


@pytest.mark.parametrize("path", PATHS)
def test_all_e4m3_bytes_agree_with_torch(path: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    torch.testing.assert_close(qz.decode_e4m3(codes, path), codes.view(torch.float8_e4m3fn).float(), equal_nan=True)
    finite = codes[(codes & 0x7F) != 0x7F]
    assert torch.equal(qz.encode_e4m3(qz.decode_e4m3(finite), path), finite)


@given(arrays(np.float32, 32, elements=st.floats(-440, 440, width=32)), st.sampled_from(PATHS))
def test_e4m3_rounds_as_torch_does(x: np.ndarray, path: str) -> None:
    ours = qz.encode_e4m3(torch.from_numpy(x), path)
    assert torch.equal(ours, torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8))


@pytest.mark.parametrize("path", PATHS)
def test_e4m3_saturates(path: str) -> None:
    assert qz.decode_e4m3(qz.encode_e4m3(torch.tensor([1e6, -1e6, 449.0]), path)).tolist() == [448, -448, 448]


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rotation_is_orthogonal_symmetric_and_its_own_inverse(head_dim: int) -> None:
    h = hadamard(head_dim)
    torch.testing.assert_close(h @ h, torch.eye(head_dim))
    assert torch.equal(h, h.T)
    assert float(h.abs().max()) == pytest.approx(32**-0.5 if head_dim == 96 else head_dim**-0.5)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_transformed_keys_give_the_same_attention(head_dim: int) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    keys = torch.randn(50, 2, head_dim, generator=generator) + 5
    query = torch.randn(2, head_dim, generator=generator)
    transform = KeyTransform(mean=keys.mean(0), rotated=True)
    plain = torch.softmax(torch.einsum("thd,hd->ht", keys, query), -1)
    somewhere = torch.zeros(50, 2, dtype=torch.int32)
    stored = transform.turned(transform.centred(keys, somewhere))
    moved = torch.softmax(torch.einsum("thd,hd->ht", stored, rotate(query)), -1)
    torch.testing.assert_close(moved, plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(transform.of_stored(stored, somewhere), keys, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("pairs", (8, 32))
def test_a_mean_before_rope_is_met_at_every_position(pairs: int) -> None:
    """With a partial rotary embedding, too: against float64, to float32's digits of products of 64 channels."""
    generator = torch.Generator().manual_seed(pairs)
    keys, mean = torch.randn(50, 2, 64, generator=generator), 30 * torch.randn(2, 64, generator=generator)
    query, positions = torch.randn(4, 64, generator=generator), torch.randint(0, 90, (50, 2), generator=generator)
    turns = turns_of(1e4 ** -torch.linspace(0, 1, pairs), 90)
    transform = KeyTransform(mean, True, turns)
    centre = transform.centre(positions)
    assert centre is not None
    torch.testing.assert_close(turned_back(centre, turns[positions]), mean.expand(50, 2, 64), atol=1e-4, rtol=1e-5)
    stored = transform.turned(transform.centred(keys + centre, positions))
    torch.testing.assert_close(stored, rotate(keys), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(transform.of_stored(stored, positions), keys + centre, atol=1e-4, rtol=1e-5)
    centres = TurnedCentres(mean, turns, torch.tensor([0, 1]), torch.tensor([90, 90]))
    products = centres.products(query[None].expand(2, -1, -1), torch.tensor([0, 1]))
    assert not products[0].any()
    for head in range(4):
        exact = query[head].double() @ (keys + centre)[:, head // 2].double().T
        ours = rotate(query[head]) @ stored[:, head // 2].T + products[1, head, positions[:, head // 2]]
        wanted, found = (torch.softmax(logits.double() / 8, -1) for logits in (exact, ours))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
