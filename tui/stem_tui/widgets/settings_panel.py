"""The side panel with the settings of one chat."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import ClassVar, Self

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Input, Label, Static, TextArea

from stem_local.chat_settings import ABOUT, ChatSettings, value_text
from stem_local.errors import UsageError

from .choices import Choices
from .sparsity_slider import SparsityControl

POLICIES = (("stop", "stop"), ("drop_oldest", "drop old turns"))

TYPED = tuple(name for name in ABOUT if name not in ("system", "sparsity", "context_policy"))
"""Settings that are a number in a field."""

NAMES = {name: name for name in ABOUT} | {
    "system": "System prompt",
    "sparsity": "Sparsity: what is left out",
    "context_policy": "When the context is full",
}

MOST_WAITING = 100
"""How many of its own changes the panel recognises when it is told them late."""


class SettingsPanel(Vertical):
    """Every setting of a chat. What is typed counts at once where it can be used, and says why not
    where it cannot; `settings` is what counts.
    """

    DEFAULT_CSS = """
    SettingsPanel {
        dock: right;
        width: 42;
        max-width: 100%;
        height: 100%;
        border: round $border-blurred;
        border-title-color: $text-primary;
        background: $surface;
        padding: 0 1;
        &:focus-within { border: round $border; }
        VerticalScroll { height: 1fr; scrollbar-size-vertical: 1; }
        TextArea { height: 5; }
        VerticalScroll > Choices, SparsityControl { margin-bottom: 1; }
        Horizontal { height: 1; }
        Horizontal Label { width: 20; }
        Input { width: 1fr; background: $panel; }
        .-problem { color: $text-error; text-style: bold; }
        .help { height: auto; max-height: 8; border-top: solid $border-blurred; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close settings", id="settings.close"),
        Binding("f5", "defaults", "Back to defaults", id="settings.defaults"),
    ]

    class Changed(Message):
        """Someone changed a setting."""

        def __init__(self, settings: ChatSettings) -> None:
            super().__init__()
            self.settings = settings

    class Closed(Message):
        """Someone is done with the panel."""

    def __init__(
        self, settings: ChatSettings | None = None, defaults: ChatSettings | None = None
    ) -> None:
        """`settings` are shown at first, until `load`; `defaults` are those of new chats."""
        super().__init__()
        self.border_title = "Settings of this chat"
        self._defaults = defaults or ChatSettings()
        self.settings = settings or self._defaults
        self._system = TextArea(name="system", placeholder="none")
        self._sparsity = SparsityControl(name="sparsity")
        self._policy = Choices(POLICIES, self.settings.context_policy, name="context_policy")
        self._fields = {name: Input(compact=True, name=name) for name in TYPED}
        self._names = {name: Label(text) for name, text in NAMES.items()}
        self._help = Static(classes="help", markup=False)
        self._problems: dict[str, str] = {}
        self._posted: deque[ChatSettings] = deque(maxlen=MOST_WAITING)

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=False):
            yield self._names["system"]
            yield self._system
            yield self._names["sparsity"]
            yield self._sparsity
            yield self._names["context_policy"]
            yield self._policy
            for name, field in self._fields.items():
                with Horizontal():
                    yield self._names[name]
                    yield field
        yield self._help

    def on_mount(self) -> None:
        self._fill()

    def load(self, settings: ChatSettings) -> None:
        """Show other settings, of another chat or changed elsewhere. Posts nothing.

        Settings that the panel itself posted may be told it again, and change nothing.
        """
        # more may have been typed since: taking up the older text would lose it
        if settings == self.settings or any(settings is posted for posted in self._posted):
            return
        self._posted.clear()
        self.settings = settings
        if self.is_mounted:
            self._fill()

    @property
    def problems(self) -> dict[str, str]:
        """Why what is typed does not count, by setting."""
        return dict(self._problems)

    def focus(self, scroll_visible: bool = True) -> Self:
        """Give the focus to the first of the settings."""
        self._system.focus(scroll_visible)
        return self

    def _fill(self) -> None:
        with self.prevent(Input.Changed, TextArea.Changed):
            if self._system.text != self.settings.system:
                self._system.text = self.settings.system
            self._sparsity.value = self.settings.sparsity
            self._policy.value = self.settings.context_policy
            for name, field in self._fields.items():
                field.value = value_text(name, getattr(self.settings, name))
        for name in self.problems:
            self._judge(name, "")

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        if event.input.name is not None:
            self._take(event.input.name, event.input.value)

    @on(TextArea.Changed)
    def _written(self, event: TextArea.Changed) -> None:
        event.stop()
        self._take("system", self._system.text)

    @on(Choices.Changed)
    def _chosen(self, event: Choices.Changed) -> None:
        event.stop()
        self._take("context_policy", event.value)

    @on(SparsityControl.Changed)
    def _left_out(self, event: SparsityControl.Changed) -> None:
        event.stop()
        self._change(replace(self.settings, sparsity=event.value))

    def _take(self, name: str, text: str) -> None:
        """Take over what was typed, or say why it cannot be."""
        try:
            settings = self.settings.with_text(name, text)
        except UsageError as error:
            self._judge(name, str(error))
        else:
            self._judge(name, "")
            self._change(settings)

    def _judge(self, name: str, problem: str) -> None:
        """Mark a setting whose text cannot be used; an empty problem takes the mark back."""
        if problem:
            self._problems[name] = problem
        else:
            self._problems.pop(name, None)
        label = self._names[name]
        label.update(f"! {NAMES[name]}" if problem else NAMES[name])
        label.set_class(bool(problem), "-problem")
        self._explain()

    def _explain(self) -> None:
        """Say what the setting under the cursor is for, or what is wrong with it."""
        focused = self.screen.focused
        name = focused.name if focused is not None and self in focused.ancestors else None
        if name is None or name not in ABOUT:
            self._help.update("")
        elif problem := self._problems.get(name):
            self._help.update(f"! {problem}")
        else:
            self._help.update(ABOUT[name].help)

    def _change(self, settings: ChatSettings) -> None:
        if settings != self.settings:
            self.settings = settings
            self._posted.append(settings)
            self.post_message(self.Changed(settings))

    def on_descendant_focus(self) -> None:
        self._explain()

    def action_close(self) -> None:
        self.post_message(self.Closed())

    def action_defaults(self) -> None:
        settings = replace(self._defaults, system=self.settings.system)
        self._change(settings)
        self._fill()
