"""Conversion: every family and type, what is refused, and what a failure or a kill leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stem_runtime.config import ModelConfig
from stem_runtime.errors import FormatError, StemError, UnsupportedError, UsageError
from stem_runtime.formats.convert import convert
from stem_runtime.formats.gguf import read_gguf
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.quant import unpack
from stem_runtime.quant.ggml import to_float
from stem_runtime.tokenizer import Tokenizer

from .files import GgufTensor, encode, expected_values, family_of, tiny_gguf, tiny_hf
from .tiny import CHATML, tiny_config, tiny_tokenizer

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "minicpm")


def converted(source: Path, **options: Any) -> PackedModel:
    out = source.parent / f"packed-{len(list(source.parent.iterdir()))}"
    convert(source, out, name="tiny", origin={"file": source.name}, **options)
    return open_packed(out)


def same_config(a: ModelConfig, b: ModelConfig) -> bool:
    left, right = a.to_dict(), b.to_dict()
    return all(
        np.allclose(left[name], right[name], rtol=1e-5)
        if isinstance(left[name], (float, tuple))
        else left[name] == right[name]
        for name in left
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_gguf_of_every_family_keeps_its_values(tmp_path: Path, family: str, tied: bool) -> None:
    config = tiny_config(family, tied_head=tied)
    path = tmp_path / "m.gguf"
    tiny_gguf(
        path, config, kind="Q4_1", kinds={"token_embd.weight": "Q8_0", "ffn_up.weight": "Q4_0"}
    )
    model = converted(path)
    assert same_config(model.config, config)
    assert model.matrix("layers.0.up").kind == "int4"
    tensors = read_gguf(path).tensors
    for spec in family_of(config).tensors_gguf(config):
        raw = tensors[spec.source]
        source = to_float(raw.kind, raw.data).reshape(spec.shape)
        vector = len(spec.shape) == 1
        found = model.vector(spec.name) if vector else unpack(model.matrix(spec.name))
        assert np.array_equal(found, expected_values(spec, source, config)), spec.name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_folders_of_every_family_are_rounded_to_what_was_asked(
    tmp_path: Path, family: str, tied: bool
) -> None:
    config = tiny_config(
        family,
        tied_head=tied,
        d_model=72,
        ffn_dim=50,
        n_layers=3,
        **({"layer_windows": (8, 0, 8), "embed_scale": 72**0.5} if family == "gemma3" else {}),
    )
    weights = tiny_hf(tmp_path / "hf", config, dtype="F32", shards=2)
    exact = converted(tmp_path / "hf", quant="int8")
    small = converted(tmp_path / "hf")
    assert same_config(exact.config, config)
    assert (exact.info["quant"], small.info["quant"]) == ("int8", "int4")
    for spec in family_of(config).tensors_hf(config):
        expected = expected_values(spec, weights[spec.source], config)
        if len(spec.shape) == 1:
            assert np.array_equal(exact.vector(spec.name), expected)
            continue
        assert exact.matrix(spec.name).kind == "int8"
        wide = spec.name in ("embed", "head")
        assert small.matrix(spec.name).kind == ("int8" if wide else "int4")
        scale = np.sqrt((expected**2).mean())
        for model, bound in ((exact, 0.01), (small, 0.01 if wide else 0.09)):
            error = np.sqrt(((unpack(model.matrix(spec.name)) - expected) ** 2).mean())
            assert error < bound * scale


KINDS = {
    "F32": "int4", "F16": "int4", "BF16": "int4", "Q4_0": "int4", "Q4_1": "int4m",
    "Q5_0": "int8", "Q5_1": "int8", "Q8_0": "int8", "Q4_K": "int4m", "Q5_K": "int8",
    "Q6_K": "int8",
}  # fmt: skip
WIDE = tiny_config(d_model=256, n_layers=1, ffn_dim=256, head_dim=64)


@pytest.mark.parametrize("kind", KINDS)
def test_every_gguf_type_converts(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    tiny_gguf(path, WIDE, kind=kind)
    model = converted(path)
    floats = kind in ("F32", "F16", "BF16")
    kept = KINDS[kind] if kind not in ("Q5_1", "Q5_K", "Q6_K") else None
    assert model.info["quant"] == (KINDS[kind] if floats or kept is None else kind.lower())
    assert model.matrix("embed").kind == ("int8" if floats else KINDS[kind])
    raw = read_gguf(path).tensors["blk.0.ffn_up.weight"]
    expected = gguf.dequantize(raw.data, gguf.GGMLQuantizationType[kind])
    found = model.matrix("layers.0.up")
    assert found.kind == KINDS[kind]
    error = np.sqrt(((unpack(found) - expected) ** 2).mean() / (expected**2).mean())
    assert error <= (0.09 if floats else 0.006)


@pytest.mark.parametrize(
    ("kind", "quant", "body", "embed", "label"),
    [
        ("Q4_0", "int8", "int4", "int4", "q4_0"),
        ("Q4_1", "int4", "int4m", "int4m", "q4_1"),
        ("Q8_0", None, "int8", "int8", "q8_0"),
        ("Q8_0", "int8", "int8", "int8", "q8_0"),
        ("Q8_0", "int4", "int4", "int8", "int4"),
        ("Q6_K", "int4", "int4", "int8", "int4"),
        ("BF16", "int8", "int8", "int8", "int8"),
        ("F16", "int4", "int4", "int8", "int4"),
    ],
)
def test_what_quant_asks_of_each_source(
    tmp_path: Path, kind: str, quant: str | None, body: str, embed: str, label: str
) -> None:
    tiny_gguf(tmp_path / "m.gguf", WIDE, kind=kind)
    model = converted(tmp_path / "m.gguf", quant=quant)
    assert model.matrix("layers.0.q").kind == body
    assert model.matrix("embed").kind == embed
    assert model.info["quant"] == label


def test_blocks_of_rows_join_without_a_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(n_heads=6, kv_heads=3, ffn_dim=100)
    tiny_gguf(tmp_path / "m.gguf", config, kind="F16")
    whole = converted(tmp_path / "m.gguf")
    monkeypatch.setattr("stem_runtime.formats.convert._BLOCK", 32 * 64)
    blocks = converted(tmp_path / "m.gguf")
    assert whole.info["weights_sha256"] == blocks.info["weights_sha256"]


def test_rope_freqs_divide_the_frequencies(tmp_path: Path) -> None:
    config = tiny_config()
    factors = np.array([1, 1, 2, 4, 8, 8, 8, 8], np.float32)
    extra = {"rope_freqs.weight": GgufTensor((8,), "F32", factors.tobytes())}
    tiny_gguf(tmp_path / "m.gguf", config, extra=extra)
    expected = np.array(config.rope_inv_freq) / factors
    assert np.allclose(converted(tmp_path / "m.gguf").config.rope_inv_freq, expected, rtol=1e-6)


@pytest.mark.parametrize("source", ["gguf", "hf"])
def test_tokenizer_template_and_origin_come_along(tmp_path: Path, source: str) -> None:
    path = tmp_path / ("m.gguf" if source == "gguf" else "m")
    tiny_gguf(path, tiny_config()) if source == "gguf" else tiny_hf(path, tiny_config())
    calls: list[tuple[int, int]] = []
    model = converted(path, progress=lambda done, total: calls.append((done, total)))
    assert (model.folder / "chat_template.jinja").read_text() == CHATML
    assert model.info["tokenizer"] == {"bos": 1, "eos": [0, 2], "add_bos": False}
    tokenizer = Tokenizer.from_file(model.folder / "tokenizer.json", model.info["tokenizer"])
    assert tokenizer.decode(tokenizer.encode("Grüße 🎈")) == "Grüße 🎈"
    assert model.info["source"] == {"file": path.name}
    assert model.info["license"] == ("apache-2.0" if source == "gguf" else None)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1]
    names = {"model.safetensors", "stem.json", "tokenizer.json", "chat_template.jinja"}
    assert {file.name for file in model.folder.iterdir()} == names


def test_templates_of_hugging_face_folders(tmp_path: Path) -> None:
    tiny_hf(tmp_path / "m", tiny_config())
    settings_file = tmp_path / "m" / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    settings_file.write_text(json.dumps({"chat_template": named}))
    assert (converted(tmp_path / "m").folder / "chat_template.jinja").read_text() == "yes"
    settings_file.write_text("{}")
    assert not (converted(tmp_path / "m").folder / "chat_template.jinja").exists()
    (tmp_path / "m" / "chat_template.jinja").write_text("own file")
    assert (converted(tmp_path / "m").folder / "chat_template.jinja").read_text() == "own file"


def put(values: np.ndarray, kind: str = "F32") -> GgufTensor:
    return GgufTensor(values.shape, kind, encode(values, kind))


NAN_SCALE = GgufTensor((320, 64), "Q4_0", (b"\x00\x7e" + bytes(16)) * (320 * 2))
NAN_MINIMUM = GgufTensor((320, 64), "Q4_1", (b"\x00\x00\x00\xfc" + bytes(16)) * (320 * 2))


@pytest.mark.parametrize(
    ("extra", "error", "says"),
    [
        ({"blk.0.attn_q.bias": put(np.ones(64, np.float32))}, UnsupportedError, "attn_q.bias"),
        ({"blk.0.ffn_up.weight": put(np.ones((95, 64), np.float32))}, FormatError, "shape"),
        ({"output_norm.weight": put(np.ones((64, 1), np.float32))}, FormatError, "shape"),
        ({"output_norm.weight": put(np.full(64, np.nan, np.float32))}, FormatError, "finite"),
        ({"token_embd.weight": put(np.full((320, 64), np.inf, np.float32))}, FormatError, "finite"),
        ({"token_embd.weight": NAN_SCALE}, FormatError, "scale is not a finite"),
        ({"token_embd.weight": NAN_MINIMUM}, FormatError, "scale is not a finite"),
        ({"rope_freqs.weight": put(np.zeros(8, np.float32))}, FormatError, "rope_freqs"),
        ({"rope_freqs.weight": put(np.ones(32, np.float32), "Q8_0")}, FormatError, "rope_freqs"),
    ],
)
def test_tensors_that_make_no_sense_are_refused(
    tmp_path: Path, extra: dict[str, GgufTensor], error: type[StemError], says: str
) -> None:
    path = tmp_path / "m.gguf"
    tiny_gguf(path, tiny_config(), extra=extra)
    with pytest.raises(error, match=says) as caught:
        convert(path, tmp_path / "out", name="x", origin={})
    assert str(path) in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_missing_tensors_are_refused(tmp_path: Path) -> None:
    tiny_hf(tmp_path / "m", tiny_config(tied_head=True))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"lm_head\.weight' is missing"):
        convert(tmp_path / "m", tmp_path / "out", name="x", origin={})


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    tiny_hf(tmp_path / "m", tiny_config(vocab_size=320))
    spec = tiny_tokenizer(320)
    path = tmp_path / "m" / "tokenizer.json"
    padding = {**spec["added_tokens"][0], "id": 320, "content": "<pad>"}
    path.write_text(json.dumps({**spec, "added_tokens": [*spec["added_tokens"], padding]}))
    assert converted(tmp_path / "m").config.vocab_size == 320
    path.write_text(json.dumps(tiny_tokenizer(321)))
    with pytest.raises(FormatError, match="ids up to 320 and the weights are for 320 tokens"):
        convert(tmp_path / "m", tmp_path / "out", name="x", origin={})
    assert not (tmp_path / "out").exists()


def test_arguments_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "m.gguf", tiny_config())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "model.safetensors").write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        convert(tmp_path / "m.gguf", tmp_path / "taken", name="x", origin={})
    assert (tmp_path / "taken" / "model.safetensors").read_text() == "precious"
    with pytest.raises(UsageError, match="int4 or int8"):
        convert(tmp_path / "m.gguf", tmp_path / "out", name="x", origin={}, quant="int3")
    with pytest.raises(UsageError, match="cannot be converted"):
        convert(tmp_path / "m.bin", tmp_path / "out", name="x", origin={})
    with pytest.raises(FormatError, match="cannot be read"):
        convert(tmp_path / "none.gguf", tmp_path / "out", name="x", origin={})


class Interruption(BaseException):
    pass


def test_an_interruption_removes_what_was_begun(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise Interruption

    tiny_gguf(tmp_path / "m.gguf", tiny_config())
    with pytest.raises(Interruption):
        converted(tmp_path / "m.gguf", progress=interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


KILLED = """
import os, signal, sys
from pathlib import Path
from stem_runtime.formats import convert, packed

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL) if hasattr(signal, "SIGKILL") else os._exit(9)

