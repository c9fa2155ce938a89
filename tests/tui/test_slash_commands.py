"""Every slash command, run against a chat that keeps what it was asked."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyperclip
import pytest
from textual.app import ComposeResult
from textual.pilot import Pilot
from textual.screen import Screen

from stem_local.chat_settings import ChatSettings
from stem_local.errors import UsageError
from stem_local.history import Entry, History
from stem_tui import slash
from stem_tui.screens.confirm import ConfirmScreen
from stem_tui.screens.help import HelpScreen
from stem_tui.screens.prompt import PromptScreen
from stem_tui.slash import stats
from stem_tui.widgets.composer import Composer
from stem_tui.widgets.transcript import Transcript

from .conftest import STATS, Host, run_app

ANSWER = "Two ways:\n\n```python\nprint(1)\n```\n\nor\n\n```python\nprint(2)\n```\n"


class Chat(Screen[None]):
    """The part of a chat screen that commands act through."""

    answering = False
    model_name = "smollm2-135m"

    def __init__(self) -> None:
        super().__init__()
        self.history = History.in_memory()
        self.conversation: int | None = None
        self.settings = ChatSettings()
        self.done: list[Any] = []
        self.told: list[tuple[str, str]] = []
        self.page = ("", "")
        self.saved_again = 0

    def compose(self) -> ComposeResult:
        yield Transcript()
        yield Composer()

    async def kept(self, change: Callable[[Any], Any]) -> Any:
        return change(SimpleNamespace(id=self.conversation, history=self.history))

    @property
    def composer(self) -> Composer:
        return self.query_one(Composer)

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    def change(self, settings: ChatSettings) -> None:
        self.settings = settings

    def tell(self, text: str, severity: str = "information") -> None:
        self.told.append((text, severity))

    def show_text(self, title: str, markdown: str) -> None:
        self.page = (title, markdown)

    async def use_model(self, name: str) -> None:
        if name == "broken":
            raise UsageError("broken cannot be used.")
        self.done.append(("use", name))

    async def choose_model(self) -> None:
        self.done.append("choose model")

    async def choose_conversation(self, query: str = "") -> None:
        self.done.append(("choose", query))

    async def retitle(self) -> None:
        self.done.append("retitle")

    async def regenerate(self) -> None:
        self.done.append("regenerate")

    async def edit(self) -> None:
        self.done.append("edit")

    async def new_chat(self) -> None:
        self.done.append("new")

    async def open_conversation(self, conversation: int) -> None:
        if conversation > 1000:
            self.history.get(conversation)
        self.done.append(("open", conversation))

    def on_transcript_branch_requested(self, event: Transcript.BranchRequested) -> None:
        self.done.append(("branch", event.entry, event.step))

    def talk(self) -> None:
        """Have a question answered twice."""
        history, self.conversation = self.history, self.history.create({})
        question = history.add(self.conversation, None, "user", "How do I print?")
        for text in ("No idea.", ANSWER):
            answer = history.add(self.conversation, question.id, "assistant", text)
            history.update(answer.id, stats=STATS)


class Hosting(Host):
    """An app whose only screen is such a chat."""

    def __init__(self) -> None:
        super().__init__()
        self.chat = Chat()

    def on_mount(self) -> None:
        self.push_screen(self.chat)

    async def action_quit(self) -> None:
        self.chat.done.append("quit")

    async def save_again(self) -> None:
        self.chat.saved_again += 1


async def no_keys(_: Pilot[Any]) -> None:
    """Nothing is typed while the command runs."""


def after(
    *lines: str,
    talked: bool = False,
    prepare: Callable[[Chat], None] | None = None,
    then: Callable[[Pilot[Any]], Awaitable[None]] = no_keys,
) -> Chat:
    """The chat after each line was sent as a command."""
    app = Hosting()

    async def test(pilot: Pilot[Any]) -> None:
        if talked:
            app.chat.talk()
        if prepare is not None:
            prepare(app.chat)
        for line in lines:
            name, argument = slash.parse(line) or ("", "")
            worker = slash.start(app.chat, name, argument)  # type: ignore[arg-type]
            await pilot.pause()
            await then(pilot)
            await worker.wait()
            await pilot.pause()

    run_app(app, test)
    return app.chat


ASKED: Mapping[str, object] = {
    "/regen": "regenerate",
    "/retry": "regenerate",
    "/edit": "edit",
    "/clear": "new",
    "/new": "new",
    "/exit": "quit",
    "/model": "choose model",
    "/model qwen": ("use", "qwen"),
    "/load 7": ("open", 7),
    "/load": ("choose", ""),
    "/load print": ("choose", "print"),
    "/search how to": ("choose", "how to"),
}


def test_commands_ask_the_chat() -> None:
    chat = after(*ASKED)
    assert chat.done == list(ASKED.values())
    assert chat.told == []


WRONG = {
    "/model broken": "broken cannot be used.",
    "/nonsense": "There is no command /nonsense",
    "/theme drak": "There is no theme 'drak'",
    "/help nonsense": "There is no command /nonsense",
    "/set temprature 1": "temperature",
    "/set temprature": "temperature",
    "/set temperature hot": "temperature",
    "/sparsity 99%": "0.95",
    "/load 99999999999999999999": "too large",
    "/load " + "9" * 4400: "too large",
    "/stats": "no messages yet",
    "/copy": "no messages yet",
    "/save": "no messages yet",
    "/export": "no messages yet",
    "/delete": "no messages yet",
    "/branch next": "no messages yet",
    "/branch sideways": "/branch next and /branch previous",
    "/branch": "/branch previous|next",
    "/read": "/read FILE",
    "/read /no/such/file": "There is no file",
    "/import /no/such/file.json": "/no/such/file.json",
}


def test_what_goes_wrong_is_told() -> None:
    chat = after(*WRONG)
    for (told, severity), sentence in zip(chat.told, WRONG.values(), strict=True):
        assert sentence in told
        assert severity in ("warning", "error")
    assert chat.done == []
    assert chat.settings == ChatSettings()


def test_settings_are_changed() -> None:
    chat = after(
        "/set temperature 0.5",
        "/set TOP_K  40",
        "/set seed 7",
        "/set seed none",
        "/set context_policy drop oldest",
        "/sparsity 30%",
        "/system You are\nterse.",
    )
    assert chat.settings == ChatSettings(
        temperature=0.5,
        top_k=40,
        seed=None,
        context_policy="drop_oldest",
        sparsity=0.3,
        system="You are\nterse.",
    )
    assert [told for told, _ in chat.told][2:4] == ["seed is 7 now.", "seed is none now."]
    assert {severity for _, severity in chat.told} == {"information"}


def test_settings_are_shown() -> None:
    chat = after("/set", "/set top_k", "/sparsity")
    title, page = chat.page
    assert title == "Settings of this chat"
    for name, _, _ in ChatSettings().describe():
        assert f"- **{name}** `" in page
    assert chat.told[0][0].startswith("top_k is ")
    assert chat.told[1][0].startswith("sparsity is auto")


def test_the_system_prompt_is_shown_and_taken_away() -> None:
    def prompt(chat: Chat) -> None:
        chat.settings = ChatSettings(system="Be *brief*.\n```")

    assert after("/system", prepare=prompt).page[1] == "    Be *brief*.\n    ```"
    assert after("/system none", prepare=prompt).settings.system == ""
    assert after("/system").page[1] == "There is none."


def test_a_page_of_settings_survives_any_system_prompt() -> None:
    def prompt(chat: Chat) -> None:
        chat.settings = ChatSettings(system="a `b`\n# c")

    assert "- **system** `a 'b' # c`" in after("/set", prepare=prompt).page[1]


def test_help_opens_the_page_of_keys_and_commands() -> None:
    seen: list[Any] = []

    async def look(pilot: Pilot[Any]) -> None:
        seen.append(pilot.app.screen)

    after("/help", then=look)
    assert isinstance(seen[0], HelpScreen)


def test_help_tells_about_one_command() -> None:
    ((told, _),) = after("/help /REGEN").told
    assert told == "/regen, /retry: answer the last message again"


def test_themes_are_changed() -> None:
    seen: list[str] = []

    async def look(pilot: Pilot[Any]) -> None:
        seen.append(pilot.app.theme)

    after("/theme textual-light", then=look)
    assert seen == ["textual-light"]


def test_the_last_answer_is_explained() -> None:
    title, page = after("/stats", talked=True).page
    assert title == "The last answer"
    assert "- **speed**: 254 tok/s\n" in page
    assert "- **active**: 112M of 135M (83%) a token\n" in page
    assert "60 tokens, 20 of them known already" in page
    assert "- **steps**" not in page


def test_what_drafts_did_is_explained() -> None:
    figures = {"tokens_per_step": 1.75, "drafted_tokens": 1200, "accepted_tokens": 90}
    line = "- **steps**: 1.8 tokens a step (90 of 1,200 drafted tokens held)"
    assert line in stats.page(figures).splitlines()


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"model": "a|b\n`c", "tokens_per_second": "fast", "layer_active_fraction": [None, 1e400]},
        {"total_parameters": 0, "active_parameters": True, "completion_tokens": -1},
    ],
)
def test_figures_of_any_origin_are_shown(figures: Mapping[str, Any]) -> None:
    page = stats.page(figures)
    assert all(line.startswith("- **") for line in page.splitlines())
    assert "`" not in page.replace("\\`", "")


def test_parts_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    monkeypatch.setattr(pyperclip, "copy", copied.append)
    chat = after("/copy", "/copy answer", "/copy code", "/copy ALL", talked=True)
    whole = f"You:\n\nHow do I print?\n\nAnswer:\n\n{ANSWER}"
    assert copied == [ANSWER, ANSWER, "print(2)", whole]
    assert all("in the clipboard" in told for told, _ in chat.told)


def test_what_is_not_there_is_not_copied() -> None:
    def ask(chat: Chat) -> None:
        chat.conversation = chat.history.create({})
        chat.history.add(chat.conversation, None, "user", "Hi")

    def talk(chat: Chat) -> None:
        ask(chat)
        assert chat.conversation is not None
        chat.history.add(chat.conversation, None, "assistant", "No code.")

    assert "no answer to copy" in after("/copy", prepare=ask).told[0][0]
    assert "no block of code" in after("/copy code", prepare=talk).told[0][0]
    assert "answer, code or all" in after("/copy some", prepare=talk).told[0][0]


def test_branches_are_gone_through() -> None:
    chat = after("/branch previous", talked=True)
    answer = chat.history.get(1).entries[-1]
    assert answer.branch == (2, 2)
    assert chat.done == [("branch", answer.id, -1)]


def test_a_chat_without_branches_says_so() -> None:
    def ask(chat: Chat) -> None:
        chat.conversation = chat.history.create({})
        chat.history.add(chat.conversation, None, "user", "Hi")

    assert "has no branches" in after("/branch next", prepare=ask).told[0][0]


def test_a_chat_is_named() -> None:
    chat = after("/save Printing", talked=True)
    assert chat.history.get(1).info.title == "Printing"
    assert "nothing is saved" in chat.told[0][0]


def test_a_saved_chat_is_told_where_to_find() -> None:
    def keep(chat: Chat) -> None:
        chat.history = History.open()
        chat.talk()

    chat = after("/rename  Printing\n things", prepare=keep)
    ((told, _),) = chat.told
    assert told == "Saved as “Printing things”, as it goes; /load 1 opens it."
    assert chat.done == ["retitle"]


def test_saving_is_tried_again() -> None:
    assert after("/save", talked=True).saved_again == 1


@pytest.mark.parametrize(("key", "left"), [("y", 0), ("n", 1)])
def test_deleting_asks_first(key: str, left: int) -> None:
    async def answer(pilot: Pilot[Any]) -> None:
        await pilot.pause()
        assert isinstance(pilot.app.screen, ConfirmScreen)
        await pilot.press(key)

    chat = after("/delete", talked=True, then=answer)
    assert len(chat.history.conversations()) == left
    assert chat.done == ["new"] * (1 - left)


def test_a_chat_that_is_being_answered_is_not_deleted() -> None:
    def answer(chat: Chat) -> None:
        chat.answering = True

    chat = after("/delete", talked=True, prepare=answer)
    assert "stop it first" in chat.told[0][0]
    assert len(chat.history.conversations()) == 1


def test_a_file_is_attached(tmp_path: Path) -> None:
    file = tmp_path / "two words.txt"
    file.write_text("x" * 2000)
    seen: list[str] = []

    async def look(pilot: Pilot[Any]) -> None:
        await pilot.app.workers.wait_for_complete()
        composer = pilot.app.screen.query_one(Composer)
        seen.extend(attachment.name for attachment in composer.attachments)

    escaped = str(file).replace(" ", "\\ ") if os.sep == "/" else file
    chat = after(f"/read {file}", f"/read '{file}'", f"/read {escaped}", then=look)
    assert seen[-3:] == ["two words.txt"] * 3
    assert "two words.txt (2 kB) goes along" in chat.told[0][0]
    assert len(chat.told) == 3


def test_a_chat_is_written_and_taken_in(tmp_path: Path) -> None:
    text, data = tmp_path / "chat.md", tmp_path / "chat.json"
    chat = after(f"/export {text}", f"/export {data}", f"/import {data}", talked=True)
    assert "How do I print?" in text.read_text()
    assert str(text) in chat.told[0][0]
    assert json.loads(data.read_text())
    assert chat.done == [("open", 2)]
    assert chat.history.get(2).entries[0].content == "How do I print?"


def test_paths_that_lead_nowhere_are_told() -> None:
    chat = after(
        f"/export {'x' * 5000}.md",
        "/export /no/such/folder/chat.md",
        "/export ~no-such-user/chat.md",
        f"/import {'x' * 5000}",
        "/import ~no-such-user/chat.json",
        "/read ~no-such-user/notes.txt",
        talked=True,
    )
    assert len(chat.told) == 6
    assert {severity for _, severity in chat.told} == {"warning"}
    assert chat.done == []


def test_a_disk_that_fails_does_not_end_the_chat() -> None:
    async def fail(query: str) -> None:
        raise OSError(5, f"Input/output error {query}")

    def breaking(chat: Chat) -> None:
        chat.choose_conversation = fail  # type: ignore[assignment]

    chat = after("/search x", prepare=breaking)
    assert chat.told == [("/search could not be done: Input/output error x.", "error")]


def test_files_are_asked_for_where_none_is_named() -> None:
    async def leave(pilot: Pilot[Any]) -> None:
        await pilot.pause()
        assert isinstance(pilot.app.screen, PromptScreen)
        await pilot.press("escape")

    assert after("/export", talked=True, then=leave).told == []
    assert after("/import", then=leave).done == []


def test_code_is_found_in_every_kind_of_block() -> None:
    from stem_tui.slash.copying import code_blocks

    text = "~~~\na\n\nb\n~~~\n\n- in a list:\n\n  ```\n  c\n  ```\n\n    d\n\nend\n\n    e\n"
    assert list(code_blocks(text))[:2] == ["a\n\nb", "c"]
    assert list(code_blocks(text))[-1] == "e"
    assert list(code_blocks("`no`")) == []


def test_only_the_shown_branch_is_copied() -> None:
    from stem_tui.slash.copying import chosen

    entries = [Entry(1, None, "user", "q", 0.0), Entry(2, 1, "assistant", "a", 0.0)]
    assert chosen(entries, "") == ("a", "the answer")
