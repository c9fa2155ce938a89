"""Decoding as gpt-fast does it: int4 matrices in torch's own kernel, one compiled step.

For a comparison of speed: the weights are random. Layers, cache and the order of operations follow
the published design (https://pytorch.org/blog/accelerating-generative-ai-2/): groups of 32 with
bfloat16 scales and zeros, bfloat16 activations and cache, `torch.compile` with CUDA graphs.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from stem_runtime.config import ModelConfig

GROUP = 32
INNER_TILES = 4  # of 16 columns: widths that are multiples of 64 will do
WARM_UP = 5


class Int4Matrix:
    """Random weights of (rows, cols) in the layout of torch's int4 product."""

    def __init__(self, rows: int, cols: int) -> None:
        quants = torch.randint(0, 256, (rows, cols // 2), dtype=torch.uint8, device="cuda")
        self.weight = torch.ops.aten._convert_weight_to_int4pack(quants, INNER_TILES)
        shape = (cols // GROUP, rows, 2)
        self.scales = torch.rand(shape, device="cuda").mul_(0.01).to(torch.bfloat16)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten._weight_int4pack_mm(x, self.weight, GROUP, self.scales)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scales.nbytes


class GptFast:
    """A model of `config`'s sizes with a cache for `context` tokens."""

    def __init__(self, config: ModelConfig, context: int) -> None:
        d, ffn, head_dim = config.d_model, config.ffn_dim, config.head_dim
        attended, kv = config.n_heads * head_dim, config.kv_heads * head_dim
        self.config = config
        self.layers = [
            (
                Int4Matrix(attended + 2 * kv, d),
                Int4Matrix(d, attended),
                Int4Matrix(2 * ffn, d),
                Int4Matrix(d, ffn),
            )
            for _ in range(config.n_layers)
        ]
        self.head = Int4Matrix(config.vocab_size, d)
        self.embed = torch.randn(config.vocab_size, d, dtype=torch.bfloat16, device="cuda")
        self.norm = torch.ones(d, dtype=torch.bfloat16, device="cuda")
        shape = (config.n_layers, 2, 1, config.kv_heads, context, head_dim)
        self.cache = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
        angles = torch.outer(torch.arange(context), torch.tensor(config.rope_inv_freq))
        self.cos, self.sin = (f(angles).to("cuda", torch.bfloat16) for f in (torch.cos, torch.sin))
        self.places = torch.arange(context, device="cuda")
        self._compiled = torch.compile(self._step, mode="reduce-overhead", fullgraph=True)

    @property
    def nbytes(self) -> int:
        """Bytes of weights that a token reads."""
        return self.head.nbytes + sum(matrix.nbytes for layer in self.layers for matrix in layer)

    def seconds_per_token(self, tokens: list[int], at: int) -> float:
        """Of taking `tokens` one by one from position `at` on."""
        inputs = torch.tensor(tokens, device="cuda")
        positions = torch.arange(at, at + len(tokens), device="cuda")
        with torch.inference_mode():
            for i in range(WARM_UP):
                self._compiled(inputs[i : i + 1], positions[i : i + 1])
            torch.cuda.synchronize()
            start = time.perf_counter()
            for i in range(len(tokens)):
                self._compiled(inputs[i : i + 1], positions[i : i + 1]).argmax().item()
        return (time.perf_counter() - start) / len(tokens)

    def _step(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        config = self.config
        x = self.embed[token]
        for index, (qkv, joined, gate_up, down) in enumerate(self.layers):
            x = x + joined(self._attend(index, qkv(self._normed(x)), position))
            gate, up = gate_up(self._normed(x)).chunk(2, dim=-1)
            x = x + down(F.silu(gate) * up)
        return self.head(self._normed(x))[:, : config.vocab_size]

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], self.norm, self.config.norm_eps)

    def _attend(self, index: int, qkv: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        config = self.config
        heads = qkv.view(1, -1, 1, config.head_dim)
        q, k, v = heads.split([config.n_heads, config.kv_heads, config.kv_heads], dim=1)
        cache = self.cache[index]
        cache[0].index_copy_(2, position, self._rotated(k, position))
        cache[1].index_copy_(2, position, v)
        seen = (self.places <= position)[None, None, None]
        mixed = F.scaled_dot_product_attention(
            self._rotated(q, position), cache[0], cache[1], attn_mask=seen, enable_gqa=True
        )
        return mixed.view(1, -1)

    def _rotated(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        cos, sin = self.cos[position], self.sin[position]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
