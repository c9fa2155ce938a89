"""Four signed bytes times four in one instruction, and in the interpreter the same sum by shifts.

`EMULATE` is set where the kernels run in Triton's interpreter, which knows no machine
instructions.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

EMULATE = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dp4a(a, b, c):
    """c + the dot product of the four signed bytes in a and in b; int32, broadcast together."""
    if EMULATE:
        for byte in tl.static_range(4):
            left = (a << (24 - 8 * byte)) >> 24
            right = (b << (24 - 8 * byte)) >> 24
            # the interpreter is many times slower where it looks for overflow
            c = tl.add(c, tl.mul(left, right, False), False)
    else:
        c = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [a, b, c],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    return c


@triton.jit
def int4_dot(weights, low, high, c):
    """c + eight nibbles 0..15 times activations: `low` those of the low nibbles, `high`."""
    c = dp4a(weights & 0x0F0F0F0F, low, c)
    return dp4a((weights >> 4) & 0x0F0F0F0F, high, c)


@triton.jit
def int4_centred_dot16(weights, low, high, c):
    """c + 16 times (eight nibbles, each less 8, times activations), without their sum."""
    # a nibble in the upper half of a byte whose top bit is turned is 16 * (n - 8)
    c = dp4a(((weights & 0x0F0F0F0F) << 4) ^ -2139062144, low, c)  # 0x80808080
    return dp4a((weights & -252645136) ^ -2139062144, high, c)  # 0xF0F0F0F0


@triton.jit
def int8_dot(weights, acts, c):
    """c + four stored bytes, each less 128, times four activations."""
    return dp4a(weights ^ -2139062144, acts, c)  # 0x80808080


@triton.jit
def round_even(x):
    """float32, |x| < 2^22, to the nearest int32, halves to the even one."""
    if EMULATE:
        # the lowest bit of 1.5 * 2^23 is worth 1
        rounded = (x + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
    else:
        # as an instruction of its own: a sum could be fused with the product that x is
        rounded = tl.inline_asm_elementwise(
            "cvt.rni.s32.f32 $0, $1;", "=r,f", [x], dtype=tl.int32, is_pure=True, pack=1
        )
    return rounded
