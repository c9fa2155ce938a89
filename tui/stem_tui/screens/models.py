"""All models: chosen, downloaded, calibrated and removed; also what is seen on a first run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import DataTable, Input, Static

from stem_local import library, machine, spec, store
from stem_local.catalog import DEFAULT_MODEL
from stem_local.errors import StemError
from stem_local.library import CacheKind, Choosable
from stem_local.units import size

from ..widgets.key_line import KeyLine
from .confirm import ConfirmScreen
from .dialog import Dialog, one_line
from .model_jobs import Job, Kind, ModelJobs, sentence
from .model_table import ModelTable, details

_TOLD_EVERY = 0.1
"""Seconds between two drawings of the progress."""


_TALL = 18
"""Rows from which there is room for the details of a model."""


def _nothing_answers() -> bool:
    return False


class ModelsScreen(Dialog[str | None]):
    """The models on this machine and those that can be had; `in_use` is the chat's own.

    Returns the name or folder of the model to use, None to go on as before. The name can be that
    of the model in use: it was calibrated meanwhile and is to be loaded anew. On a `first_run` the
    model that was downloaded is the one to use. With `calibrate` its head is calibrated then.
    `answering` says whether the engine is at work, which would spoil the speeds that a calibration
    measures. `kv_cache` is what a model would keep of the tokens read.
    """

    DEFAULT_CSS = """
    ModelsScreen > #box {
        width: 100;
        max-width: 100%;
        height: 100%;
        max-height: 40;
        padding: 0;
    }
    ModelsScreen #details {
        height: auto;
        min-height: 4;
        padding: 0 1;
        border-top: solid $primary;
    }
    ModelsScreen #source {
        padding: 0 1;
    }
    ModelsScreen #said, ModelsScreen #job {
        height: auto;
        max-height: 4;
        padding: 0 1;
    }
    ModelsScreen.-short #details {
        display: none;
    }
    ModelsScreen #said {
        text-style: bold;
    }
    ModelsScreen #said.failed {
        color: $text-error;
    }
    """

    AUTO_FOCUS = "ModelTable"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "calibrate", "Calibrate", id="models.calibrate"),
        Binding("d,delete", "remove", "Remove", id="models.remove"),
        Binding("x", "cancel", "Cancel work", id="models.cancel"),
        Binding("i,slash", "source", "Other source", id="models.source"),
        Binding("escape", "leave", "Back", id="models.leave"),
    ]

    def __init__(
        self,
        in_use: str | None = None,
        *,
        first_run: bool = False,
        calibrate: bool = True,
        answering: Callable[[], bool] = _nothing_answers,
        kv_cache: CacheKind | None = None,
    ) -> None:
        super().__init__("Choose a model to begin with" if first_run else "Models")
        self._in_use = in_use
        self._first_run = first_run
        self._learns = lambda: calibrate and not answering()
        self._answering = answering
        self._kv_cache = kv_cache
        self._memory: int | None = None
        self._in_use_changed = False
        self._noted = ""

    def parts(self) -> ComposeResult:
        yield ModelTable(self._in_use)
        yield Static(id="details", markup=False)
        yield Input(
            placeholder="i: hf:owner/repo[:file.gguf], a .gguf file or a folder [as NAME]",
            id="source",
            compact=True,
        )
        yield Static(id="job", markup=False)
        yield Static(id="said", markup=False)
        yield KeyLine()

    def on_mount(self) -> None:
        self._jobs = ModelJobs.of(self.app)
        self._jobs.ended = self._ended
        self.set_interval(_TOLD_EVERY, self._draw_job)
        self._draw_job()
        self._reload(self._in_use or DEFAULT_MODEL)

    def on_resize(self) -> None:
        self.set_class(self.size.height < _TALL, "-short")

    def on_unmount(self) -> None:
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._jobs.ended == self._ended:
            self._jobs.ended = None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "cancel":
            return self._jobs.current is not None
        return super().check_action(action, parameters)

    # ------------------------------------------------------------------ what is shown

    @work(thread=True, exclusive=True, group="list")
    def _reload(self, select: str | None = None) -> None:
        """List the models anew; what is on disk may have changed without us."""
        try:
            models, memory = library.choosable(self._kv_cache), machine.memory_bytes()
        except OSError as error:
            self._then(self._say, sentence(error), failed=True)
        else:
            self._then(self._fill, models, memory, select)

    def _fill(self, models: list[Choosable], memory: int | None, select: str | None) -> None:
        self._memory = memory
        if self._first_run and not self._table.row_count:
            here = [model.name for model in models if model.usable]
            if not here:
                self._say("Models run on this machine, and none is installed yet.")
            elif select not in here:
                select = here[0]
        self._table.fill(models, memory, select)

    @on(DataTable.RowHighlighted)
    def _highlighted(self) -> None:
        model = self._table.model(self._table.highlighted)
        if model is not None:
            self._show_details(model, None)
            if model.calibrated:
                self._read_profile(model)

    @work(thread=True, exclusive=True, group="details")
    def _read_profile(self, model: Choosable) -> None:
        assert model.installed is not None
        self._then(self._show_details, model, library.decoding(model.installed))

    def _then(self, call: Callable[..., object], *args: object, **options: object) -> None:
        """From a thread: go on with this in the app's own, unless the screen was left meanwhile."""

        def go_on() -> None:
            if self.is_attached:
                call(*args, **options)

        self.app.call_from_thread(go_on)

    def _show_details(self, model: Choosable, decoding: str | None) -> None:
        if model.name == self._table.highlighted:
            text = details(model, self._memory, decoding, self._key("select_cursor"))
            self.query_one("#details", Static).update(Content(text))

    def _draw_job(self) -> None:
        job, place = self._jobs.current, self.query_one("#job", Static)
        place.display = job is not None
        if job is not None:
            if job.noted != self._noted:
                self._noted = job.noted
                self._say(job.noted)
            lines = job.lines(max(place.size.width, 20))
            place.update(Content("\n".join(line for line in lines if line)))

    def _say(self, text: str, *, failed: bool = False) -> None:
        place = self.query_one("#said", Static)
        place.set_class(failed, "failed")
        place.update(Content(f"! {one_line(text)}" if failed else one_line(text)))

    @property
    def _table(self) -> ModelTable:
        return self.query_one(ModelTable)

    # ------------------------------------------------------------------ getting and using

    @on(DataTable.RowSelected)
    def _chosen(self) -> None:
        model = self._table.model(self._table.highlighted)
        if model is None:
            return
        if model.usable:
            self._use(model.name)
        elif model.entry is None:
            self._say(f"{model.name} is damaged: remove it and get it again from its source.")
        elif not self._is_busy():
            self._ask_and_get(model)

    @work(exclusive=True, group="ask")
    async def _ask_and_get(self, model: Choosable) -> None:
        """Get a model; where it is too large for this machine only when that is confirmed."""
        too_big = self._memory and machine.fit(model.needed, self._memory) == "too big"
        if too_big and not await self.app.push_screen_wait(
            ConfirmScreen(
                f"{model.name} needs more memory than there is here, so it will be very slow if "
                f"it runs at all. Download {size(model.size)} nevertheless?",
                title="Too big",
                yes="Download",
                no="Leave it",
            )
        ):
            return
        self._begin("get", model.name, model.name)

    @on(Input.Submitted)
    def _source_given(self, event: Input.Submitted) -> None:
        text, _, rename = event.value.strip().partition(" as ")
        text = text.strip()
        if not text or self._is_busy():
            return
        try:
            folder = Path(text).expanduser()
            if (folder / "stem.json").is_file():
                self._leave_with(str(folder))
                return
            name = store.check_name(rename.strip() or spec.parse(text).name)
        except StemError as error:
            self._say(str(error), failed=True)
            return
        except (OSError, ValueError, RuntimeError):  # a path that no file system could have
            self._say("That is neither a path nor a name that a model can have.", failed=True)
            return
        event.input.clear()
        self._table.focus()
        self._begin("get", text, name, rename=name)

    @work(thread=True, exclusive=True, group="use")
    def _use(self, name: str) -> None:
        try:
            model = store.find(name)
        except OSError as error:
            self._then(self._say, sentence(error), failed=True)
        else:
            there = model is not None and model.damage is None
            self._then(self._leave_with if there else self._missing, name)

    def _missing(self, name: str) -> None:
        self._say(f"{name} is no longer there: another program removed it.", failed=True)
        self._reload()

    # ------------------------------------------------------------------ calibrating, removing

    def action_calibrate(self) -> None:
        model = self._table.model(self._table.highlighted)
        if model is None or self._is_busy():
            return
        if not model.usable:
            self._say(f"{model.name} must be installed before it can be calibrated.")
        elif self._answering():
            self._say("Calibrating measures speeds: stop the answer, or wait for its end, first.")
        else:
            self._begin("calibrate", model.name, model.name)

    @work(exclusive=True, group="ask")
    async def action_remove(self) -> None:
        model = self._table.model(self._table.highlighted)
        if model is None:
            return
        if model.installed is None:
            self._say(f"{model.name} is not installed.")
        elif model.name == self._in_use:
            self._say(f"{model.name} is in use: use another model before you remove it.")
        elif await self.app.push_screen_wait(
            ConfirmScreen(
                f"Delete {model.name} ({size(model.installed.size)}) from this machine?",
                title="Remove a model",
                yes="Delete",
                no="Keep",
            )
        ):
            self._remove(model.name)

    @work(thread=True, group="remove")
    def _remove(self, name: str) -> None:
        try:
            said, failed = f"{name} was deleted: {size(store.remove(name).size)} are free.", False
        except (StemError, OSError) as error:
            said, failed = sentence(error), True
        self._then(self._say, said, failed=failed)
        self._then(self._reload)

    # ------------------------------------------------------------------ work in the background

    def _begin(self, kind: Kind, target: str, name: str, rename: str | None = None) -> None:
        self._say("")
        self._noted = ""
        self._jobs.start(kind, target, name, rename, learns=self._learns)
        self._draw_job()
        self.refresh_bindings()

    def _is_busy(self) -> bool:
        """Whether something is being done already, which is told then."""
        job = self._jobs.current
        if job is not None:
            self._say(
                f"One thing at a time: {job.name} comes first ({self._key('cancel')} cancels)."
            )
        return job is not None

    def action_cancel(self) -> None:
        self._jobs.cancel()
        self._draw_job()

    def _ended(self, job: Job) -> None:
        self._draw_job()
        self.refresh_bindings()
        if job.kind == "calibrate" and job.installed == self._in_use:
            self._in_use_changed = True
        if self._first_run and job.installed and self.is_current:
            self.dismiss(job.installed)
            return
        self._say(job.said, failed=job.failed)
        self._reload(job.installed)

    # ------------------------------------------------------------------ leaving

    def action_source(self) -> None:
        self.query_one(Input).focus()

    def action_leave(self) -> None:
        if isinstance(self.focused, Input):
            self._table.focus()
        else:
            self._leave_with(self._in_use if self._in_use_changed else None)

    def _leave_with(self, name: str | None) -> None:
        job = self._jobs.current
        if job is not None and job.measures:
            self._say(
                "Calibrating measures speeds, so nothing else can be done meanwhile: wait for it, "
                f"or cancel it ({self._key('cancel')})."
            )
        elif self.is_current:
            # what ends from now on is told by the app, not by a screen that is being closed
            self._stop_listening()
            self.dismiss(name)

    def _key(self, action: str) -> str:
        """The key that an action has now, which people can change."""
        found = [b for b in self.active_bindings.values() if b.binding.action == action]
        return self.app.get_key_display(found[0].binding) if found else action
