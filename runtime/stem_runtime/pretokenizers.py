"""How byte-level BPE models cut text into words before merging, by GGUF's `tokenizer.ggml.pre`.

Each variant is the list of cuts that the models' published tokenizer.json files make, in order:
every match of a pattern becomes a word of its own, and so does what lies between matches.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

from .errors import UnsupportedError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's encoder
)
_DIGIT = r"\p{N}"
_ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_HAN = "\u4e00-\u9fa5"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# The letters of DeepSeek LLM's second cut: alphabets with case, listed in its tokenizer.json.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)


def _tiktoken(digits: str, newlines: str = r"[\r\n]*") -> str:
    # the pattern of cl100k and its descendants, which differ in how digits group
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+"
    return rf"{_CONTRACTIONS}|{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+{newlines}|{_BLANKS}"


def _cased_words(digits: str, contractions: str) -> str:
    # the pattern of o200k: words also end where lower case turns into upper
    start = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{start}{_UPPER}*{_LOWER}+{contractions}|{start}{_UPPER}+{_LOWER}*{contractions}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
    )


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """`cuts` in order. `whole_words`: a word that is a token is taken without merging.

    `nfc`: text is first composed (Unicode NFC). `add_bos`: when the file does not say.
    """

    cuts: tuple[str, ...]
    whole_words: bool = False
    nfc: bool = False
    add_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        steps: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(cut), "isolated") for cut in self.cuts
        ]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        return pre_tokenizers.Sequence(steps)


_SINGLE_DIGITS = PreTokenizer((_DIGIT, _GPT2))
_PLAIN_GPT2 = PreTokenizer((_GPT2,))
_LLAMA3 = PreTokenizer((_tiktoken(r"\p{N}{1,3}"),), whole_words=True, add_bos=True)
_CL100K = PreTokenizer((_tiktoken(r"\p{N}{1,3}"),))
_QWEN2 = PreTokenizer((_tiktoken(_DIGIT),), nfc=True)
_QWEN2_RAW = PreTokenizer((_tiktoken(_DIGIT),))
_QWEN35 = PreTokenizer(
    (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|{_DIGIT}"
        rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}",
    )
)
_FALCON = PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))
_DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_DEEPSEEK_LLM = PreTokenizer(
    (
        r"[\r\n]",
        rf"\s?[{_CASED}]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        f"[{_HAN}\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}+",
    )
)
_DEEPSEEK_CODER = PreTokenizer(
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"[{_HAN}\u0800-\u4e00\uac00-\ud7ff]+", _DIGIT)
)
_DEEPSEEK_V3 = PreTokenizer(
    (
        r"\p{N}{1,3}",
        f"[{_HAN}\u3040-\u309f\u30a0-\u30ff]+",
        rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}",
    )
)
_TEKKEN = PreTokenizer((_cased_words(_DIGIT, ""),), whole_words=True, add_bos=True)
_O200K = PreTokenizer((_cased_words(r"\p{N}{1,3}", _CONTRACTIONS + "?"),))
_GLM4 = PreTokenizer((_tiktoken(r"\p{N}{1,3}"),), whole_words=True)
_MINICPM5 = PreTokenizer((r"\p{N}{1,3}", _tiktoken(r"\p{N}+")), whole_words=True)
_BLOOM = PreTokenizer((" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+",))

_VARIANTS: dict[PreTokenizer, str] = {
    _DEFAULT: "default",
    _PLAIN_GPT2: "gpt-2 phi-2 mpt olmo jais exaone4 trillion granite-docling gigachat mellum",
    _SINGLE_DIGITS: "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    _LLAMA3: "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2",
    _CL100K: "dbrx smaug-bpe chatglm-bpe",
    _QWEN2: "qwen2",
    _QWEN2_RAW: "deepseek-r1-qwen megrez stablelm2 hunyuan solar-open",
    _QWEN35: "qwen35",
    _FALCON: "falcon",
    _DEEPSEEK_LLM: "deepseek-llm",
    _DEEPSEEK_CODER: "deepseek-coder",
    _DEEPSEEK_V3: "deepseek-v3 hunyuan-dense",
    _TEKKEN: "tekken",
    _O200K: "gpt-4o llama4",
    _GLM4: "glm4",
    _MINICPM5: "minicpm5",
    _BLOOM: "bloom poro-chat",
}
PRE_TOKENIZERS = {name: variant for variant, names in _VARIANTS.items() for name in names.split()}


def pre_tokenizer(name: str) -> PreTokenizer:
    """Return the variant called `name` in GGUF metadata. Raises UnsupportedError."""
    try:
        return PRE_TOKENIZERS[name]
    except KeyError:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise UnsupportedError(
            f"The pre-tokenizer {name[:64]!r} (tokenizer.ggml.pre) is not supported; "
            f"known are {known}."
        ) from None
