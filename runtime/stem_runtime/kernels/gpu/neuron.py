"""Products with single neurons: rows of gate or up, and columns of the down projection.

Both are read from the records of `sparsity.neurons`, in which what belongs to one neuron lies
together. Hidden values are rounded to int8 in groups of 32 neurons, like everywhere.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

from .compact import bits_of, members
from .dot import int4_dot, int8_dot, round_even

ACROSS = tl.constexpr(8)
"""Neurons that one pass reads together: most groups have no more that survive."""

IN_FLIGHT = tl.constexpr(2048)
"""Words times sequences of a pass: 16 for each of 128 threads, what fits into registers."""

LEAST = tl.constexpr(512)
"""Words of a pass however many sequences there are: one load of 128 bits for each thread."""


@triton.jit
def pick(values, lanes):
    """[B, 32] at int32 lanes [N] -> [B, N]."""
    hit = tl.arange(0, 32)[None, :] == lanes[:, None]
    return tl.sum(tl.where(hit[None, :, :], values[:, None, :], 0), axis=2)


@triton.jit
def place(values, lanes, valid):
    """The inverse of `pick`: [B, N] -> [B, 32], zero in all other lanes."""
    hit = (tl.arange(0, 32)[None, :] == lanes[:, None]) & valid[:, None]
    return tl.sum(tl.where(hit[None, :, :], values[:, :, None], 0.0), axis=1)


@triton.jit
def first_record(group, starts):
    """The number of a group's first record, where not every neuron has one."""
    return group * 32 if starts is None else tl.load(starts + group)


