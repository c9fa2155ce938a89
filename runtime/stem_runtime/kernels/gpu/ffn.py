"""The FFN of decoded tokens: dense, or only of the neurons that matter, in two launches each.

Gate first: `find_survivors` computes gates, of everyone or of candidates, and compacts who passes
the gate test; `add_survivors` reads rows of up and columns of down of those. By contribution:
`find_contributors` computes gate and up whole and compacts who contributes, `add_contributors`
reads columns of down. Dense: `hidden_values`, then a product with down.

Grids do not depend on how many survive, so that a step can be captured. Survivors are added to the
output as they arrive, which leaves the order of the sums, and so their last bits, to chance.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from .compact import Survivors, bound
from .ffn_kernels import (
    _add_contributors,
    _add_survivors,
    _find_survivors,
    _hidden_values,
)
from .layout import Activations, DeviceMatrix
from .matvec import THREADS, unroll_of
from .records import DeviceNeurons, FfnTests, Followers, Tally

_PROGRAMS = 512
"""Programs that share a queue: about four for each processor."""


def hidden_values(
    hidden: Activations,
    acts: Activations,
    gate: DeviceMatrix,
    up: DeviceMatrix,
    activation: str,
    param: float = 0.0,
) -> None:
    """`act(gate @ x) * (up @ x)` rounded into `hidden`, whose product with down is the dense FFN.

    `acts` are the b (1 to 8) inputs x, `activation` as in `config.ACTIVATIONS`.
    """
    _hidden_values[(hidden.scales.shape[1],)](
        *hidden,
        *acts,
        gate.words,
        up.words,
        *gate.tiles.shape[:2],
        param,
        *[None] * 19,
        HEADS=0,
        NAMES=0,
        GATE=gate.kind,
        UP=up.kind,
        UNROLL=unroll_of(acts.scales.shape[0]),
        **_constants(acts, activation),
    )


def find_contributors(
    out: torch.Tensor,
    hidden: Activations,
    survivors: Survivors,
    acts: Activations,
    gate: DeviceMatrix,
    up: DeviceMatrix,
    neurons: DeviceNeurons,
    tests: FfnTests,
    report: Tally,
    activation: str,
    param: float = 0.0,
    *,
    followers: Followers | None = None,
) -> None:
    """`hidden_values` that are zero for neurons which fail the contribution test, and the queue of
    the others, who name their `followers`. Clears `out`, float32 [b, d_model or more], for
    `add_contributors`.
    """
    _hidden_values[(hidden.scales.shape[1],)](
        *hidden,
        *acts,
        gate.words,
        up.words,
        *gate.tiles.shape[:2],
        param,
        survivors.length,
        survivors.queue,
        neurons.norms,
        tests.core,
        neurons.alive,
        tests.cutoffs,
        *_attention(tests),
        *report,
        *_named(followers),
        out,
        out.stride(0),
        neurons.d_model,
        HEADS=_heads(tests),
        NAMES=_names(followers),
        GATE=gate.kind,
        UP=up.kind,
        UNROLL=unroll_of(acts.scales.shape[0]),
        **_constants(acts, activation),
    )


def add_contributors(
    out: torch.Tensor, hidden: Activations, survivors: Survivors, neurons: DeviceNeurons
) -> None:
    """Add the queue's columns of down, times their hidden values, to `out`."""
    batch, groups = hidden.scales.shape
    _add_contributors[(min(groups, _PROGRAMS),)](
        survivors.length,
        survivors.queue,
        *hidden,
        groups,
        *_records(neurons),
        neurons.down,
        neurons.shared,
        neurons.shared.stride(0),
        out,
        out.stride(0),
        neurons.d_model,
        KIND=neurons.kinds[2],
        BATCH=batch,
        B=triton.next_power_of_2(batch),
        num_warps=THREADS // 32,
    )


