# mypy: disable-error-code="no-untyped-def"
"""Device functions that read packed codes: 16-bit words to float16 codes, and scales and zeros to float32.

Codes become float16 through the exponent: bits or-ed into the mantissa of 1024 give 1024 + code, exactly. On a GPU two
words go through one 32-bit instruction (inline assembly, which Triton's interpreter cannot run: `ASM` is False
there).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def key_parts(codec):
    return len(codec.key_parts)


@triton.constexpr_function
def key_part(codec, index):
    return codec.key_parts[index]


@triton.constexpr_function
def value_parts(codec):
    return len(codec.value_parts)


@triton.constexpr_function
def value_part(codec, index):
    return codec.value_parts[index]


@triton.constexpr_function
def planes_before(parts, index):
    """Planes of the parts before number `index`: where that part's planes start in a flat list of all."""
    return sum(len(part.planes) for part in parts[:index])


@triton.constexpr_function
def planes(part):
    return len(part.planes)


@triton.constexpr_function
def plane(part, index):
    return part.planes[index]


@triton.constexpr_function
def of(noun, name):
    """The attribute `name` of a codec, part or plane."""
    return getattr(noun, name)


@triton.constexpr_function
def codecs_in(codecs):
    return len(codecs)


@triton.constexpr_function
def codec_number(codecs, index):
    return codecs[index]


@triton.constexpr_function
def pair_assembly(bits, shift, is_float):
    """PTX that turns the codes at `shift` of the two words in $1 into two float16 in $0."""
    if is_float:
        low = "shl.b32 t, $1, 7; shl.b32 u, $1, 8;" if shift == 0 else "shr.b32 t, $1, 1; mov.b32 u, $1;"
        body = low + "and.b32 t, t, 0x3f803f80; lop3.b32 $0, u, 0x80008000, t, 0xea;"
        return "{.reg .b32 t, u; " + body + "}"
    if bits == 8:
        spread = f"prmt.b32 t, $1, c, {0x5250 if shift == 0 else 0x5351};"
    else:
        mask = ((1 << bits) - 1) << (shift % 8)
        spread = f"lop3.b32 t, t, {mask | mask << 16}, c, 0xea;"
        spread = ("shr.b32 t, $1, 8;" if shift >= 8 else "mov.b32 t, $1;") + spread
    return "{.reg .b32 t, c; mov.b32 c, 0x64006400;" + spread + "sub.rn.f16x2 $0, t, c;}"


@triton.jit
def codes_of(words, BITS: tl.constexpr, SHIFT: tl.constexpr, IS_FLOAT: tl.constexpr, ASM: tl.constexpr):
    """float16 codes (times 2^(SHIFT % 8)) at SHIFT of 16-bit words; elements of a float format (e4m3: over 256)."""
    if BITS == 16:
        return words.to(tl.float16, bitcast=True)
    elif ASM:
        return tl.inline_asm_elementwise(
            pair_assembly(BITS, SHIFT, IS_FLOAT), "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2
        )
    elif IS_FLOAT:
        low = words if SHIFT == 0 else words >> 8
        bits = ((low << 8) & -0x8000) | ((low & 0x7F) << 7)
        return bits.to(tl.int16).to(tl.float16, bitcast=True)
    else:
        shifted = words >> 8 if SHIFT >= 8 else words
        masked = shifted & (((1 << BITS) - 1) << (SHIFT % 8))
        return (masked | 0x6400).to(tl.int16).to(tl.float16, bitcast=True) - 1024.0


@triton.jit
def columns_of(PART: tl.constexpr):
    """Of a part's columns: the word each reads, which copy it belongs to, and whether it counts."""
    column = tl.arange(0, of(PART, "columns"))
    word = column % of(PART, "padded")
    copy = column // of(PART, "padded")
    return word, copy, (word < of(PART, "words")) & (copy < of(PART, "copies"))


@triton.jit
def channels_of(PART: tl.constexpr, PLANE: tl.constexpr):
    """The channel of each column of a plane."""
    word, copy, _there = columns_of(PART)
    if of(PART, "bits") == 16:
        return word
    return of(PLANE, "channel") + 2 * word + copy


@triton.jit
def words_of(pool16, rows, valid, PART: tl.constexpr):
    """int16 [rows, columns]: the words of a part; `rows`: index in `pool16` of each token's page, plus its row."""
    word, copy, there = columns_of(PART)
    words = tl.load(
        pool16 + rows[:, None] + (of(PART, "first") + word)[None, :], mask=valid[:, None] & there[None, :], other=0
    )
    if of(PART, "copies") == 2:
        words = (words >> (8 * copy)[None, :].to(tl.int16)).to(tl.int16)
    return words


@triton.jit
def scale_of(pair):
    """float32 scale out of a (scale, zero) word."""
    return pair.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def zero_of(pair):
    """float32 zero out of a (scale, zero) word."""
    return (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
