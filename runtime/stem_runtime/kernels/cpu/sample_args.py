"""The argument block of the sampling kernel: int64 words, addresses and the bits of float64s."""

from __future__ import annotations

(
    LOGITS,  # float32 [VOCAB]
    VOCAB,
    TOP_K,  # 1..VOCAB
    TOP_P,  # float64 bits, like all the floats here
    MIN_P,
    MARGIN,  # temperature * ln(MIN_P): how far under the best logit MIN_P cuts
    TEMPERATURE,  # above 0
    DRAW,  # uniform in [0, 1)
    PEAKS,  # float32 [blocks]: the best logit of each block
    HEAP,  # float32 [blocks]
    IDS,  # int32 [VOCAB]: the candidates, and at the end the KEPT ones
    WEIGHTS,  # float64 [VOCAB]: of the kept, relative to the best token
    KEPT,  # result: how many tokens may be sampled
    TOKEN,  # result: the one that was
    STATUS,  # result
    ARGS_WORDS,
) = range(16)

BLOCK = 64
FINE, NOT_FINITE, NOTHING_LEFT = range(3)
