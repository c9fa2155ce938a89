"""Train a small ReLU model whose neurons mostly stay silent, for want of a published one at hand.

    python benchmarks/train_relu.py OUT_FOLDER SOURCE [SOURCE ...] [--minutes 10] [--active 0.1]

Needs torch (CPU). Sources are .html, .txt and .py files, or folders of them. Writes config.json,
model.safetensors, tokenizer.json (a byte-level BPE trained on the same files) and heldout.txt, one
file in sixteen that nothing was trained on; `stem-local convert OUT_FOLDER` packs it.

Llama's layers with a ReLU gate. The FFNs' hidden values carry an L1 penalty that grows until few
enough are not zero, as ProSparse does it (arXiv 2402.13516), with the weight steered towards the
share asked for. Matrices are trained by Muon, which gets furthest in few steps, the rest by AdamW.
`--minutes` is processor time, so that the outcome does not depend on what else the machine does:
eight of them with the Debian handbook and Python's own modules gave 8% active, held-out perplexity
75 (a vocabulary of 4,096, 1.3 million tokens read). Enough for weights that are not random; more
minutes make a better model.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from perplexity import TextOnly
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

D_MODEL, FFN_DIM, LAYERS, HEADS, CONTEXT = 192, 768, 4, 3, 512
HEAD_DIM = D_MODEL // HEADS
THETA, EPS = 10_000.0, 1e-5
VOCAB = 4096
END = "<|endoftext|>"

BATCH = 4  # sequences of CONTEXT tokens in a step
MATRIX_RATE, VECTOR_RATE = 4e-3, 3e-3
WARM, HOLD = 0.02, 0.4  # shares of the time: until the full rate, and until it falls
PENALTY_FROM, PENALTY_STEP = 0.1, 0.03
HELD_OUT_EVERY = 16


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in "qkvo":
            setattr(self, f"{name}_proj", nn.Linear(D_MODEL, D_MODEL, bias=False))

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (
            getattr(self, f"{name}_proj")(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
            for name in "qkv"
        )
        out = F.scaled_dot_product_attention(rotate(q, turns), rotate(k, turns), v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class Ffn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(D_MODEL, FFN_DIM, bias=False)
        self.up_proj = nn.Linear(D_MODEL, FFN_DIM, bias=False)
        self.down_proj = nn.Linear(FFN_DIM, D_MODEL, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the hidden values [..., FFN_DIM]."""
        hidden = F.relu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(hidden), hidden


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(D_MODEL, eps=EPS)
        self.self_attn = Attention()
        self.post_attention_layernorm = nn.RMSNorm(D_MODEL, eps=EPS)
        self.mlp = Ffn()

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x = x + self.self_attn(self.input_layernorm(x), turns)
        out, hidden = self.mlp(self.post_attention_layernorm(x))
        return x + out, hidden


class Model(nn.Module):
    """Names as in Llama's checkpoints, so that the state dict is one."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, D_MODEL)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(D_MODEL, eps=EPS)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                gain = 1.0 if "embed" in name else D_MODEL**0.5 / weight.shape[1] ** 0.5
                gain *= 0.1 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(weight, std=gain * D_MODEL**-0.5)

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [batch, n, vocab] and the hidden values of every FFN."""
        steps = THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = torch.outer(torch.arange(tokens.shape[1]), steps)
        turns = angles.cos(), angles.sin()
        x = self.embed_tokens(tokens)
        all_hidden = []
        for layer in self.layers:
            x, hidden = layer(x, turns)
            all_hidden.append(hidden)
        return F.linear(self.norm(x), self.embed_tokens.weight), all_hidden


def rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turns
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def read_documents(sources: list[Path]) -> list[str]:
    files = [
        file
        for source in sources
        for file in (sorted(source.iterdir()) if source.is_dir() else [source])
        if file.suffix in (".html", ".txt", ".py")
    ]
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return [
        visible(text) if file.suffix == ".html" else text
        for file, text in zip(files, texts, strict=True)
    ]


def visible(page: str) -> str:
    parser = TextOnly()
    parser.feed(page)
    return " ".join(parser.parts)