moment, source, out = sys.argv[1:]
if moment == "renaming":
    real = Path.replace
    Path.replace = lambda path, to: die() if path.name.startswith("stem") else real(path, to)
convert.convert(
    Path(source), Path(out), name="x", origin={},
    progress=lambda done, total: done > total // 2 and moment == "writing" and die(),
)
"""


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_a_kill_leaves_nothing_that_opens_and_nothing_in_the_way(
    tmp_path: Path, moment: str
) -> None:
    source, out = tmp_path / "m.gguf", tmp_path / "out"
    tiny_gguf(source, tiny_config())
    command = [sys.executable, "-c", KILLED, moment, str(source), str(out)]
    assert abs(subprocess.run(command, check=False).returncode) == 9
    assert out.exists()
    with pytest.raises(FormatError):
        open_packed(out)
    convert(source, out, name="x", origin={})
    assert open_packed(out).info["quant"] == "q4_0"
    assert not list(out.glob("*.partial"))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, 11_000), st.integers(0, 255)), max_size=3),
    st.none() | st.integers(0, 30_000),
)
def test_mutated_files_convert_or_raise_our_errors(
    tmp_path: Path, changes: list[tuple[int, int]], cut: int | None
) -> None:
    whole = tmp_path / "whole"
    if not whole.exists():
        tiny_gguf(whole, tiny_config(n_layers=1, d_model=32, ffn_dim=32, vocab_size=270))
    data = bytearray(whole.read_bytes())
    for place, byte in changes:
        data[place] = byte
    path, out = tmp_path / "m.gguf", tmp_path / "out"
    path.unlink(missing_ok=True)
    path.write_bytes(data[:cut])
    try:
        convert(path, out, name="x", origin={})
    except StemError as error:
        assert str(path) in str(error)
        assert not out.exists()
    else:
        open_packed(out)
        for file in out.iterdir():
            file.unlink()
        out.rmdir()


@pytest.mark.real_model
def test_the_default_model_keeps_its_bits(real_model: Path, real_model_gguf: Path) -> None:
    model = open_packed(real_model)
    assert (model.info["quant"], model.info["license"]) == ("q4_1", "apache-2.0")
    assert model.parameters == 134_515_008
    assert model.config.tied_head
    config = model.config
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(real_model_gguf).tensors}
    for spec in family_of(config).tensors_gguf(config):
        if spec.name == "embed" or spec.name.startswith(("layers.0.", "layers.29.", "norm")):
            raw = tensors[spec.source]
            source = gguf.dequantize(raw.data, raw.tensor_type)
            vector = len(spec.shape) == 1
            found = model.vector(spec.name) if vector else unpack(model.matrix(spec.name))
            assert np.array_equal(found, expected_values(spec, source, config)), spec.name
