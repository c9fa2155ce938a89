"""Getting and calibrating models in the background, one at a time, for as long as the app runs."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary, proxy

from textual.app import App
from textual.worker import get_current_worker

from stem_local.errors import Cancelled, StemError
from stem_local.progress import LEARN, learning
from stem_local.units import size
from stem_tui.widgets.figures import bar

from .dialog import one_line

Kind = Literal["get", "calibrate"]

_BYTES = {"download": "Downloading", "pack": "Packing"}
"""The steps that are counted in bytes, as `Reporter.update` names them."""


def _yes() -> bool:
    return True


@dataclass(slots=True, eq=False)
class Job:
    """Work on one model. Written by the worker's thread, read by the screen.

    `target` is what was asked for, a spec or an installed name, and `name` what to call it. `noted`
    is the last thing worth telling. `done` of `total` are those of `step`, which began at `since`
    with `first`. Once it has ended, `said`
    tells how, `failed` is set if that was with an error, and `installed` is the name of a model
    that is there now.
    """

    kind: Kind
    target: str
    name: str
    step: str = ""
    done: int = 0
    total: int = 0
    since: float = 0.0
    first: int = 0
    noted: str = ""
    said: str = ""
    failed: bool = False
    installed: str | None = None
    begun: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def measures(self) -> bool:
        """Whether speeds are being measured, so that the engine must not work meanwhile."""
        return self.kind == "calibrate" or self.step == LEARN

    def note(self, text: str) -> None:
        self.noted = one_line(text)

    def update(self, step: str, done: int, total: int) -> None:
        if step != self.step:
            self.step, self.since, self.first = step, time.monotonic(), done
        self.done, self.total = done, total

    def lines(self, width: int) -> tuple[str, str]:
        """What is being done and how far it is, in words, and as a bar of that width."""
        if self.cancelled.is_set():
            return f"Cancelling the work on {self.name} ...", ""
        if not self.total:
            doing = "Getting" if self.kind == "get" else "Calibrating"
            return f"{doing} {self.name} ...", ""
        share = self.done / self.total
        if self.step == LEARN:
            text = learning(self.done, self.total)
        elif self.step in _BYTES:
            amount = f"{_BYTES[self.step]} {self.name}: {size(self.done)} of {size(self.total)}"
            text = f"{amount}{self._pace()}"
        else:
            spent = _time(time.monotonic() - self.begun)
            text = f"Calibrating {self.name}: {self.step.lower()}, {spent} so far"
        return text, f"{bar(share, width - 5)} {share:4.0%}"

    def _pace(self) -> str:
        passed, come = time.monotonic() - self.since, self.done - self.first
        if passed < 1 or not come or self.done >= self.total:
            return ""
        left = (self.total - self.done) * passed / come
        return f", {size(come / passed)}/s, {_time(left)} left"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class ModelJobs:
    """The work on models of one app. It goes on when the screen that began it is left.

    `ended` is called with each job that ends, on the app's own thread, while a screen listens;
    otherwise the app tells how it ended.
    """

    _all: ClassVar[WeakKeyDictionary[App[Any], ModelJobs]] = WeakKeyDictionary()

    def __init__(self, app: App[Any]) -> None:
        self._app: App[Any] = proxy(app)
        self.current: Job | None = None
        self.ended: Callable[[Job], None] | None = None

    @classmethod
    def of(cls, app: App[Any]) -> ModelJobs:
        """The jobs of this app, however many screens come and go."""
        if app not in cls._all:
            cls._all[app] = cls(app)
        return cls._all[app]

    def start(
        self,
        kind: Kind,
        target: str,
        name: str,
        rename: str | None = None,
        learns: Callable[[], bool] = _yes,
    ) -> Job:
        """Begin to get or to calibrate a model; call it when nothing is being done.

        `rename` is what a model is installed as, None for the name that its source gives it.
        `learns` is asked, in a thread, whether a model that was got may be calibrated then.
        """
        job = self.current = Job(kind, target, name)
        self._app.run_worker(
            lambda: self._run(job, rename, learns), thread=True, group="models", exit_on_error=False
        )
        return job

    def cancel(self) -> None:
        if self.current is not None:
            self.current.cancelled.set()

    def _run(self, job: Job, rename: str | None, learns: Callable[[], bool]) -> None:
        worker = get_current_worker()

        def asked() -> bool:
            return job.cancelled.is_set() or worker.is_cancelled

        try:
            if job.kind == "get":
                _get(job, rename, asked, learns)
            else:
                _calibrate(job, asked)
        except Cancelled as error:
            job.said = one_line(str(error))
        except Exception as error:
            job.said, job.failed = sentence(error), True
        if not worker.is_cancelled:
            self._app.call_from_thread(self._end, job)

    def _end(self, job: Job) -> None:
        self.current = None
        if self.ended is not None:
            self.ended(job)
        else:
            self._app.notify(
                job.said, severity="error" if job.failed else "information", markup=False
            )


def _get(
    job: Job, rename: str | None, asked: Callable[[], bool], learns: Callable[[], bool]
) -> None:
    from stem_local.hub import pull
    from stem_local.learning import learn

    model = pull(job.target, name=rename, progress=job, calibrate=False, cancel=asked)
    job.said = f"{model.name} is installed ({size(model.size)})."
    if learns():
        noted = job.noted
        learn(model, job, asked)
        if job.noted != noted:
            job.said = job.noted
    job.installed = model.name


def _calibrate(job: Job, asked: Callable[[], bool]) -> None:
    from stem_local.calibration import calibrate

    calibrate(job.target, notify=job.note, progress=job.update, cancel=asked)
    job.installed = job.target
    job.said = f"{job.name} is calibrated."


def sentence(error: BaseException) -> str:
    """What went wrong and what to do about it, for people, of any exception."""
    if isinstance(error, StemError):
        return one_line(str(error))
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full: make room and try again; what was downloaded is kept."
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return one_line(f"{error.strerror or error}{where}; put that right and try again.")
    if isinstance(error, MemoryError):
        return "There is not enough memory for this: close other programs and try again."
    return one_line(f"{type(error).__name__}: {error} (a fault of this program; try again)")
