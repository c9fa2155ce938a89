"""Write a GGUF of Llama-3.2-1B's shape with random weights, for speed work (656 MB).

    python benchmarks/make_random_gguf.py SMOLLM2.gguf OUT.gguf

The body is Q4_0 and the embeddings Q8_0, the mix that llama.cpp's quantizer makes. The tokenizer,
and so the vocabulary of 49,152, is copied from the first file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

D_MODEL, FFN_DIM, LAYERS, HEADS, KV_HEADS = 2048, 8192, 16, 32, 8
KV_DIM = D_MODEL // HEADS * KV_HEADS
GROUP = 32
BLOCK_BYTES = {GGMLQuantizationType.Q4_0: 2 + 16, GGMLQuantizationType.Q8_0: 2 + 32}
MATRICES = {
    "attn_q": (D_MODEL, D_MODEL),
    "attn_k": (KV_DIM, D_MODEL),
    "attn_v": (KV_DIM, D_MODEL),
    "attn_output": (D_MODEL, D_MODEL),
    "ffn_gate": (FFN_DIM, D_MODEL),
    "ffn_up": (FFN_DIM, D_MODEL),
    "ffn_down": (D_MODEL, FFN_DIM),
}


def write_settings(writer: GGUFWriter, source: GGUFReader) -> None:
    """Hyperparameters of the shape, tokenizer of `source`."""
    writer.add_block_count(LAYERS)
    writer.add_context_length(8192)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(FFN_DIM)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(500_000.0)
    writer.add_rope_dimension_count(D_MODEL // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(2)

    def copied(name: str) -> list:
        return source.fields[f"tokenizer.ggml.{name}"].contents()

    writer.add_vocab_size(len(copied("tokens")))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(copied("tokens"))
    writer.add_token_types(copied("token_type"))
    writer.add_token_merges(copied("merges"))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def random_blocks(
    rng: np.random.Generator, rows: int, cols: int, kind: GGMLQuantizationType, scale: float
) -> np.ndarray:
    """Blocks of 32 weights: one float16 `scale`, then random quants."""
    blocks = np.empty((rows, cols // GROUP, BLOCK_BYTES[kind]), np.uint8)
    blocks[..., :2] = np.array([scale], np.float16).view(np.uint8)
    blocks[..., 2:] = rng.integers(0, 256, (*blocks.shape[:2], blocks.shape[2] - 2), np.uint8)
    return blocks.reshape(rows, -1)


def write_tensors(writer: GGUFWriter, vocab_size: int) -> None:
    """The scales keep activations near 1, so that no format meets an unnatural range."""
    rng = np.random.default_rng(0)

    def add(name: str, shape: tuple[int, int], kind: GGMLQuantizationType, scale: float) -> None:
        blocks = random_blocks(rng, *shape, kind, scale)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)

    add("token_embd", (vocab_size, D_MODEL), GGMLQuantizationType.Q8_0, 0.0003)
    writer.add_tensor("output_norm.weight", np.ones(D_MODEL, np.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(D_MODEL, np.float32))
        for name, shape in MATRICES.items():
            add(f"blk.{layer}.{name}", shape, GGMLQuantizationType.Q4_0, 0.004)


def make(tokenizer_source: Path, out: Path) -> None:
    """Write `out` unless it is already there."""
    if out.exists():
        return
    source = GGUFReader(tokenizer_source)
    part = out.with_suffix(".part")
    writer = GGUFWriter(part, "llama")
    write_settings(writer, source)
    write_tensors(writer, len(source.fields["tokenizer.ggml.tokens"].contents()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    make(Path(sys.argv[1]), Path(sys.argv[2]))
