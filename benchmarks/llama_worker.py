"""llama.cpp behind a loop of JSON lines: a request on standard input, an answer on standard output.

Runs under an interpreter that has llama-cpp-python, so that ours never needs it. Only the
low-level API is used: `llama_decode` on batches, flash attention on, the same threads for prompts
and decoding.
Requests are {"do": NAME, ...}; see the methods of Worker. Start it through llama_client.py.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp as ll
import numpy as np

LOGITS_CHUNK = 64  # tokens whose logits are held at once


@ll.llama_log_callback
def quiet(_level: int, _text: bytes, _data: object) -> None:
    pass


class Worker:
    """One model and one context at a time. Every method returns what goes back as JSON."""

    def __init__(self) -> None:
        self.model: Any = None
        self.ctx: Any = None

    def quantize(self, source: str, out: str, kind: str) -> dict[str, Any]:
        params = ll.llama_model_quantize_default_params()
        params.ftype = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{kind}")
        params.allow_requantize = True
        status = ll.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params))
        if status:
            raise RuntimeError(f"llama_model_quantize returned {status} for {source}")
        return {"bytes": Path(out).stat().st_size}

    def open(self, model: str, threads: int, context: int, batch: int) -> dict[str, Any]:
        self.close()
        self.model = ll.llama_model_load_from_file(model.encode(), ll.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        params = ll.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.ctx = ll.llama_init_from_model(self.model, params)
        self.batch = batch
        self.vocab_size = ll.llama_n_vocab(ll.llama_model_get_vocab(self.model))
        return {"vocab_size": self.vocab_size, "system": ll.llama_print_system_info().decode()}

    def close(self) -> dict[str, Any]:
        if self.ctx:
            ll.llama_free(self.ctx)
            ll.llama_model_free(self.model)
        self.ctx = self.model = None
        return {}

    def prefill(self, tokens: list[int]) -> dict[str, Any]:
        """Seconds to read `tokens` into an empty cache, up to the logits of the last one."""
        self._rewind(0)
        start = time.perf_counter()
        for at in range(0, len(tokens), self.batch):
            self._decode(tokens[at : at + self.batch])
        self._logits(-1)
        return {"seconds": time.perf_counter() - start}

    def decode(self, tokens: list[int], at: int) -> dict[str, Any]:
        """Seconds to take `tokens` one by one from position `at`, reading the logits of each."""
        self._rewind(at)
        start = time.perf_counter()
        for token in tokens:
            self._decode([token])
            self._logits(-1)
        return {"seconds": time.perf_counter() - start}

    def greedy(self, tokens: list[int], count: int) -> dict[str, Any]:
        """The `count` tokens that follow `tokens` when the likeliest is taken each time."""
        self.prefill(tokens)
        chosen = []
        for _ in range(count):
            chosen.append(int(self._logits(-1).argmax()))
            self._decode(chosen[-1:])
        return {"tokens": chosen}

    def score(self, tokens: list[int]) -> dict[str, Any]:
        """For each token but the last: -log p of the next one (nats) and the likeliest one."""
        self._rewind(0)
        losses: list[float] = []
        best: list[int] = []
        for at in range(0, len(tokens) - 1, LOGITS_CHUNK):
            part = tokens[at : min(at + LOGITS_CHUNK, len(tokens) - 1)]
            self._decode_all(part, at)
            for i in range(len(part)):
                row = self._logits(i).astype(np.float64)
                peak = row.max()
                losses.append(
                    float(peak + np.log(np.exp(row - peak).sum()) - row[tokens[at + i + 1]])
                )
                best.append(int(row.argmax()))
        return {"losses": losses, "best": best}

    def _rewind(self, length: int) -> None:
        ll.llama_memory_seq_rm(ll.llama_get_memory(self.ctx), 0, length, -1)

    def _decode(self, tokens: list[int]) -> None:
        array = (ll.llama_token * len(tokens))(*tokens)
        self._check(ll.llama_decode(self.ctx, ll.llama_batch_get_one(array, len(tokens))))

    def _decode_all(self, tokens: list[int], at: int) -> None:
        """Like `_decode` from position `at`, but keeping the logits of every token."""
        batch = ll.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = at + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = 1
        status = ll.llama_decode(self.ctx, batch)
        ll.llama_batch_free(batch)
        self._check(status)

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def _logits(self, row: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        pointer = ll.llama_get_logits_ith(self.ctx, row)
        return np.ctypeslib.as_array(pointer, (self.vocab_size,))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the library's own prints must not reach the protocol
    ll.llama_log_set(quiet, None)
    ll.llama_backend_init()
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except RuntimeError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