@triton.jit
def record_of(lanes, held):
    """Which of its group's records is a neuron's: all have one, or those in the mask `held`."""
    if held is None:
        number = lanes
    else:
        before = held & ~(-1 << lanes)
        pairs = before - ((before >> 1) & 0x55555555)
        fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
        number = (((fours + (fours >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24
    return number


@triton.jit
def group_products(
    first,
    each,
    mask,
    held,
    words,
    scales,
    sums,
    groups,
    KIND: tl.constexpr,
    BATCH: tl.constexpr,
    B: tl.constexpr,
):
    """Products of a group's neurons in `mask` with their rows, float32 [B, 32], zero for others.

    `first` points to the int32 words of the group's first row, `each` words before the next one;
    `held` is for `record_of`.
    `words`, `scales` and `sums` are BATCH vectors of `groups` groups; B is a power of two.
    """
    products = tl.zeros([B, 32], tl.float32)
    count = tl.sum(bits_of(mask), axis=0)
    for start in range(0, count, ACROSS):
        lanes, valid = members(mask, start, ACROSS)
        rows = _row_products(
            first + record_of(lanes, held) * each,
            valid,
            words,
            scales,
            sums,
            groups,
            KIND,
            BATCH,
            B,
        )
        products += place(rows, lanes, valid)
    return products


@triton.jit
def _row_products(
    rows,
    valid,
    words,
    scales,
    sums,
    groups,
    KIND: tl.constexpr,
    BATCH: tl.constexpr,
    B: tl.constexpr,
):
    """Products [B, N] with the rows that N pointers point to."""
    WORDS: tl.constexpr = 8 if KIND == "int8" else 4
    LOADED: tl.constexpr = max(IN_FLIGHT // B, LEAST)
    GROUPS: tl.constexpr = LOADED // (ACROSS * WORDS)
    even = groups + groups % 2
    halves = (rows + even * WORDS).to(tl.pointer_type(tl.float16), bitcast=True)
    word = tl.arange(0, WORDS)
    b = tl.arange(0, B)[:, None]
    totals = tl.zeros([B, valid.shape[0]], tl.float32)
    for start in range(0, groups, GROUPS):
        group = start + tl.arange(0, GROUPS)
        inside = group < groups
        exists = valid[:, None] & inside[None, :]
        weights = tl.load(
            rows[:, None, None] + group[None, :, None] * WORDS + word[None, None, :],
            mask=exists[:, :, None],
            other=0,
        )[None, :, :, :]
        own = (b < BATCH) & inside[None, :]
        at = b * groups + group[None, :]
        x = words + at[:, :, None] * 8 + word[None, None, :]
        low = tl.load(x, mask=own[:, :, None], other=0)[:, None, :, :]
        scale = tl.load(halves[:, None] + group[None, :], mask=exists, other=0.0).to(tl.float32)
        x_scale = tl.load(scales + at, mask=own, other=0.0)[:, None, :]
        if KIND == "int8":
            dots = tl.sum(int8_dot(weights, low, 0), axis=3)
            products = dots.to(tl.float32) * scale[None, :, :]
        else:
            high = tl.load(x + 4, mask=own[:, :, None], other=0)[:, None, :, :]
            dots = tl.sum(int4_dot(weights, low, high, 0), axis=3)
            total = tl.load(sums + at, mask=own, other=0)[:, None, :]
            if KIND == "int4":
                products = (dots - 8 * total).to(tl.float32) * scale[None, :, :]
            else:
                minimum = tl.load(halves[:, None] + even + group[None, :], mask=exists, other=0.0)
                products = dots.to(tl.float32) * scale[None, :, :]
                products += total.to(tl.float32) * minimum.to(tl.float32)[None, :, :]
        totals += tl.sum(products * x_scale, axis=2)
    return totals


@triton.jit
def round_group(hidden):
    """Round [B, 32] to int8: quants int32 [B, 32], scales float32 [B], sums int32 [B].

    The same numbers as `oracle.quantize_activations`.
    """
    peak = tl.max(tl.abs(hidden), axis=1)
    peak = tl.where(peak > 1e-30, peak, 0.0)
    inverse = tl.where(peak > 0.0, tl.div_rn(127.0, tl.where(peak > 0.0, peak, 1.0)), 0.0)
    quants = round_even(hidden * inverse[:, None])
    return quants, tl.div_rn(peak, 127.0), tl.sum(quants, axis=1)


@triton.jit
def add_columns(
    out,
    out_stride,
    d_model,
    first,
    each,
    mask,
    held,
    shared,
    quants,
    scales,
    totals,
    KIND: tl.constexpr,
    BATCH: tl.constexpr,
    B: tl.constexpr,
):
    """Add a group's neurons in `mask`, of rounded values [B, 32], to `out` float32 [b, d_model].

    `first` points to the int32 words of the group's first column, `each` words before the next
    one, `held` is for `record_of`, `shared` to the float16 scales and minima of the group. Other
    programs may add to `out` meanwhile: in which order is left open.
    """
    SIZE: tl.constexpr = 64 if KIND == "int8" else 128
    LOADED: tl.constexpr = max(IN_FLIGHT // B, LEAST)
    CHUNKS: tl.constexpr = LOADED // (ACROSS * 16)
    width = tl.cdiv(d_model, 64) * 64
    full = width // SIZE
    for chunk in range(0, full, CHUNKS):
        sums = _column_sums(
            first + chunk * 16, each, mask, held, quants, (full - chunk) * 16, KIND, B, CHUNKS
        )
        output = chunk * SIZE + tl.arange(0, CHUNKS * SIZE)
        here = output < tl.minimum(d_model, full * SIZE)
        _add(out, out_stride, output, here, sums, shared, width, scales, totals, KIND, BATCH, B)
    if width > full * SIZE:
        sums = _column_sums(first + full * 16, each, mask, held, quants, 8, KIND, B, 1)
        # the halves of a last half chunk stand where a whole one would have them
        place = tl.arange(0, SIZE)
        line = (place >> 2) & 3
        output = full * SIZE + (place >> 5) * 16 + ((place >> 4) & 1) * 8 + line * 4 + (place & 3)
        here = (line < 2) & (output < d_model)
        _add(out, out_stride, output, here, sums, shared, width, scales, totals, KIND, BATCH, B)


@triton.jit
def _column_sums(
    first,
    each,
    mask,
    held,
    quants,
    words,
    KIND: tl.constexpr,
    B: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Integer sums [B, outputs] over the neurons in `mask`, of CHUNKS whole chunks of a column.

    Only the first `words` words are read.
    """
    WIDTH: tl.constexpr = 16 * CHUNKS
    OUTPUTS: tl.constexpr = (4 if KIND == "int8" else 8) * WIDTH
    word = tl.arange(0, WIDTH)
    sums = tl.zeros([B, OUTPUTS], tl.int32)
    count = tl.sum(bits_of(mask), axis=0)
    for start in range(0, count, ACROSS):
        lanes, valid = members(mask, start, ACROSS)
        weights = tl.load(
            (first + record_of(lanes, held) * each)[:, None] + word[None, :],
            mask=valid[:, None] & (word < words)[None, :],
            other=0,
        )[None, :, :]
        values = tl.where(valid[None, :], pick(quants, lanes), 0)[:, :, None]
        if KIND == "int8":
            even = tl.join(_byte(weights, values, 0), _byte(weights, values, 2))
            odd = tl.join(_byte(weights, values, 1), _byte(weights, values, 3))
            both = tl.reshape(tl.join(even, odd), [B, CHUNKS, 4, 4, 2, 2])
            ordered = tl.permute(both, (0, 1, 3, 2, 4, 5))
        else:
            low = tl.join(_nibbles(weights, values, 0), _nibbles(weights, values, 8))
            high = tl.join(_nibbles(weights, values, 4), _nibbles(weights, values, 12))
            both = tl.reshape(tl.join(low, high), [B, CHUNKS, 4, 4, 2, 2, 2])
            ordered = tl.permute(both, (0, 1, 3, 6, 2, 4, 5))
        sums += tl.reshape(ordered, [B, OUTPUTS])
    return sums


@triton.jit
def _byte(weights, values, byte: tl.constexpr):
    """Byte `byte` of words [1, N, W], each less 128, times values [B, N, 1], summed over N."""
    signed = ((weights ^ -2139062144) << (24 - 8 * byte)) >> 24  # 0x80808080
    return tl.sum(signed * values, axis=1)


@triton.jit
def _nibbles(weights, values, shift: tl.constexpr):
    """Two nibbles of words, 16 bits apart, times values, summed: [B, W, 2].

    Both at once, since 8 products of at most 15 * 127 stay within 16 bits.
    """
    sums = tl.sum(((weights >> shift) & 0x000F000F) * values, axis=1)
    low = (sums << 16) >> 16
    return tl.join(low, (sums - low) >> 16)


@triton.jit
def _add(
    out,
    out_stride,
    output,
    here,
    sums,
    shared,
    width,
    scales,
    totals,
    KIND: tl.constexpr,
    BATCH: tl.constexpr,
    B: tl.constexpr,
):
    """Add sums [B, n], times both scales and with what their offset makes, to outputs [n]."""
    scale = tl.load(shared + output, mask=here, other=0.0).to(tl.float32)[None, :]
    if KIND == "int4":
        sums -= 8 * totals[:, None]
    products = sums.to(tl.float32) * scale
    if KIND == "int4m":
        minimum = tl.load(shared + width + output, mask=here, other=0.0).to(tl.float32)
        products += totals.to(tl.float32)[:, None] * minimum[None, :]
    b = tl.arange(0, B)[:, None]
    tl.atomic_add(
        out + b * out_stride + output[None, :],
        products * scales[:, None],
        mask=(b < BATCH) & here[None, :],
        sem="relaxed",
    )
