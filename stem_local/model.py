"""A loaded model and all that can be asked of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from operator import index
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NoReturn,
    Self,
    SupportsIndex,
    Unpack,
    cast,
    overload,
)
from weakref import WeakKeyDictionary

from stem_runtime.errors import FormatError, UsageError
from stem_runtime.forking import new_lock
from stem_runtime.kernels import DeviceChoice

from . import scoring
from .chat import Message, Prompt, Session, check_room, encode_raw, fit, question, with_system
from .completion import Completion, collect
from .equipment import BARE, Equipment, build_engine
from .generate_options import GenerateOptions, Options
from .generation import Generation, Stream
from .sparsity import QUALITY, Calibrated, Choice, Sparsity, check_quality, check_sparsity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stem_runtime.chat_template import ChatTemplate
    from stem_runtime.config import ModelConfig
    from stem_runtime.engine import Engine
    from stem_runtime.formats.packed import PackedModel
    from stem_runtime.gpu.engine import GpuEngine
    from stem_runtime.kv_cache import KVCache
    from stem_runtime.sparsity.plan import FfnPlan, Mode
    from stem_runtime.sparsity.resampling import Resampler
    from stem_runtime.tokenizer import Tokenizer


CPU = DeviceChoice("cpu", "cpu", "asked for")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model is. `nbytes` is the size of its packed weights, `placement` says what of
    it is on a card and what on the CPU."""

    name: str
    family: str
    parameters: int
    quant: str
    nbytes: int
    vocab_size: int
    context: int
    context_length: int
    license: str | None
    folder: Path
    kernels: str
    device: str
    placement: str
    threads: int
    kv_cache: str

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


