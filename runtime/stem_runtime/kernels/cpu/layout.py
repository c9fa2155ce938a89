"""The argument block of a step, as int64 words: addresses, sizes, and the bits of float64s.

The engine fills it, the kernels read it, and this file is the only place that says what is where.
"""

from __future__ import annotations

(
    N_LAYERS,
    D_MODEL,
    D_PAD,  # d_model rounded up to groups of 32
    N_HEADS,
    KV_HEADS,
    HEAD_DIM,
    HEAD_PAD,  # head_dim rounded up to 16 lanes, or to groups of 32 where the cache is int8
    ACTIVATION,  # index into config.ACTIVATIONS
    ACTIVATION_PARAM,  # float64 bits, like all the floats here
    NORM_EPS,
    ATTN_SCALE,
    EMBED_SCALE,
    RESIDUAL_SCALE,
    INVERSE_D,  # 1 / d_model
    APART,  # whether outliers of the inputs stay floats, but for the down projection's
    LAYERS,  # [N_LAYERS, LAYER_WORDS]
    EMBED,  # matrix words
    HEAD,  # matrix words
    FINAL_NORM,
    # one call
    TOKENS,  # int32 [N_TOKENS]
    N_TOKENS,
    POSITION,  # of the first token
    CACHE,  # what the keys and values are
    KEYS,  # float16 [layer, kv_head, positions/16, HEAD_PAD, 16], or int8 chunks: see cache8.py
    VALUES,  # float16 [layer, kv_head, positions, HEAD_PAD], or int8 chunks
    HEAD_BYTES,  # from one key head's keys to the next one's, and likewise of values
    LOGITS,  # float32 [tokens from LOGITS_FROM on, 16 * tiles of the head]
    LOGITS_FROM,  # first token of the call whose logits are wanted
    FFN,  # 0, or [N_LAYERS, FFN_WORDS]: the FFNs neuron by neuron
    SPARSE,  # leave neurons out
    SINKS,  # positions before this one run dense
    REST,  # int32 [N_LAYERS, 2]: tokens that full layers still stay dense, the last time in all
    CHOSEN,  # 0, or uint32 [N_LAYERS, FFN_GROUPS]: the conversation's own candidates
    HEAT,  # 0, or float32 [N_LAYERS, 32 * FFN_GROUPS]: contributions are added to it
    STATES,  # 0, or float32 [tokens, D_PAD] for what the head gets (prefill only)
    RESIDUAL,  # 0, or float32 [tokens, D_PAD] for the residual stream, and then no logits
    FFN_STATES,  # 0, or float32 [N_LAYERS, N_TOKENS, D_PAD] for what the FFNs get (prefill only)
    LOOK,  # 0, or look words: compute only the rows of the head that can still matter (decode)
    VOCAB,
    FFN_LAYER,  # the layer whose FFN alone is wanted: from X into Y
    # buffers
    X,  # float32 [tokens, D_PAD]: the residual stream of prefill, or one FFN's input
    Y,  # float32 [tokens, D_PAD]: what a sublayer adds to it
    QKV,  # float32 [tokens, QKV_ROWS]
    QKV_ROWS,
    ATTENDED,  # float32 [tokens, ATTENDED_PAD]
    ATTENDED_PAD,
    PARTIALS,  # float32 [tokens, CHUNKS, N_HEADS, HEAD_PAD + 16]: maximum, sum, weighted values
    CHUNKS,  # of the cache's positions: see attend.py
    ACTS,  # activations words: inputs of d_model or of all heads
    HIDDEN,  # activations words: inputs of the down projection
    FFN_GROUPS,  # groups of 32 neurons
    GATES,  # float32 [32 * FFN_GROUPS]: gates of this layer, those not computed are zero
    POTENTIALS,  # float32 [32 * FFN_GROUPS]
    OFFERED,  # uint32 [FFN_GROUPS]: neurons whose gate is computed
    PASSED,  # uint32 [FFN_GROUPS]: neurons that passed the gate test
    UPS,  # float32 [32 * FFN_GROUPS]: ups of the neurons that passed
    LISTED,  # int32 [threads, 32 * FFN_GROUPS + LISTED_PAD]: neurons whose rows a thread reads
    IMPLIED,  # uint32 [2, threads, FFN_GROUPS]: candidates because of what fired a layer before
    PARTIAL_Y,  # float32 [threads, column width]: what each thread's neurons add
    COUNTS,  # int64 [N_LAYERS, threads, LINE]: see COUNT_ below
    SHARPNESS,  # float32 [N_LAYERS]: how sharp the token's attention was
    SCRATCH,  # one thread's own memory, SCRATCH_BYTES each
    SCRATCH_BYTES,
    TEAM,  # team words
    THREADS,
    ARGS_WORDS,
) = range(66)

CACHE_FP16, CACHE_INT8 = range(2)
INT8_BYTES = 17  # of 16 positions in an int8 cache, for each dimension

