"""Tokenizers built from GGUF metadata against the originals, and text streamed token by token."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers import (
    Tokenizer as Backend,
)

from stem_runtime.errors import FormatError, StemError, UnsupportedError, UsageError
from stem_runtime.formats.gguf import read_gguf
from stem_runtime.pretokenizers import PRE_TOKENIZERS
from stem_runtime.tokenizer import Tokenizer
from stem_runtime.tokenizer_gguf import TokenType

CORPUS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? It's 1234567 o'clock; we'll see.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n\n\n\tprint(area(10))  # 100%\r\n",
    "Größe, naïve café, Ελληνικά, Привет мир, 你好,世界! こんにちは 한국어 नमस्ते ไทย عربى",
    "🦙🚀👩‍👩‍👧 aaaa aaa aa a ababab abab xyxyx    spaces     and\ttabs … “quoted” — dashes ½ Ⅷ",
] * 3
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ORIGINALS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "falcon": [
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ],
    "qwen2": [
        pre_tokenizers.Split(
            Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}

# what llama.cpp (llama-cpp-python 0.3.36) makes of these texts with SmolLM2's vocabulary
SMOLLM2 = {
    "Hello, world! It's 2024.": [19556, 28, 905, 17, 657, 506, 216, 34, 32, 34, 36, 30],
    "  two spaces\n\n\tand a tab\r\n": [216, 827, 5600, 1116, 197, 397, 253, 10147, 2738],
    "def f(x):\n    return x**2  # ½ Ⅷ": [
        1604,
        275,
        24,
        104,
        727,
        472,
        1003,
        1792,
        828,
        34,
        216,
        907,
        216,
        16738,
        216,
        173,
        223,
        117,
    ],
    "Größe naïve café é": [27302, 7466, 34878, 85, 15486, 46494, 37366, 297, 151, 219],
    "你好\uff0c世界。こんにちは 한국어": [
        18645,
        250,
        48392,
        138,
        12831,
        7906,
        240,
        178,
        239,
        230,
        19076,
        7365,
        237,
        10391,
        237,
        41152,
        7365,
        111,
        7365,
        124,
        216,
        33085,
        246,
        181,
        130,
        251,
        183,
        240,
        129,
    ],
    "🦙🚀👩\u200d👩\u200d👧 नमस्ते ไทย عربى": [
        10813,
        116,
        243,
        10813,
        244,
        218,
        10813,
        235,
        119,
        321,
        231,
        10813,
        235,
        119,
        321,
        231,
        10813,
        235,
        117,
        12335,
        118,
        35090,
        38770,
        16525,
        26293,
        30581,
        216,
        31933,
        222,
        10283,
        241,
        10283,
        112,
        45704,
        20602,
        31462,
        164,
        227,
    ],
    "1234567890 3.14 ٣٤": [
        33,
        34,
        35,
        36,
        37,
        38,
        39,
        40,
        41,
        32,
        216,
        35,
        30,
        33,
        36,
        216,
        164,
        113,
        164,
        114,
    ],
    "<|im_end|> is not a token here": [44, 108, 306, 79, 486, 108, 46, 314, 441, 253, 9624, 1535],
    "": [],
    " ": [216],
}


@cache
def original(name: str) -> Backend:
    """A small byte-level tokenizer, cut as the published ones called `name` are."""
    backend = Backend(models.BPE())
    if name == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(ORIGINALS[name])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    return backend


def metadata(backend: Backend, name: str) -> dict[str, Any]:
    """GGUF metadata of a byte-level tokenizer."""
    spec = json.loads(backend.to_str())
    tokens = [backend.id_to_token(i) for i in range(backend.get_vocab_size())]
    kinds = dict.fromkeys(CONTROL, TokenType.CONTROL) | {"<think>": TokenType.USER_DEFINED}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kinds.get(text, TokenType.NORMAL)) for text in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in spec["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


@cache
def byte_level(name: str = "smollm") -> Tokenizer:
    return Tokenizer.from_gguf(metadata(original(name), name))


@cache
def spm_metadata(prefix: bool = True) -> dict[str, Any]:
    """GGUF metadata of a small SentencePiece-style vocabulary: scores, no merges."""
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    words = [" " + word for line in CORPUS for word in line.split(" ")]
    backend.train_from_iterator(words, trainer)
    learned = [backend.id_to_token(i) for i in range(backend.get_vocab_size())]
    learned = [text for text in learned if text != "★"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    types = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 2, *[TokenType.BYTE] * 256]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*types, *[TokenType.NORMAL] * len(learned)],
        "tokenizer.ggml.scores": [*[0.0] * 259, *(-float(i) for i in range(len(learned)))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


@cache
def spm(prefix: bool = True) -> Tokenizer:
    return Tokenizer.from_gguf(spm_metadata(prefix))


def sentencepiece(meta: dict[str, Any], text: str) -> list[int]:
    """The definition: merge the pair whose piece scores best, the leftmost first, until none is."""
    types, scores = meta["tokenizer.ggml.token_type"], meta["tokenizer.ggml.scores"]
    ids = {text: i for i, text in enumerate(meta["tokenizer.ggml.tokens"])}
    normal = {text: i for text, i in ids.items() if types[i] == TokenType.NORMAL}
    if meta["tokenizer.ggml.add_space_prefix"] and text:
        text = " " + text
    symbols = list(text.replace(" ", "▁"))
    while True:
        pairs = [
            (-scores[normal[a + b]], place)
            for place, (a, b) in enumerate(pairwise(symbols))
            if a + b in normal
        ]
        if not pairs:
            break
        place = min(pairs)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    found: list[int] = []
    for symbol in symbols:
        found += (
            [normal[symbol]]
            if symbol in normal
            else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        )
    return found


def unicode_text(*more: str) -> st.SearchStrategy[str]:
    """Any text, and text made of what tokenizers treat specially."""
    pieces = st.sampled_from(
        [
            *"aby', .!\n\r\t 019é½٣",
            "  ",
            "\n\n",
            "it's",
            "I'LL",
            "abab",
            "xyx",
            "1234",
            "的",
            "e\u0301",
            "🦙",
            "👩‍👩‍👧",
            "\u3000",
            "\u00a0",
            "\u0000",
            "The quick",
            " fox",
            "<|",
            "|>",
            "</s>",
            "<unk>",
            *more,
        ]
    )
    usual = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    return usual | st.lists(pieces, max_size=20).map("".join)


anything = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("name", sorted(ORIGINALS))
@anything
@given(text=unicode_text("<think>", *CONTROL), special=st.booleans())
def test_byte_level_is_equal_to_the_original(name: str, text: str, special: bool) -> None:
    backend = original(name)
    backend.encode_special_tokens = not special
    assert byte_level(name).encode(text, special=special) == backend.encode(text).ids


@pytest.mark.parametrize("prefix", [True, False])
@anything
@given(text=unicode_text())
def test_scores_give_what_sentencepiece_gives(prefix: bool, text: str) -> None:
    assert spm(prefix).encode(text) == sentencepiece(spm_metadata(prefix), text)


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_variant_builds_and_loses_nothing(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(metadata(original("gpt-2"), name))
    for text in CORPUS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@anything
@given(unicode_text(*CONTROL))
def test_text_survives_and_never_becomes_a_control_token(text: str) -> None:
    for tokenizer in (byte_level(), spm(True), spm(False)):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.control.values())
        if "▁" not in text:
            assert tokenizer.decode(ids) == text


def test_control_tokens_come_when_asked_for_and_show_nothing() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("<|im_start|>a<|im_end|>", special=True)
    assert ids == [1, *tokenizer.encode("a"), 2]
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.token_text(1) == "<|im_start|>"
    assert tokenizer.token_bytes(1) == b""
    think = tokenizer.encode("<think>")
    assert len(think) == 1
    assert tokenizer.decode(think) == "<think>"


@pytest.mark.parametrize("make", [byte_level, spm, lambda: spm(False)])
@anything
@given(data=st.data(), continues=st.booleans())
def test_streamed_text_is_the_decoded_text(make: Any, data: st.DataObject, continues: bool) -> None:
    tokenizer = make()
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    stream = tokenizer.stream(continues=continues)
    pieces = [stream.push(token) for token in ids]
    text = "".join(pieces) + stream.flush()
    assert text == tokenizer.decode(ids, continues=continues)
    raw = b"".join(map(tokenizer.token_bytes, ids))
    if tokenizer is spm() and not continues:
        raw = raw.removeprefix(b" ")
    assert text == raw.decode("utf-8", "replace")


def test_no_half_character_is_shown() -> None:
    for tokenizer in (byte_level(), spm()):
        stream = tokenizer.stream()
        ids = tokenizer.encode("a🧿b")
        shown = [stream.push(token) for token in ids]
        assert "\ufffd" not in "".join(shown)
        assert "🧿" in shown
        broken = tokenizer.stream()
        start = "".join(broken.push(token) for token in ids[:-3])
        assert "\ufffd" not in start
        assert broken.flush() == "\ufffd"


def test_a_continuation_keeps_its_leading_space() -> None:
    ids = spm().encode("fox")
    assert spm().decode(ids) == "fox"
    assert spm().decode(ids, continues=True) == " fox"


def test_lone_surrogates_and_numbers_that_are_no_ids() -> None:
    for tokenizer in (byte_level(), spm()):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
        assert tokenizer.decode([tokenizer.vocab_size + 1]) == "\ufffd"
        with pytest.raises(UsageError, match="-1"):
            tokenizer.decode([-1])


@pytest.mark.parametrize("make", [byte_level, spm])
def test_a_saved_tokenizer_loads_equal(make: Any, tmp_path: Path) -> None:
    tokenizer = make()
    tokenizer.save(tmp_path)
    loaded = Tokenizer.from_file(tmp_path / "tokenizer.json", tokenizer.info)
    assert loaded.info == tokenizer.info
    assert loaded.vocab_size == tokenizer.vocab_size
    for text in [*CORPUS, "<think><|im_end|></s>"]:
        for special in (False, True):
            assert loaded.encode(text, special=special) == tokenizer.encode(text, special=special)
    ids = range(tokenizer.vocab_size)
    assert list(map(loaded.token_bytes, ids)) == list(map(tokenizer.token_bytes, ids))


def test_every_end_token_ends() -> None:
    meta = metadata(original("smollm"), "smollm")
    assert byte_level().eos == {0, 2}  # <|endoftext|> and <|im_end|>
    assert Tokenizer.from_gguf({**meta, "tokenizer.ggml.eot_token_id": 9}).eos == {0, 2, 9}
    assert spm().eos == {2}
    marked = list(meta["tokenizer.ggml.token_type"])
    marked[2] = TokenType.USER_DEFINED  # as some converters have it
    repaired = Tokenizer.from_gguf({**meta, "tokenizer.ggml.token_type": marked})
    assert repaired.eos == {0, 2}
    assert 2 not in repaired.encode("<|im_end|>")


def test_begin_token_by_the_file_or_by_habit() -> None:
    meta = metadata(original("gpt-2"), "gpt-2")
    assert not Tokenizer.from_gguf(meta).add_bos
    assert Tokenizer.from_gguf({**meta, "tokenizer.ggml.pre": "llama-bpe"}).add_bos
    assert Tokenizer.from_gguf({**meta, "tokenizer.ggml.add_bos_token": True}).add_bos
    assert spm().add_bos
    assert not Tokenizer.from_gguf(
        {**spm_metadata(), "tokenizer.ggml.add_bos_token": False}
    ).add_bos


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    backend = Backend.from_str(original("smollm").to_str())
    backend.enable_truncation(4)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7, 99999, "x"]}')
    (tmp_path / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": 2}')
    tokenizer = Tokenizer.from_hf(tmp_path)
    assert tokenizer.info == {"bos": 0, "eos": [0, 2, 7], "add_bos": False}
    assert len(tokenizer.encode("not cut off at four tokens")) > 4
    config = {
        "bos_token": {"content": "<|im_start|>"},
        "eos_token": "<think>",
        "add_bos_token": True,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_hf(tmp_path)
    think = backend.token_to_id("<think>")
    assert tokenizer.info == {"bos": 1, "eos": [0, 2, 7, think], "add_bos": True}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FormatError, match=r"config\.json is not valid JSON"):
        Tokenizer.from_hf(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match="missing"):
        Tokenizer.from_hf(tmp_path)


def test_control_tokens_are_what_is_spelled_as_they_are(tmp_path: Path) -> None:
    backend = Backend.from_str(byte_level()._backend.to_str())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.Lowercase()])
    spec = json.loads(backend.to_str())
    for token in spec["added_tokens"]:
        token |= {"normalized": True, "special": token["content"] != "<|im_end|>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = Tokenizer.from_hf(tmp_path)
    end = tokenizer.control["<|im_end|>"]
    assert tokenizer.eos >= {end}
    assert end in tokenizer.encode("so<|im_end|>", special=True)
    assert end not in tokenizer.encode("so<|im_end|>")
    assert end not in tokenizer.encode("so<|IM_END|>", special=True)


@pytest.mark.parametrize(
    ("part", "step"),
    [
        ("normalizer", ("a", "aa")),
        ("normalizer", (Regex("a|$"), "a")),
        ("decoder", ("a", "aa")),
    ],
)
def test_replacements_that_make_too_much_of_a_text(
    tmp_path: Path, part: str, step: tuple[str | Regex, str]
) -> None:
    """Six that double it are taken, a seventh is not."""
    backend = Backend.from_str(original("smollm").to_str())
    parts = {"normalizer": normalizers, "decoder": decoders}[part]
    for count, taken in ((6, True), (7, False)):
        steps = [parts.Replace(*step)] * count
        setattr(backend, part, parts.Sequence(steps))
        backend.save(str(tmp_path / "tokenizer.json"))
        if taken:
            Tokenizer.from_hf(tmp_path)
        else:
            with pytest.raises(FormatError, match=f"its {part} makes texts 128 times as long"):
                Tokenizer.from_hf(tmp_path)


def test_the_post_processor_tells_whether_text_begins_with_a_token(tmp_path: Path) -> None:
    spec = json.loads(original("smollm").to_str())
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "config.json").write_text('{"bos_token_id": 1}')
    tokenizer = Tokenizer.from_hf(tmp_path)
    assert tokenizer.add_bos
    assert 1 not in tokenizer.encode("a")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "unigram"}, UnsupportedError, "'unigram'"),
        ({"model": None}, FormatError, "tokenizer.ggml.model"),
        ({"pre": "mystery"}, UnsupportedError, "'mystery'.*smollm"),
        ({"tokens": []}, FormatError, "no tokens"),
        ({"tokens": ["a", "b", "a"]}, FormatError, "'a' twice, at 0 and 2"),
        ({"tokens": ["a", 3]}, FormatError, r"tokens\[1\]"),
        ({"tokens": 5}, FormatError, "no tokens"),
        ({"token_type": [1, 2]}, FormatError, "token_type"),
        ({"token_type": 5}, FormatError, "token_type"),
        ({"token_type": ["a"] * 601}, FormatError, "token_type"),
        ({"token_type": [float("nan")] * 601}, FormatError, "token_type"),
        ({"merges": ["a"]}, FormatError, r"merges\[0\]"),
        ({"merges": ["a nothing"]}, FormatError, r"merges\[0\]"),
        ({"merges": None}, FormatError, "merges"),
        ({"merges": 5}, FormatError, "merges"),
        ({"merges": [1, 2]}, FormatError, "merges"),
        ({"eos_token_id": 10**6}, FormatError, "eos_token_id is 1000000"),
        ({"eos_token_id": "abc"}, FormatError, "eos_token_id is 'abc'"),
        ({"eos_token_id": [1]}, FormatError, r"eos_token_id is \[1\]"),
        ({"eos_token_id": float("inf")}, FormatError, "eos_token_id is inf"),
        ({"bos_token_id": -1}, FormatError, "bos_token_id is -1"),
        ({"model": "llama"}, FormatError, "scores"),
        ({"model": "llama", "scores": [1.0]}, FormatError, "scores"),
        ({"model": "llama", "scores": [float("nan")] * 601}, FormatError, "scores"),
        ({"model": "llama", "scores": ["x"] * 601}, FormatError, "scores"),
    ],
)
def test_metadata_that_cannot_be_used(
    change: dict[str, Any], error: type[StemError], message: str
) -> None:
    meta = metadata(original("smollm"), "smollm")
    meta |= {f"tokenizer.ggml.{name}": value for name, value in change.items()}
    with pytest.raises(error, match=message):
        Tokenizer.from_gguf(meta)


def test_a_tokenizer_that_fails_or_panics_on_a_text() -> None:
    def made(pattern: str) -> Tokenizer:
        backend = Backend(models.WordLevel({"a": 0}, unk_token="[none]"))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.decoder = byte_level()._backend.decoder
        return Tokenizer(backend, bos=None, eos=[], add_bos=False)

    for pattern, text in (("b", "b"), ("(a+)+$", "a" * 40 + "b")):
        with pytest.raises(FormatError, match=r"tokenizer.json cannot tokenize this text"):
            made(pattern).encode(text)


def test_ids_with_a_hole_before_the_end_token(tmp_path: Path) -> None:
    spec = json.loads(byte_level()._backend.to_str())
    spec["model"]["vocab"]["[end]"] = 5000
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    info = {"bos": None, "eos": [5000], "add_bos": False}
    assert Tokenizer.from_file(tmp_path / "tokenizer.json", info).eos == {5000}
    with pytest.raises(FormatError, match="5001"):
        Tokenizer.from_file(tmp_path / "tokenizer.json", {**info, "eos": [5001]})


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_a_format_error(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.json"
    text = original("smollm").to_str()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    path.write_text(text[:start] + data.draw(st.text(max_size=5)) + text[end:])
    try:
        tokenizer = Tokenizer.from_file(path, {"bos": None, "eos": [], "add_bos": False})
    except (FormatError, UnsupportedError) as error:
        assert str(error)
    else:
        tokenizer.encode("still works")


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"eos": [99999], "add_bos": False},
        {"eos": [], "add_bos": 1},
        {"eos": [True], "add_bos": True},
    ],
)
def test_special_ids_are_checked(info: dict[str, Any], tmp_path: Path) -> None:
    byte_level().save(tmp_path)
    with pytest.raises(FormatError, match="special token"):
        Tokenizer.from_file(tmp_path / "tokenizer.json", info)


def test_a_decoder_without_rules_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(Backend(models.BPE({"a": 0}, [])).to_str())
    with pytest.raises(UnsupportedError, match="no rule"):
        Tokenizer.from_file(path, {"bos": None, "eos": [], "add_bos": False})


def test_parts_join_as_if_encoded_at_once(tmp_path: Path) -> None:
    spec = json.loads(original("smollm").to_str())
    spec["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    spec["decoder"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    spec["model"]["vocab"]["▁"] = 601
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    first = Tokenizer.from_hf(tmp_path)
    for tokenizer in (first, byte_level(), spm()):
        token, text = next((i, text) for text, i in tokenizer.control.items())
        whole = tokenizer.encode(f"The fox{text}fox{text}", special=True)
        assert tokenizer.encode_parts(["The fox", token, "fox", token]) == whole


@pytest.mark.real_model
def test_the_real_vocabulary_is_equal_to_llama_cpp(real_model_gguf: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(read_gguf(real_model_gguf).metadata)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.from_file(tmp_path / "tokenizer.json", tokenizer.info)
    assert loaded.info == {"bos": 1, "eos": [0, 2], "add_bos": False}
    for text, ids in SMOLLM2.items():
        assert loaded.encode(text) == ids
        assert loaded.decode(ids) == text
