"""How the tokens of an answer are chosen: from their logits here, or on the card that has them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

import numpy as np

from stem_runtime.sampling import Sampler, logprobs

from .completion import TokenLogprob
from .drafting import Gain, Match, PromptLookup

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stem_runtime.kv_cache import KVCache

    from .decoding import Decoding
    from .generate_options import Options
    from .model import Model


class Choosing(Protocol):
    """Chooses the tokens of one answer. `first` and `next` hold the model's `engine_lock`."""

    def first(self, logits: NDArray[np.float32], history: Sequence[int]) -> int:
        """The token after a prompt, whose `logits` were computed last."""
        ...

    def next(self, decoding: Decoding, token: int, history: Sequence[int]) -> int:
        """Read a token, the last of the `history`, and choose the one to follow it."""
        ...

    def told(self, count: int) -> tuple[TokenLogprob, ...] | None:
        """The log-probabilities of so many more tokens, None where they are not asked for."""
        ...

    def close(self) -> None:
        """Choose no more: the cache keeps what steps of one token each would have read."""
        ...


class FromLogits:
    """Takes the logits of every token from the engine."""

    def __init__(self, model: Model, options: Options) -> None:
        self._sampler = Sampler(options.sampling, model.config.vocab_size, model.notify)
        self._top = options.logprobs
        self._entries: list[TokenLogprob] = []

    def first(self, logits: NDArray[np.float32], history: Sequence[int]) -> int:
        token = self._sampler.sample(logits, history)
        if self._top is not None:
            chosen, top = logprobs(logits, token, self._top)
            self._entries.append(TokenLogprob(token, chosen, tuple(top)))
        return token

    def next(self, decoding: Decoding, token: int, history: Sequence[int]) -> int:
        return self.first(decoding.step(token), history)

    def told(self, count: int) -> tuple[TokenLogprob, ...] | None:
        if self._top is None:
            return None
        # the token that ended the turn was chosen too, and stays behind
        entries = tuple(self._entries[:count])
        del self._entries[:count]
        return entries

    def close(self) -> None:
        pass


@dataclass(slots=True)
class _Ahead:
    """A draft that a step of `decoding` read.

    `rows` float32 [n + 1, vocab] are the logits before each of its n tokens and after the last;
    `accepted` of the tokens are part of the text. The draft is what followed the text's end where
    that stood before, and its step took `seconds`.
    """

    decoding: Decoding
    draft: list[int]
    rows: NDArray[np.float32]
    match: Match
    seconds: float
    accepted: int = 0


class Drafting(FromLogits):
    """Has a step read a draft of the tokens to come, where that is likely to save time.

    A token is chosen from the logits after exactly those before it, as `FromLogits` does: nothing
    but the time hangs on what is drafted.
    """

    def __init__(self, model: Model, cache: KVCache, options: Options, limit: int) -> None:
        """`limit` is how many tokens the prompt and its answer may have together."""
        super().__init__(model, options)
        self._cache, self._limit = cache, limit
        self._most, self._ends = model.engine.draft_tokens, model.tokenizer.eos
        self._lookup, self._gain = PromptLookup(), Gain()
        self._ahead: _Ahead | None = None
        self._held = 0
        # one for all steps: a new one each time would be as much work as the copy
        self._kept = np.empty((1 + self._most, model.config.vocab_size), np.float32)

    def next(self, decoding: Decoding, token: int, history: Sequence[int]) -> int:
        ahead = self._ahead
        if ahead is not None and ahead.decoding is decoding:
            ahead.accepted += 1
            decoding.accepted += 1
            logits = ahead.rows[ahead.accepted]
        else:
            self.close()
            logits = self._step(decoding, token, history)
        self._held = len(history)
        chosen = self.first(logits, history)
        self._compare(chosen)
        return chosen

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead = None
            self._cache.truncate(self._held)

    def _step(self, decoding: Decoding, token: int, history: Sequence[int]) -> NDArray[np.float32]:
        """The logits after a token, which is read together with a draft if there is one."""
        if not decoding.can_draft:
            return decoding.step(token)
        draft, match = self._draft(history)
        start = time.perf_counter()
        if match is None:
            logits = decoding.step(token)
            self._gain.plain(time.perf_counter() - start)
            return logits
        rows = decoding.step_ahead([token, *draft])
        self._ahead = _Ahead(decoding, draft, rows, match, time.perf_counter() - start)
        first: NDArray[np.float32] = rows[0]
        return first

    def _draft(self, history: Sequence[int]) -> tuple[list[int], Match | None]:
        """What to read beside the last token, and what led to it; nothing at times."""
        # a step gives one token more than hold of its draft
        most = min(self._most, self._limit - len(history) - 1)
        if most < 1:
            return [], None
        found, match = self._lookup.propose(history, most)
        # nobody asks what follows the end of a turn
        draft = list(takewhile(lambda token: token not in self._ends, found))
        if match is None or not (count := self._gain.count(match, len(draft))):
            return [], None
        return draft[:count], match

    def _compare(self, chosen: int) -> None:
        """Go on with the draft where its next token was chosen, forget what is left otherwise."""
        ahead = self._ahead
        if ahead is None:
            return
        done = ahead.accepted
        if done == len(ahead.draft) or chosen != ahead.draft[done]:
            self._gain.drafted(ahead.match, len(ahead.draft), done, ahead.seconds)
            self.close()
        elif done == 0:
            # other texts may be decoded before the next call, over the engine's own rows
            kept = self._kept[: len(ahead.rows)]
            kept[1:] = ahead.rows[1:]
            ahead.rows = kept


class OnCard:
    """Lets a card choose in the step that reads the token before, so that logits stay there.

    Draws are those of `FromLogits`: with the same seed, only logits that are computed in another
    order can make another text.
    """

    def __init__(self, model: Model, cache: KVCache, options: Options) -> None:
        self._model, self._cache, self._params = model, cache, options.sampling

    def first(self, logits: NDArray[np.float32], history: Sequence[int]) -> int:  # noqa: ARG002
        card = self._model.card
        assert card is not None
        card.begin_text(self._cache, self._params, history)
        return card.choose(self._cache)

    def next(self, decoding: Decoding, token: int, history: Sequence[int]) -> int:  # noqa: ARG002
        return decoding.follow(token)

    def told(self, count: int) -> None:  # noqa: ARG002
        return None

    def close(self) -> None:
        pass


def choosing(model: Model, cache: KVCache, options: Options, limit: int) -> Choosing:
    """On the card where the model has one that can, and nobody wants to know the logits.

    `limit` is how many tokens the prompt and its answer may have together.
    """
    if model.card is not None and options.logprobs is None:
        return OnCard(model, cache, options)
    if options.draft and model.can_draft:
        return Drafting(model, cache, options, limit)
    return FromLogits(model, options)