# a quantized matrix: its first tile, the bytes from one tile to the next, what is in them
TILE, TILE_BYTES, KIND, TILES, GROUPS, MATRIX_WORDS = range(6)
INT4, INT4_MINIMA, INT8 = range(3)
GROUP_BYTES = (32 + 256, 64 + 256, 32 + 512)
"""Of one (tile, group), by kind: scales, minima where there are any, quants."""

# quantized activations, by blocks of tokens: [block, group, token of the block, ...]
(
    A_QUANTS,
    A_SCALES,
    A_BIAS,
    A_SUMS,
    A_OUTLIERS,  # [block, A_APART, token of the block] of int32 column, float32 value
    A_APART,  # how many elements of a token stay floats: OUTLIERS or 0
    ACTS_WORDS,
) = range(7)
OUTLIERS = 2  # elements of a token's input, its largest, that stay floats
OUTLIER_BYTES = 8

# one layer: seven matrices, then addresses (0 where the model has no such tensor) and sizes
_M = MATRIX_WORDS
Q, K, V, O, GATE, UP, DOWN = range(0, 7 * _M, _M)  # noqa: E741
(
    ATTN_NORM,
    FFN_NORM,
    Q_BIAS,
    K_BIAS,
    V_BIAS,
    Q_NORM,
    K_NORM,
    ATTN_POST_NORM,
    FFN_POST_NORM,
    WINDOW,  # positions, 0 for all
    ROPE,  # float32 [positions, 2, HEAD_DIM / 2]: cosines and sines
    LAYER_WORDS,
) = range(7 * _M, 7 * _M + 12)

LINE = 8
"""Words of a cache line: what one thread writes lies as far from what others wait for."""

# a look at the vocabulary before the head
_W = MATRIX_WORDS
# matrices: hidden state to few axes, axes to scores, and the mean row of the head; no tiles: none
LOOK_ROTATION, LOOK_SCORES, LOOK_MEAN = 0, _W, 2 * _W
(
    LOOK_ROWS,  # the head by rows: [vocab, groups, 34 bytes]
    LOOK_MARGIN,  # float64 bits: rows that score less than the mark by more are left out
    LOOK_LIMIT,  # rows; where more come within the margin, the best of them are computed
    LOOK_LIST,  # int32 [16 * tiles]: rows within the margin, each thread's from its first row on
    LOOK_NEAR,  # float32 [16 * tiles]: logits of rows that score nearly as well as the best
    LOOK_COUNTS,  # int64 [threads, LOOK_COUNT_WORDS]: see FOUND_ below, then int32 [LAG_BINS]
    LOOK_DONE,  # rows computed in full by the last step
    LOOK_WORDS,
) = range(3 * _W, 3 * _W + 8)
FOUND_ROWS, FOUND_SCORE, FOUND_LOGIT = range(3)  # rows within the margin; float32: the best ones
NEAR = 2.0  # nats
ROW_GROUP_BYTES = 34  # float16 scale, 32 bytes
LAG_BINS, BINS_PER_NAT = 256, 16  # rows are counted by how far they score below the mark
LOOK_COUNT_WORDS = LINE + LAG_BINS // 2

# the FFN of a layer neuron by neuron (see sparsity/neurons.py) and what is left out of it
(
    F_MODE,
    F_CANDIDATES,
    F_SHARED,  # the down projection's scales and minima, [FFN_GROUPS, F_SHARED_BYTES]
    F_SHARED_BYTES,
    F_PLACES,  # int64 [32 * FFN_GROUPS]: where each neuron's record starts, for up and down
    F_GATE_PLACES,  # the same for gate, which may lie apart from the rest of its record
    F_RECORD_BYTES,
    F_GATE_ROWS,  # candidates of a group up to which gates are read by rows, -1 for never
    F_UP,  # bytes from a record's start to its row of up
    F_DOWN,  # bytes from a record's start to its column of down
    F_WEIGHTS,  # float32 [32 * FFN_GROUPS]: potential = |act(g)| * weight
    F_NORMS,  # the same for contributions
    F_GATE_CUTOFF,  # float64 bits
    F_DOWN_CUTOFF,
    F_FLOOR,  # neurons
    F_CAP,
    F_CORE,  # uint32 [FFN_GROUPS], or 0
    F_ALIVE,
    F_IMPLIES,  # int32 [ffn, F_IMPLIES_EACH] neurons of the next layer, or 0
    F_IMPLIES_EACH,
    F_ATTENTION,  # float64 bits: strength / spread of sharpness, 0 for none
    F_SHARPNESS,  # float64 bits: its mean
    F_PREDICTED,  # float32 [32 * FFN_GROUPS]: cut-offs of the predictor's scores
    F_TILED,  # uint32 [FFN_GROUPS]: who has a row in F_GATES and F_SCORES
    F_TILED_FIRST,  # int32 [FFN_GROUPS + 1]: which row is a group's first
    F_GATES,  # matrix words: rows of gate, without those of up in between
    _,
    _,
    _,
    _,
    F_AXES,  # matrix words
    _,
    _,
    _,
    _,
    F_SCORES,  # matrix words
    _,
    _,
    _,
    _,
    FFN_WORDS,
) = range(41)
MODE_DENSE, MODE_GATE, MODE_CONTRIBUTION = range(3)
ALL, PREDICTED, RESAMPLED = range(3)
(
    COUNT_CANDIDATES,
    COUNT_GATED,
    COUNT_ACTIVE,
    COUNT_CORE,
    COUNT_IMPLIED,
    COUNT_BOUNDED,  # +1 where the floor, -1 where the cap moved the cut-off
    COUNT_DENSE,
    COUNT_CAPTURED,  # float64 bits: sum of the active neurons' contributions
) = range(8)