def train_tokenizer(documents: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, documents: list[str]) -> Tensor:
    end = tokenizer.token_to_id(END)
    ids = [i for found in tokenizer.encode_batch(documents) for i in (end, *found.ids)]
    return torch.tensor(ids, dtype=torch.int32)


def batches(stream: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    while True:
        starts = torch.randint(len(stream) - CONTEXT - 1, (BATCH,), generator=random)
        rows = torch.stack([stream[s : s + CONTEXT + 1] for s in starts.tolist()]).long()
        yield rows[:, :-1], rows[:, 1:]


def rate_at(progress: float) -> float:
    return min(1.0, progress / WARM, (1 - progress) / (1 - HOLD))


def train(model: Model, stream: Tensor, seconds: float, active: float) -> None:
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    ours = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ours]
    muon = torch.optim.Muon(
        matrices, lr=MATRIX_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(rest, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    rates = {muon: MATRIX_RATE, adam: VECTOR_RATE}
    penalty, begin = 0.01, time.process_time()
    for step, (tokens, targets) in enumerate(batches(stream)):
        progress = (time.process_time() - begin) / seconds
        if progress >= 1:
            return
        with torch.autocast("cpu", torch.bfloat16):
            logits, hidden = model(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        share = sum((h != 0).float().mean().item() for h in hidden) / LAYERS
        total = loss
        if progress > PENALTY_FROM:
            total = loss + penalty * sum(h.float().abs().mean() for h in hidden)
            penalty *= math.exp(PENALTY_STEP * max(-1.0, min(1.0, share / active - 1)))
        total.backward()
        for optimizer, rate in rates.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_at(progress)
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 0:
            print(
                f"step {step}, {progress:.0%}: loss {loss.item():.3f}, active {share:.1%}, "
                f"penalty {penalty:.2g}",
                flush=True,
            )


@torch.no_grad()
def report(model: Model, stream: Tensor) -> None:
    """Print the held-out loss, and what share of each layer's neurons fires."""
    count = (len(stream) - 1) // CONTEXT
    loss, fired = 0.0, torch.zeros(LAYERS, FFN_DIM)
    for start in range(0, count * CONTEXT, CONTEXT):
        rows = stream[start : start + CONTEXT + 1].long()
        logits, hidden = model(rows[None, :-1])
        loss += F.cross_entropy(logits[0], rows[1:]).item()
        fired += torch.stack([(h[0] != 0).sum(0) for h in hidden])
    print(f"held-out perplexity {math.exp(loss / count):.2f} on {count * CONTEXT} tokens\n")
    print("| layer | active | by the top fifth | never |\n|---|---|---|---|")
    for layer, rates in enumerate(fired / (count * CONTEXT)):
        top = rates.topk(FFN_DIM // 5).values.sum() / rates.sum()
        print(f"| {layer} | {rates.mean():.1%} | {top:.1%} | {(rates == 0).float().mean():.1%} |")


def save(model: Model, out: Path) -> None:
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "relu",
        "hidden_size": D_MODEL,
        "intermediate_size": FFN_DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "vocab_size": model.embed_tokens.num_embeddings,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    weights = {f"model.{name}": weight.detach() for name, weight in model.named_parameters()}
    save_file(weights, out / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("sources", type=Path, nargs="+", help="files, or folders of files")
    parser.add_argument("--minutes", type=float, default=10, help="of processor time (10)")
    parser.add_argument("--active", type=float, default=0.1, help="share that may fire (0.1)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    documents = read_documents(args.sources)
    held_out = documents[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    del documents[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    (args.out / "heldout.txt").write_text("\n\n".join(held_out), encoding="utf-8")
    tokenizer = train_tokenizer(documents)
    tokenizer.save(str(args.out / "tokenizer.json"))
    model = Model(tokenizer.get_vocab_size())
    stream = token_stream(tokenizer, documents)
    print(f"{len(stream)} tokens, {sum(p.numel() for p in model.parameters())} parameters")
    train(model, stream, 60 * args.minutes, args.active)
    save(model, args.out)
    report(model, token_stream(tokenizer, held_out))


if __name__ == "__main__":
    main()
