"""Which files of a repository make a model, and which of its quantizations to take."""

from __future__ import annotations

import re
from collections.abc import Collection

from .errors import NotFoundError, SourceError

GGUF_PREFERENCE = (
    *("Q4_0", "Q4_1", "Q4_K_M", "Q4_K_S", "Q8_0", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1"),
    *("Q6_K", "F16", "BF16", "F32"),
)
"""Best first: 4-bit formats whose bits are kept, then those that must be repacked, then size."""

_QUANT = re.compile(r"(?<![A-Z0-9])(I?Q\d_\w+?|B?F16|F32)(?=[-.]|$)", re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-(\d{5})\.")
_INDEX = "model.safetensors.index.json"
_EXTRAS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def choose(repo: str, files: Collection[str], wanted: str | None) -> list[str]:
    """The files to fetch: one GGUF, or config, tokenizer and safetensors, the smallest kind first.

    `wanted` names a GGUF file. A repository of safetensors is taken as such; otherwise the GGUF
    that comes first in GGUF_PREFERENCE. Raises NotFoundError, SourceError.
    """
    ggufs = sorted(f for f in files if f.endswith(".gguf") and "mmproj" not in f.lower())
    if wanted is not None:
        if wanted not in files:
            raise NotFoundError(f"{repo} has no file {wanted}; {_offer(repo, ggufs)}")
        return [wanted]
    weights = _safetensors(files)
    if weights and "config.json" in files and "tokenizer.json" in files:
        return ["config.json", "tokenizer.json", *(f for f in _EXTRAS if f in files), *weights]
    if ggufs:
        return [_preferred(repo, ggufs)]
    raise SourceError(_why_not(repo, files, weights))


def quant_of(file: str) -> str | None:
    """The quantization that a GGUF file's name states, in capitals."""
    found = _QUANT.findall(file.rpartition("/")[2].removesuffix(".gguf"))
    return found[-1].upper() if found else None


def _safetensors(files: Collection[str]) -> list[str]:
    if "model.safetensors" in files:
        return ["model.safetensors"]
    shards = sorted(f for f in files if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", f))
    if not shards or _INDEX not in files:
        return []
    count = _PART.search(shards[0])
    return [_INDEX, *shards] if count and len(shards) == int(count[1]) else []


def _preferred(repo: str, ggufs: list[str]) -> str:
    whole = [f for f in ggufs if not _PART.search(f)]
    if len(whole) == 1:
        return whole[0]
    for quant in GGUF_PREFERENCE:
        if found := [f for f in whole if quant_of(f) == quant]:
            return min(found, key=lambda f: (len(f), f))
    raise SourceError(f"{repo} has no GGUF file that can be chosen for you; {_offer(repo, ggufs)}")


def _offer(repo: str, ggufs: list[str]) -> str:
    if not ggufs:
        return "it holds no GGUF file at all."
    shown = ", ".join(ggufs[:8]) + (", ..." if len(ggufs) > 8 else "")
    return f"name one of its files, as in hf:{repo}:{ggufs[0]} (there are: {shown})."


def _why_not(repo: str, files: Collection[str], weights: list[str]) -> str:
    if weights:
        missing = next(f for f in ("config.json", "tokenizer.json") if f not in files)
        return f"{repo} has safetensors but no {missing}, which is needed to use them."
    if any(f.endswith(_PICKLES) for f in files):
        return (
            f"{repo} has only PyTorch pickle files, which can run code and are never loaded; "
            "look for a safetensors or GGUF version of the model."
        )
    return f"{repo} holds no model: neither safetensors with config.json nor GGUF files."
