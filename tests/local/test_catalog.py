"""The catalogue and the specs that name models."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stem_local import catalog, spec, store
from stem_local.errors import NotFoundError, SourceError
from stem_local.repo_files import GGUF_PREFERENCE, choose, quant_of
from stem_runtime.config import ACTIVATIONS
from stem_runtime.errors import UsageError

NAMES = (
    *("smollm2-135m-instruct", "smollm2-360m-instruct", "smollm2-1.7b-instruct"),
    *("qwen2.5-0.5b-instruct", "qwen2.5-1.5b-instruct", "qwen3-0.6b", "qwen3-1.7b"),
    *("llama-3.2-1b-instruct", "llama-3.2-3b-instruct", "gemma-3-270m-it", "gemma-3-1b-it"),
    *("MiniCPM-S-1B-sft", "prosparse-llama-2-7b", "SparseLM-0.5B", "SparseLM-1B", "SparseLM-2B"),
    *("TurboSparse-Mistral-Instruct", "ReluLLaMA-7B"),
)
FOLDER = ["config.json", "tokenizer.json"]


@pytest.mark.parametrize("name", NAMES)
def test_known_models_are_found_in_any_case(name: str) -> None:
    entry = catalog.find(name)
    assert entry is not None
    assert catalog.find(entry.name.upper()) == entry
    assert spec.parse(name).name == entry.name


def test_entries_are_complete_and_distinct() -> None:
    entries = catalog.entries().values()
    names = [name for entry in entries for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))
    for entry in entries:
        assert store.check_name(entry.name) == entry.name
        assert entry.activation in ACTIVATIONS
        assert entry.license
        assert 0.5 < entry.download / entry.parameters < 4
        assert (entry.sparsity is None) == (entry.sparsity_source is None)
        sparse = entry.activation in ("relu", "fatrelu", "relu2", "drelu")
        assert sparse == (entry.sparsity is not None)


def test_only_the_default_model_has_a_second_source() -> None:
    carried = [entry.name for entry in catalog.entries().values() if entry.wheel]
    assert carried == [catalog.DEFAULT_MODEL]


def test_suggestions_are_near() -> None:
    assert "smollm2-135m" in catalog.suggest("smolm2-135m")
    assert catalog.suggest("zzzzzz") == []


def test_hub_specs() -> None:
    plain = spec.parse("hf:Owner/Some.Model-1B")
    assert (plain.repo, plain.revision, plain.file) == ("Owner/Some.Model-1B", None, None)
    assert plain.name == "some.model-1b"
    whole = spec.parse("hf:o/r@refs/pr/1:sub/M.Q4_0.gguf")
    assert (whole.repo, whole.revision, whole.file) == ("o/r", "refs/pr/1", "sub/M.Q4_0.gguf")
    assert whole.name == "m.q4_0"


@pytest.mark.parametrize(
    "text",
    [
        *("hf:", "hf:owner", "hf:a/b/c", "hf:a/b:model.bin", "hf:a/b@", "hf:a/../b"),
        *("hf:a/b:../../x.gguf", "owner/repo", "no-such-model", "./nowhere", "missing.gguf", ""),
    ],
)
def test_unusable_specs_are_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        spec.parse(text)


def test_owner_and_repo_alone_hint_at_the_hub() -> None:
    with pytest.raises(UsageError, match="hf:owner/repo"):
        spec.parse("owner/repo")


def test_paths(tmp_path: Path) -> None:
    gguf = tmp_path / "My Model.Q4_0.gguf"
    gguf.touch()
    assert spec.parse(str(gguf)).name == "my-model.q4_0"
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"not a \.gguf"):
        spec.parse(str(tmp_path / "notes.txt"))
    (tmp_path / "stem.json").touch()
    with pytest.raises(UsageError, match="packed already"):
        spec.parse(str(tmp_path))


@given(st.text())
def test_derived_names_can_be_stored(text: str) -> None:
    name = spec.model_name(text)
    if name:
        try:
            assert store.check_name(name) == name
        except UsageError:
            assert name.split(".")[0][:3] in ("con", "prn", "aux", "nul", "com", "lpt")


def test_safetensors_are_taken_before_gguf() -> None:
    files = [*FOLDER, "model.safetensors", "m.Q4_0.gguf", "pytorch_model.bin", "README.md"]
    assert choose("o/r", files, None) == [*FOLDER, "model.safetensors"]


def test_shards_must_be_whole() -> None:
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = "model.safetensors.index.json"
    chosen = choose("o/r", [*FOLDER, *shards, index, "generation_config.json"], None)
    assert chosen == [*FOLDER, "generation_config.json", index, *shards]
    with pytest.raises(SourceError):
        choose("o/r", [*FOLDER, *shards[:2], index], None)


@given(st.sets(st.sampled_from([*GGUF_PREFERENCE, "Q2_K", "IQ3_XS"]), min_size=2))
def test_the_best_gguf_is_chosen(quants: set[str]) -> None:
    files = [f"Model-{quant}.gguf" for quant in quants] + ["mmproj-Model-F16.gguf"]
    known = [quant for quant in GGUF_PREFERENCE if quant in quants]
    if known:
        assert choose("o/r", files, None) == [f"Model-{known[0]}.gguf"]
    else:
        with pytest.raises(SourceError, match="hf:o/r:Model-"):
            choose("o/r", files, None)


def test_the_only_gguf_needs_no_known_name() -> None:
    assert choose("o/r", ["model.gguf"], None) == ["model.gguf"]


@pytest.mark.parametrize(
    ("file", "quant"),
    [
        ("qwen2.5-0.5b-instruct-q4_0.gguf", "Q4_0"),
        ("SmolLM2-135M-Instruct.Q4_K_M.gguf", "Q4_K_M"),
        ("q8_0/Model-Q8_0.gguf", "Q8_0"),
        ("model-f16.gguf", "F16"),
        ("model-bf16.gguf", "BF16"),
        ("Llama-IQ4_XS.gguf", "IQ4_XS"),
        ("model.gguf", None),
    ],
)
def test_quants_are_read_from_names(file: str, quant: str | None) -> None:
    assert quant_of(file) == quant


def test_a_missing_file_is_named_with_what_there_is() -> None:
    with pytest.raises(NotFoundError, match=r"no file b\.gguf.*hf:o/r:a\.gguf"):
        choose("o/r", ["a.gguf"], "b.gguf")


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (["pytorch_model.bin", *FOLDER], "pickle"),
        (["model.safetensors", "config.json"], "tokenizer.json"),
        (["README.md"], "no model"),
    ],
)
def test_repositories_without_a_usable_model_say_why(files: list[str], why: str) -> None:
    with pytest.raises(SourceError, match=why):
        choose("o/r", files, None)
