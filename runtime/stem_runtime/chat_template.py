"""Messages to the text or the tokens a model was taught to continue."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError, TemplateSyntaxError

from .errors import FormatError, UsageError
from .template_sandbox import Sandbox, refusal

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

MAX_TEMPLATE_CHARS = 1 << 18
MAX_MESSAGES = 10_000
MAX_CONTENT_CHARS = 1 << 23
_MAX_WORDS = 300  # characters of what a template says
ROLES = ("system", "user", "assistant", "tool")

Messages = Sequence[Mapping[str, str]]

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt }}"""

PLAIN = """\
{%- for message in messages -%}
{{ '' if message['role'] == 'system' else message['role'] | capitalize + ': ' -}}
{{ message['content'] + '\\n\\n' }}
{%- endfor -%}
{{ 'Assistant:' if add_generation_prompt }}"""


class ChatTemplate:
    """A jinja2 chat template as models publish them, rendered in a bounded sandbox.

    `bos` and `eos` are the texts of those tokens, empty where the model has none. `stop` are texts
    that end an answer besides the model's own end tokens.
    """

    def __init__(
        self, source: str, *, bos: str = "", eos: str = "", stop: tuple[str, ...] = ()
    ) -> None:
        """Raises FormatError for a template that is too long or not valid jinja2."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise FormatError(
                f"The chat template has {len(source)} characters; "
                f"at most {MAX_TEMPLATE_CHARS} are accepted."
            )
        self.source = source
        self.stop = stop
        self._names = {"bos_token": bos, "eos_token": eos}
        self._sandbox = Sandbox()
        try:
            self._template = self._sandbox.from_string(source)
        except TemplateSyntaxError as error:
            raise FormatError(
                f"The chat template is not valid in line {error.lineno}: {error.message}."
            ) from error
        except (TemplateError, RecursionError, SyntaxError, MemoryError, OverflowError) as error:
            raise FormatError(f"The chat template cannot be used: {error}.") from error

    @classmethod
    def default(cls, control: Collection[str]) -> ChatTemplate:
        """Return the template for a model without one: ChatML if it has ChatML's control tokens."""
        if "<|im_start|>" in control and "<|im_end|>" in control:
            return cls(CHATML)
        return cls(PLAIN, stop=("\nUser:",))

    def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """Return the text of `messages`, each a mapping with `role` and `content`.

        `add_generation_prompt` ends it where the assistant's answer begins. Raises UsageError for
        messages the template refuses, FormatError where the template itself fails.
        """
        check_messages(messages)
        self._sandbox.restart(sum(len(message["content"]) for message in messages))
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                **self._names,
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
            ):
                pieces.append(piece)
                size += len(piece)
                self._sandbox.limit(size)
        except Exception as error:
            raise self._explain(error, messages) from error
        return "".join(pieces)

    def _explain(self, error: Exception, messages: Messages) -> UsageError | FormatError:
        said = refusal(error)
        if said is None:
            name = type(error).__name__
            return FormatError(f"The model's chat template failed ({name}): {_brief(str(error))}.")
        hint = "change the order or the roles of the messages"
        if any(message["role"] == "system" for message in messages):
            hint = "leave out the system message, or put its text into the first user message"
        said = _brief(said)
        return UsageError(f"The model's chat template refuses these messages ({said}); {hint}.")


def _brief(words: str) -> str:
    """A template's own words as part of a sentence: no control characters, no pages."""
    clean = "".join(char if char.isprintable() else " " for char in words[: _MAX_WORDS + 1])
    return clean if len(words) <= _MAX_WORDS else clean[:_MAX_WORDS] + "..."


def check_messages(messages: Messages) -> None:
    """Raise UsageError unless `messages` are mappings of a known role and a text, within bounds."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise UsageError("messages must be a non-empty list of mappings with role and content.")
    if len(messages) > MAX_MESSAGES:
        raise UsageError(f"There are {len(messages)} messages; at most {MAX_MESSAGES} are allowed.")
    size = 0
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise UsageError(f"messages[{place}] must have role and content, and nothing else.")
        if message["role"] not in ROLES:
            known = ", ".join(ROLES)
            raise UsageError(
                f"messages[{place}] has the role {message['role']!r}; known are {known}."
            )
        if not isinstance(message["content"], str):
            raise UsageError(f"messages[{place}] has a content that is not text.")
        size += len(message["content"])
    if size > MAX_CONTENT_CHARS:
        raise UsageError(
            f"The messages have {size} characters; at most {MAX_CONTENT_CHARS} are allowed."
        )


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Messages,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Return the tokens of rendered `messages`, with the begin token where the model wants one.

    Only the template makes control tokens. Where a message spells one out, or could complete one
    together with the text around it, a character of it is rendered as a stand-in from Unicode's
    private use area and turned back after the control tokens have been found.
    """
    check_messages(messages)
    veil = _Veil(tokenizer, [template.source, *(message["content"] for message in messages)])
    veiled = [{**message, "content": veil.hide(message["content"])} for message in messages]
    text = template.render(veiled, add_generation_prompt)
    if veil.used:
        ids = tokenizer.encode_parts(veil.split(text))
    else:
        ids = tokenizer.encode(text, special=True)
    if tokenizer.add_bos and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
        ids.insert(0, tokenizer.bos)
    return ids


class _Veil:
    """Hides control tokens in texts from the search for control tokens."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        self._control = tokenizer.control
        self._pattern = tokenizer.control_pattern
        self._edges = tokenizer.control_edges
        self._taken = [*texts, *self._control]
        self._stand_ins: dict[str, str] = {}

    @property
    def used(self) -> bool:
        return bool(self._stand_ins)

    def hide(self, text: str) -> str:
        """Return `text` with no control token in it, nor a part of one at its ends."""
        chars = list(text)
        for place in self._places(text):
            chars[place] = self._stand_in(text[place])
        hidden = "".join(chars)
        place = 0  # behind the last stand-in, as no control token holds one
        while match := self._pattern.search(hidden, place):
            start = match.start(match.lastindex or 0)
            chars[start] = self._stand_in(hidden[start])
            place = start + 1
        return "".join(chars)

    def _places(self, text: str) -> set[int]:
        heads, tails, longest = self._edges
        places = set()
        # templates often trim a content, so the ends without blanks count as well
        left, right = len(text) - len(text.lstrip()), len(text.rstrip())
        for start, end in ((0, len(text)), (left, right)):
            for size in range(1, min(longest, end - start + 1)):
                if text[start : start + size] in tails:
                    places.add(start)
                if text[end - size : end] in heads:
                    places.add(end - size)
        return places

    def _stand_in(self, char: str) -> str:
        if char not in self._stand_ins:
            taken = self._stand_ins.values()
            self._stand_ins[char] = next(
                mark
                for mark in map(chr, range(0xF0000, 0xFFFFE))
                if mark not in taken and not any(mark in text for text in self._taken)
            )
        return self._stand_ins[char]

    def split(self, rendered: str) -> list[str | int]:
        """Return the texts, as they were, and the ids of the control tokens between them."""
        back = str.maketrans({mark: char for char, mark in self._stand_ins.items()})
        parts: list[str | int] = []
        end = 0
        for match in self._pattern.finditer(rendered):
            if match.start() > end:
                parts.append(rendered[end : match.start()].translate(back))
            parts.append(self._control[match[match.lastindex or 0]])
            end = match.end()
        if end < len(rendered):
            parts.append(rendered[end:].translate(back))
        return parts