# the team: words a cache line apart
(
    ARRIVED,
    PHASE,
    COUNTER,
    GENERATION,
    JOB,
    INTERRUPT,
    STOPPING,
    YIELD,
    IDLE_SPINS,
    WORKERS,
) = range(0, 10 * LINE, LINE)
# then per thread, from WORKERS on: state and last generation seen, a line each
STATE, SEEN, WORKER_WORDS = 0, LINE, 2 * LINE
ASLEEP, AWAKE = 0, 1
JOB_QUIT, JOB_DECODE, JOB_PREFILL, JOB_FFN = range(4)

STEP_WIDTHS = (1, 2, 4)  # tokens that one decode step multiplies by at a time
STEP_TOKENS = STEP_WIDTHS[-1]
ATTENTION_BLOCKS = 16  # of 16 positions: a chunk, scored before its values are added
FIRST_BLOCKS = 4  # of the chunks before them, for threads to share short contexts
ATTENTION_ROWS = 32  # query rows that share a pass over the keys
ROWS_AHEAD = 16  # rows of single neurons that are asked for early
LISTED_PAD = ROWS_AHEAD + 4
GATE_ROWS = 16  # candidates of a group beyond which its two tiles are cheaper than their rows


def row_bytes(kind: int, groups: int) -> int:
    """Of one row of gate or up with that many groups of 32 columns."""
    each = {INT4: 16 + 2, INT4_MINIMA: 16 + 4, INT8: 32 + 2}[kind]
    return ((groups + 1) // 2 * 2 * each + 63) // 64 * 64


def column_width(d_model: int) -> int:
    return (d_model + 63) // 64 * 64


def column_bytes(kind: int, d_model: int) -> int:
    """Of one neuron's column of the down projection."""
    width = column_width(d_model)
    return width if kind == INT8 else (width // 2 + 63) // 64 * 64


def shared_bytes(kind: int, d_model: int) -> int:
    """Of the scales and minima that 32 columns share."""
    return (4 if kind == INT4_MINIMA else 2) * column_width(d_model)


def scratch_bytes(
    d_pad: int,
    attended_pad: int,
    heads: int,
    group: int,
    head_pad: int,
    tokens: int,
    ffn_groups: int,
) -> int:
    """Memory of one thread; `decode` and `prefill` cut it up. `group`: queries per key head."""
    outliers = OUTLIERS * OUTLIER_BYTES
    activations = (
        STEP_TOKENS * (((d_pad + attended_pad) // 32 + 4) * (32 + 12) + 2 * outliers)
        + 16 * ACTS_WORDS
    )
    vectors = 4 * ((STEP_TOKENS + 1) * d_pad + attended_pad + 2 * head_pad)
    rows = max(ATTENTION_ROWS, STEP_TOKENS * group)
    attention = 4 * rows * (3 * head_pad + 4) + attention_bytes(rows, head_pad)
    gates = 4 * 2 * 32 * tokens
    neurons = 1024 + 8 * d_pad + 4 * ffn_groups + d_pad // 32 * (32 + 12)
    alone = 4 * d_pad + d_pad // 32 * (32 + 12) + outliers
    look = (STEP_TOKENS + 1) * alone + 16 * ACTS_WORDS
    joined = 4 * heads * (head_pad + 16)
    total = vectors + activations + max(attention, joined) + gates + max(neurons, look)
    return (total + 4095) // 4096 * 4096


def attention_chunks(positions: int) -> int:
    """How many chunks they fill, by `attend.chunk_of`, or a few more."""
    chunk = 16 * ATTENTION_BLOCKS
    return ATTENTION_BLOCKS // FIRST_BLOCKS - 1 + (positions + chunk - 1) // chunk


def attention_bytes(rows: int, head_pad: int) -> int:
    """For the scores of that many queries, and what they are quantized to for an int8 cache."""
    scores, quants = 4 * 16 * ATTENTION_BLOCKS, head_pad // 32 * (32 + 12)
    return rows * (scores + quants) + 4 * scores