class Model:
    """A loaded model. Made by `load`; a context manager; usable from several threads.

    Calls from several threads take turns on the engine. The KV cache of the last generation is
    kept, and the next prompt is evaluated only from where it departs from it.
    """

    def __init__(
        self,
        packed: PackedModel,
        engine: Engine,
        tokenizer: Tokenizer,
        context: int,
        notify: Callable[[str], None] | None = None,
        *,
        device: DeviceChoice = CPU,
        threads: int | None = None,
        calibrated: Calibrated | None = None,
        equipped: Equipment = BARE,
        sparsity: Sparsity = "auto",
        quality: float = QUALITY,
    ) -> None:
        """`equipped` is what the engine was built with, on `device` and with `threads` if not as
        many as it likes; `sparsity` and `quality` hold for calls that say nothing of them.
        """
        self.packed = packed
        self.calibrated = calibrated or Calibrated(packed, engine.kernels.name)
        self.sparsity = sparsity
        self.quality = quality
        self.config: ModelConfig = packed.config
        self.name = str(packed.info["name"])
        self.tokenizer = tokenizer
        self.context = context
        self.notify = notify
        self.engine_lock = new_lock()
        self.resamplers: WeakKeyDictionary[KVCache, tuple[tuple[Mode, ...], Resampler]]
        self.resamplers = WeakKeyDictionary()
        self._engine: Engine | None = engine
        self._equipped = equipped
        self._device, self._threads = device, threads
        self._plan: FfnPlan | None = None
        self._cache_lock = new_lock()
        self._idle_cache: KVCache | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._engine is None else f"context={self.context}"
        return f"<Model {self.name} {state}>"

    def __getstate__(self) -> NoReturn:
        raise UsageError("A model cannot be copied or pickled; load it where it is needed.")

    @property
    def engine(self) -> Engine:
        """The engine; its calls are made holding `engine_lock`. UsageError after `close`."""
        if self._engine is None:
            raise UsageError(f"The model {self.name} is closed; load it again.")
        return self._engine

    @property
    def card(self) -> GpuEngine | None:
        """The engine, where it is one that can choose tokens by itself."""
        if self._device.backend != "triton":
            return None
        return cast("GpuEngine", self.engine)

    @property
    def can_draft(self) -> bool:
        """Whether a step of the engine may read a draft; those on a card read one token."""
        return self._device.backend == "cpu"

    @property
    def closed(self) -> bool:
        return self._engine is None

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's own chat template, or a plain one where it has none."""
        return load_template(self.packed.folder, self.tokenizer)

    @property
    def info(self) -> ModelInfo:
        """What the model is and how it is run."""
        engine, stem = self.engine, self.packed.info
        return ModelInfo(
            name=self.name,
            family=self.config.family,
            parameters=self.packed.parameters,
            quant=str(stem["quant"]),
            nbytes=self.packed.nbytes,
            vocab_size=self.config.vocab_size,
            context=self.context,
            context_length=self.config.context_length,
            license=stem.get("license"),
            folder=self.packed.folder,
            kernels=engine.kernels.name,
            device=self._device.name,
            placement=self._placement(),
            threads=engine.threads,
            kv_cache=engine.kv_cache,
        )

    @property
    def begin_tokens(self) -> list[int]:
        """What a text starts with: the beginning-of-text token for a model that wants it."""
        bos = self.tokenizer.bos
        return [bos] if self.tokenizer.add_bos and bos is not None else []

    def close(self) -> None:
        """Stop the threads and let go of the memory. A generation under way raises UsageError."""
        with self.engine_lock:
            engine, self._engine, self._idle_cache = self._engine, None, None
            if engine is not None:
                engine.close()

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        raw: bool = False,
        stream: Literal[False] = False,
        **options: Unpack[GenerateOptions],
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        raw: bool = False,
        stream: Literal[True],
        **options: Unpack[GenerateOptions],
    ) -> Stream: ...
    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        raw: bool = False,
        stream: bool,
        **options: Unpack[GenerateOptions],
    ) -> Completion | Stream: ...
    def generate(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        raw: bool = False,
        stream: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Completion | Stream:
        """Answer a prompt or a list of messages; see `stem_local.generate` for the options."""
        started = time.perf_counter()
        parsed = Options.parse(options, "generate")
        if raw:
            tokens, dropped = self._raw_tokens(prompt, system), 0
        else:
            parsed = parsed.with_stops(self.template.stop)
            messages = [question(prompt)] if isinstance(prompt, str) else prompt
            tokens, dropped = fit(self, with_system(messages, system), parsed)
        generation = Generation(self, tokens, parsed, started, dropped, continues=raw)
        chunks = generation.chunks()
        return Stream(generation, chunks) if stream else collect(chunks)

    def stream(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        raw: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Stream:
        """`generate(..., stream=True)`."""
        return self.generate(prompt, system=system, raw=raw, stream=True, **options)

    def chat(
        self,
        *,
        system: str | None = None,
        messages: Sequence[Message] = (),
        forgotten: int = 0,
        **options: Unpack[GenerateOptions],
    ) -> Session:
        """Begin a conversation, or go on with `messages`. Options hold for all of its turns.

        The model is not shown the first `forgotten` turns of them.
        """
        return Session(self, system=system, messages=messages, forgotten=forgotten, **options)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text. With `special`, names of special tokens in it become those."""
        return self.tokenizer.encode(text, special=special)

    def detokenize(self, tokens: Iterable[SupportsIndex]) -> str:
        """Text of token ids, special tokens left out. UsageError for one outside the vocabulary."""
        return self.tokenizer.decode(self._checked_ids(tokens))

    def logits(self, token_ids: Iterable[SupportsIndex]) -> NDArray[np.float32]:
        """Logits after each token of a sequence, a list or an array: float32 [n, vocab].

        Raises UsageError for an empty sequence or an id outside the vocabulary, ContextFullError
        for more tokens than the context.
        """
        return scoring.logits(self, self._checked_ids(token_ids))

    def perplexity(
        self,
        text: str,
        window: int = 512,
        sparsity: Sparsity = "off",
        quality: float | None = None,
    ) -> float:
        """Perplexity of a text: exp of the mean negative log-likelihood of its tokens.

        The text is cut into windows of `window` tokens that share nothing, the last one shorter.
        Each begins with the beginning-of-text token where the model uses one; the first token of a
        window is context and not scored. With `sparsity` other than "off" the text is read token
        by token, as answers are, and with the same neurons left out; the output head is always
        computed in full. Raises UsageError for a text with nothing to score.
        """
        choice = self.choose(check_sparsity(sparsity), quality, scoring.WHOLE_HEAD)
        return scoring.perplexity(self, text, window, None if sparsity == "off" else choice)

    def choose(
        self,
        sparsity: Sparsity | None = None,
        quality: float | None = None,
        whole_head: str = "",
    ) -> Choice:
        """What decoding leaves out under a setting; None is what the model was loaded with.

        `whole_head` is a reason to compute every row of the output head, or empty. Raises
        UsageError for what sparsity cannot be, and for a share of neurons where the model is not
        calibrated for one.
        """
        return self.calibrated.choose(
            self.sparsity if sparsity is None else check_sparsity(sparsity),
            self.quality if quality is None else check_quality(quality),
            whole_head,
        )

    def _placement(self) -> str:
        if self._device.backend == "cpu":
            return f"all {self.config.n_layers} layers on the CPU"
        return cast("GpuEngine", self.engine).placement.describe()

    def equip(self, choice: Choice) -> None:
        """Give the engine what it needs to decode as chosen. Call holding `engine_lock`."""
        wanted = self._equipped.with_(choice)
        if wanted != self._equipped:
            old, self._engine = self.engine, None
            old.close()
            self._engine = build_engine(
                self.packed,
                self.calibrated,
                wanted,
                context=self.context,
                threads=self._threads,
                kernels=old.kernels.name,
                kv_cache=old.kv_cache,
                device=self._device,
                notify=self.notify,
            )
            self._equipped, self._plan = wanted, None

    def aim(self, plan: FfnPlan) -> None:
        """Let the engine's sparse steps follow a plan. Call holding `engine_lock`."""
        if plan is not self._plan:
            self.engine.set_plan(plan)
            self._plan = plan

    def borrow_cache(self) -> KVCache:
        """A KV cache of the whole context for one generation, the last one used if it is free."""
        with self._cache_lock:
            cache, self._idle_cache = self._idle_cache, None
        return cache if cache is not None else self.engine.new_cache(self.context)

    def give_back_cache(self, cache: KVCache) -> None:
        with self._cache_lock:
            self._idle_cache = None if self.closed else cache

    def _raw_tokens(self, prompt: Prompt, system: str | None) -> list[int]:
        if not isinstance(prompt, str) or system is not None:
            raise UsageError("A raw prompt is a text, and takes no system message.")
        return check_room(self, encode_raw(self, prompt))

    def _checked_ids(self, token_ids: Iterable[SupportsIndex]) -> list[int]:
        try:
            ids = [index(token) for token in token_ids]
        except TypeError as error:
            raise UsageError(f"Tokens are a list of whole numbers: {error}.") from error
        vocab = self.config.vocab_size
        if wrong := next((i for i in ids if not 0 <= i < vocab), None):
            raise UsageError(
                f"Token {wrong} is outside the vocabulary of {self.name}, 0..{vocab - 1}."
            )
        return ids


def load_template(folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
    """The chat template of a packed folder, or a plain one. Raises FormatError."""
    from stem_runtime.chat_template import MAX_TEMPLATE_CHARS, ChatTemplate

    path = folder / "chat_template.jinja"
    try:
        with path.open(encoding="utf-8") as file:
            source = file.read(MAX_TEMPLATE_CHARS + 1)
    except FileNotFoundError:
        return ChatTemplate.default(tokenizer.control)
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text; pull or convert the model again.") from error
    bos = "" if tokenizer.bos is None else tokenizer.token_text(tokenizer.bos)
    eos = tokenizer.token_text(min(tokenizer.eos)) if tokenizer.eos else ""
    return ChatTemplate(source, bos=bos, eos=eos)
