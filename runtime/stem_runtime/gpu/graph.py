"""Launches that are always the same, recorded once and then started together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

_WARM_UPS = 2
"""Runs before the recording: the first compiles kernels, which no recording may do."""


def captured(
    run: Callable[[], None], device: torch.device, changed: Sequence[torch.Tensor] = ()
) -> Callable[[], None]:
    """`run` as one CUDA graph, or as it is where there are none.

    `run` must do the same however often it is repeated but for what it leaves in `changed`, which
    is put back after the runs that do not count. It must allocate nothing that it keeps, and never
    wait for the device.
    """
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        before = [tensor.clone() for tensor in changed]
        for _ in range(_WARM_UPS):
            run()
            for tensor, kept in zip(changed, before, strict=True):
                tensor.copy_(kept)
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # threads of other models may take memory meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay
