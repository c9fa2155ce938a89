"""The model families this version can run, found by what a model file calls itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FormatError
from . import gemma3, llama, minicpm, qwen
from .base import Family, TensorSpec, check_tensors
from .fields import Fields

__all__ = [
    "FAMILIES",
    "Family",
    "TensorSpec",
    "check_tensors",
    "for_gguf",
    "for_hf",
]

FAMILIES = (llama.FAMILY, qwen.QWEN2, qwen.QWEN3, gemma3.FAMILY, minicpm.FAMILY)


def for_hf(cfg: Mapping[str, Any], where: str) -> Family:
    """The family of a config.json object, by `model_type` or, failing that, `architectures`.

    Raises FormatError where the file names neither, UnsupportedError for a family we do not have.
    """
    config = Fields(cfg, where)
    if "model_type" in config:
        types = {name: family for family in FAMILIES for name in family.hf_types}
        model_type = config.text("model_type")
        if model_type not in types:
            config.refuse("model_type", ", ".join(types))
        return types[model_type]
    named = config.raw("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise FormatError(
            f"{where}: neither model_type nor architectures says what the model is; "
            "get the file again from its source."
        )
    classes = {name: family for family in FAMILIES for name in family.hf_architectures}
    if named[0] not in classes:
        config.refuse("architectures", ", ".join(classes))
    return classes[named[0]]


def for_gguf(meta: Mapping[str, Any], where: str) -> Family:
    """The family of a GGUF file, by `general.architecture`. Raises as `for_hf`."""
    fields = Fields(meta, where)
    archs = {name: family for family in FAMILIES for name in family.gguf_archs}
    arch = fields.text("general.architecture")
    if arch not in archs:
        fields.refuse("general.architecture", ", ".join(archs))
    return archs[arch]
