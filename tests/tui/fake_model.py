"""A model that says what a test wrote, when the test lets it: the real one on a fake engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stem_local.model import Model
from tests.local.fakes import FakeCache, FakeEngine, open_fake
from tests.runtime.tiny import random_packed, tiny_config


class Scripted:
    """Opens models that answer every prompt with `reply`, and remembers what was opened.

    `hold` makes each step of the engine wait until `release`, `hold_after` all but so many of them;
    `started` is set once one waits. `hold_opening` does so with opening a model. Steps are of one
    token, to be counted, unless `draft_tokens` lets them read drafts.
    """

    def __init__(self, folder: Path, reply: str = "Hello there.", context: int = 400) -> None:
        self.reply = reply
        self.context = context
        self.draft_tokens = 0
        self.opened: list[dict[str, Any]] = []
        self.models: list[Model] = []
        self.fails: Callable[[str | None], Exception | None] = lambda _: None
        self.started = threading.Event()
        self._free_steps = -1
        self._open = threading.Event()
        self._open.set()
        self._opening = threading.Event()
        self._opening.set()
        self._folder = folder / "model"
        random_packed(self._folder, tiny_config())

    @property
    def engine(self) -> FakeEngine:
        """The engine of the model opened last."""
        engine = self.models[-1].engine
        assert isinstance(engine, FakeEngine)
        return engine

    def load(self, name: str | None, **options: Any) -> Model:
        """Stands in for `stem_local.load`."""
        self.opened.append({"name": name, **options})
        assert self._opening.wait(60), "a test did not let the model open"
        if (error := self.fails(name)) is not None:
            raise error
        model, engine = open_fake(self._folder, self.reply, self.context)
        model.name = name or "tiny"
        engine.draft_tokens = self.draft_tokens
        engine.before_step = self.step
        self.models.append(model)
        return model

    def hold(self) -> None:
        """Let the engine's next step wait."""
        self.hold_after(0)

    def hold_after(self, steps: int) -> None:
        """Let the engine wait after so many more steps."""
        self.started.clear()
        self._free_steps = steps
        self._open.clear()

    def release(self) -> None:
        """Let the engine go on."""
        self._open.set()

    def hold_opening(self) -> None:
        """Let models wait to be opened."""
        self._opening.clear()

    def release_opening(self) -> None:
        """Let models be opened."""
        self._opening.set()

    def step(self, _: FakeCache) -> None:
        """What every step of the engine goes through."""
        if self._open.is_set():
            return
        self._free_steps -= 1
        if self._free_steps < 0:
            self.started.set()
            assert self._open.wait(60), "a test did not let the engine go on"
