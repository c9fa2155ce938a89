"""How the tokens of an answer are chosen: from their logits here, or on the card that has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from stem_runtime.sampling import Sampler, logprobs

from .completion import TokenLogprob

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stem_runtime.kv_cache import KVCache

    from .decoding import Decoding
    from .generation import Options
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


def choosing(model: Model, cache: KVCache, options: Options) -> Choosing:
    """On the card where the model has one that can, and nobody wants to know the logits."""
    if model.card is not None and options.logprobs is None:
        return OnCard(model, cache, options)
    return FromLogits(model, options)
