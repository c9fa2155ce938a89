"""Conversations: messages to prompt tokens, what to do when they outgrow the context, sessions."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

from stem_runtime.chat_template import check_messages, encode_chat
from stem_runtime.errors import ContextFullError, UsageError
from stem_runtime.limits import Limit, shown

from .completion import Chunk, Completion, collect
from .generate_options import GenerateOptions, Options
from .generation import Generation, Stream

if TYPE_CHECKING:
    from .model import Model

Message = Mapping[str, str]
"""One message: `role` (system, user, assistant or tool) and `content`."""

Prompt = str | Sequence[Message]

_FORGOTTEN = Limit(0, whole=True)


def question(text: str) -> Message:
    """A user message. Raises UsageError for one that asks nothing."""
    if not isinstance(text, str):
        raise UsageError(f"A question is a text, not {shown(text)}.")
    if not text.strip():
        raise UsageError("The prompt is empty.")
    return {"role": "user", "content": text}


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Copy messages, a system message in front. Raises UsageError where there is one already."""
    if not isinstance(messages, Sequence) or messages:
        check_messages(messages)
    if system is None:
        return list(messages)
    if not isinstance(system, str):
        raise UsageError(f"system is a text, not {shown(system)}.")
    if messages and messages[0]["role"] == "system":
        raise UsageError("The messages begin with a system message already; drop `system`.")
    return [{"role": "system", "content": system}, *messages]


def encode_raw(model: Model, text: str) -> list[int]:
    """Tokens of a text as it stands, after the beginning-of-text token where the model has one."""
    if not text:
        raise UsageError("The prompt is empty.")
    return model.begin_tokens + model.tokenizer.encode(text)


def encode_messages(model: Model, messages: Sequence[Message]) -> list[int]:
    """Tokens of a conversation in the model's own template, ready for its answer."""
    return encode_chat(model.tokenizer, model.template, messages)


def split_turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """Split into leading system messages and turns, each from one user message to the next."""
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    turns: list[list[Message]] = []
    for message in messages[first:]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return list(messages[:first]), turns


def fit(model: Model, messages: Sequence[Message], options: Options) -> tuple[list[int], int]:
    """Encode a conversation so that an answer fits too. Returns (tokens, dropped turns).

    Under "drop_oldest" the answer is promised `max_tokens` or a quarter of the context, whichever
    is less. Raises ContextFullError when it cannot be done, or may not.
    """
    tokens = encode_messages(model, messages)
    if options.context_policy == "stop":
        return check_room(model, tokens, ", or choose the context policy drop_oldest"), 0
    if len(tokens) + min(options.max_tokens, model.context // 4) <= model.context:
        return check_room(model, tokens), 0
    head, turns = split_turns(messages)

    def without(dropped: int) -> list[int]:
        return encode_messages(model, head + [m for turn in turns[dropped:] for m in turn])

    # Dropping moves everything after it and costs a prefill of the whole prompt, so it goes down
    # to half of the context, to happen once in many turns and not in each.
    half = model.context // 2
    dropped = bisect_left(range(len(turns) - 1), True, key=lambda n: len(without(n)) <= half)
    return check_room(model, without(dropped)), dropped


def check_room(model: Model, tokens: list[int], hint: str = "") -> list[int]:
    """Return the tokens if at least one more fits.

    Raises ContextFullError, UsageError where there are none: a vocabulary may lack all of a text.
    """
    if not tokens:
        raise UsageError(f"The prompt has nothing in it that {model.name} has a token for.")
    if len(tokens) < model.context:
        return tokens
    if model.context < model.config.context_length:
        hint = f", load the model with a context of up to {model.config.context_length}" + hint
    raise ContextFullError(
        f"The prompt is {len(tokens)} tokens long and the context of {model.name} holds "
        f"{model.context}, the answer included; shorten the prompt{hint}."
    )


class Session:
    """A conversation that remembers its turns. Made by `Model.chat`; for one thread at a time.

    `messages` is the whole conversation and may be edited between turns. An answer that was
    cancelled, or whose stream was closed half-way, stays in it as far as it came; a turn that ends
    before its first piece of text leaves no trace. `forgotten` counts the oldest turns that the
    model is no longer shown, since they stopped fitting under "drop_oldest".
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        messages: Sequence[Message] = (),
        forgotten: int = 0,
        **options: Unpack[GenerateOptions],
    ) -> None:
        Options.parse(options, "chat")
        self.messages = with_system(messages, system)
        self._model = model
        self._options = options
        self.forgotten = _FORGOTTEN.check("forgotten", forgotten)

    def send(self, text: str, **options: Unpack[GenerateOptions]) -> Completion:
        """Say something and wait for the whole answer. Options override the session's."""
        return collect(self.stream(text, **options))

    def stream(self, text: str, **options: Unpack[GenerateOptions]) -> Stream:
        """Say something and receive the answer piece by piece."""
        started = time.perf_counter()
        parsed = Options.parse({**self._options, **options}, "stream")
        parsed = parsed.with_stops(self._model.template.stop)
        head, turns = split_turns([*with_system(self.messages, None), question(text)])
        self.forgotten = min(self.forgotten, len(turns) - 1)
        kept = head + [m for turn in turns[self.forgotten :] for m in turn]
        tokens, dropped = fit(self._model, kept, parsed)
        self.forgotten += dropped
        generation = Generation(self._model, tokens, parsed, started, self.forgotten)
        return Stream(generation, self._record(text, generation))

    def clear(self) -> None:
        """Forget every turn; system messages stay."""
        self.messages = split_turns(self.messages)[0]
        self.forgotten = 0

    def _record(self, question: str, generation: Generation) -> Iterator[Chunk]:
        said: list[str] = []
        try:
            for chunk in generation.chunks():
                said.append(chunk.text)
                yield chunk
        finally:
            if answer := "".join(said):
                self.messages += [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