def find_survivors(
    out: torch.Tensor,
    survivors: Survivors,
    acts: Activations,
    gate: DeviceMatrix | None,
    neurons: DeviceNeurons,
    tests: FfnTests,
    report: Tally,
    activation: str,
    param: float = 0.0,
    *,
    candidates: torch.Tensor | None = None,
    implied: torch.Tensor | None = None,
) -> None:
    """Compute gates and queue the neurons that pass the gate test.

    Everyone's gates by tiles, or with `candidates`, masks int32 [b, groups], those of candidates
    and of the core by their records, of which any sequence has need. `implied`, masks like these,
    are candidates because the layer before named them. `gate` may be None where only some neurons
    lie on the device, all of whose gates are computed by their records. Floors and caps cost a
    launch more. Clears `out`, float32 [b, d_model or more], for `add_survivors`.
    """
    batch, groups = survivors.passed.shape
    source, tiles = _records(neurons), 0
    if candidates is None and neurons.starts is None:
        assert gate is not None, "gates of everyone are computed by tiles"
        source, tiles = (gate.words, 0, None, None), gate.tiles.shape[0]
    _find_survivors[(groups,)](
        *survivors,
        *acts,
        *source,
        tiles,
        acts.scales.shape[1],
        param,
        neurons.weights,
        tests.core,
        neurons.alive,
        tests.cutoffs,
        *_attention(tests),
        candidates,
        implied,
        report.counts,
        out,
        out.stride(0),
        neurons.d_model,
        HEADS=_heads(tests),
        BOUNDED=tests.bounds is not None,
        GATE=neurons.kinds[0],
        UNROLL=unroll_of(batch),
        **_constants(acts, activation),
    )
    if tests.bounds is not None:
        bound(survivors, report.counts, tests.settled, tests.core, tests.bounds)


def add_survivors(
    out: torch.Tensor,
    survivors: Survivors,
    acts: Activations,
    neurons: DeviceNeurons,
    tests: FfnTests,
    report: Tally,
    activation: str,
    *,
    followers: Followers | None = None,
) -> None:
    """Compute the hidden values of the queue's neurons from their rows of up, and add the columns
    of down of those that pass the contribution test to `out`. They name their `followers`.
    """
    groups = survivors.queue.shape[0]
    _add_survivors[(min(groups, _PROGRAMS),)](
        survivors.length,
        survivors.queue,
        survivors.passed,
        survivors.gates,
        *acts,
        acts.scales.shape[1],
        groups,
        *_records(neurons),
        neurons.up,
        neurons.down,
        neurons.shared,
        neurons.shared.stride(0),
        neurons.norms,
        tests.core,
        tests.settled,
        *report,
        *_named(followers),
        out,
        out.stride(0),
        neurons.d_model,
        NAMES=_names(followers),
        DOWN=neurons.kinds[2],
        UP=neurons.kinds[1],
        **_constants(acts, activation),
    )


def _records(neurons: DeviceNeurons) -> tuple[torch.Tensor | int | None, ...]:
    return neurons.records, neurons.records.stride(0), neurons.starts, neurons.held


def _attention(tests: FfnTests) -> tuple[torch.Tensor | int | None, ...]:
    if tests.attention is None:
        return (None,) * 4
    return (*tests.attention, tests.attention.sharpness.shape[1])


def _heads(tests: FfnTests) -> int:
    """Heads whose sharpness is asked for, rounded up to a power of two."""
    if tests.attention is None:
        return 0
    return int(triton.next_power_of_2(tests.attention.sharpness.shape[1]))


def _named(followers: Followers | None) -> tuple[torch.Tensor | int | None, ...]:
    if followers is None:
        return (None,) * 3
    return (*followers, followers.names.shape[1])


def _names(followers: Followers | None) -> int:
    """How many a neuron may name, rounded up to a power of two."""
    return 0 if followers is None else int(triton.next_power_of_2(followers.names.shape[1]))


def _constants(acts: Activations, activation: str) -> dict[str, Any]:
    batch = acts.scales.shape[0]
    return {
        "ACTIVATION": activation,
        "BATCH": batch,
        "B": triton.next_power_of_2(batch),
        "num_warps": THREADS // 32,
        # left alone, ptxas spills addresses to have more programs on a processor than there are
        "maxnreg": 168 if batch <= 2 else 255,
    }
