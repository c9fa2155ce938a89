"""Every slash command and every key of the chat, tried in the app with a scripted model."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pyperclip
import pytest

from stem_tui import slash
from stem_tui.binding_table import remappable
from stem_tui.screens.conversations import ConversationsScreen
from stem_tui.screens.help import HelpScreen
from stem_tui.screens.models import ModelsScreen
from stem_tui.screens.page import PageScreen

from .chatting import Chatting, run_chat
from .fake_model import Scripted

CODE = "Look:\n\n```python\nprint(1)\n```\n"

Try = Callable[[Chatting], Awaitable[None]]


@pytest.fixture
def model(tmp_path: Path) -> Scripted:
    return Scripted(tmp_path)


@pytest.fixture(autouse=True)
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was put into the system's clipboard."""
    texts: list[str] = []
    monkeypatch.setattr(pyperclip, "copy", texts.append)
    return texts


async def opens(chatting: Chatting, line: str, screen: type) -> None:
    await chatting.send(line)
    await chatting.until(lambda: isinstance(chatting.app.screen, screen))
    await chatting.press("escape")
    await chatting.until(lambda: chatting.app.screen is chatting.chat)


async def help_(chatting: Chatting) -> None:
    await opens(chatting, "/help", HelpScreen)
    await chatting.send("/help set")
    await chatting.until(lambda: "/set [NAME [VALUE]]" in chatting.told)


async def theme(chatting: Chatting) -> None:
    await chatting.send("/theme stem-light")
    await chatting.until(lambda: chatting.app.theme == "stem-light")
    await chatting.send("/theme stem-lihgt")
    await chatting.until(lambda: "did you mean stem-light" in chatting.told)


async def exit_(chatting: Chatting) -> None:
    await chatting.send("/exit")
    await chatting.until(lambda: not chatting.app.is_running or chatting.app._exit)


async def regen(chatting: Chatting) -> None:
    await chatting.ask("Hi")
    await chatting.send("/regen")
    await chatting.until(lambda: chatting.entries[-1].branch == (2, 2))
    await chatting.until(lambda: not chatting.chat.answering)
    assert chatting.said == ["Hi", chatting.model.reply]


async def edit(chatting: Chatting) -> None:
    await chatting.ask("Hi")
    await chatting.send("/edit")
    await chatting.until(lambda: chatting.chat.composer.editing)
    assert chatting.chat.composer.text == "Hi"


async def branch(chatting: Chatting) -> None:
    await regen(chatting)
    await chatting.send("/branch previous")
    await chatting.until(lambda: chatting.entries[-1].branch == (1, 2))
    await chatting.send("/branch next")
    await chatting.until(lambda: chatting.entries[-1].branch == (2, 2))


async def copy(chatting: Chatting) -> None:
    await chatting.ask("Hi")
    await chatting.send("/copy code")
    await chatting.until(lambda: chatting.app.clipboard == "print(1)")
    await chatting.send("/copy")
    await chatting.until(lambda: chatting.app.clipboard == CODE)


async def clear(chatting: Chatting) -> None:
    await chatting.ask("Hi")
    await chatting.send("/clear")
    await chatting.until(lambda: not chatting.entries)
    assert len(chatting.chat.history.conversations()) == 1


async def save(chatting: Chatting) -> None:
    await chatting.ask("Hi")
    await chatting.send("/save A better name")
    await chatting.until(lambda: "A better name" in chatting.told)
    (info,) = chatting.chat.history.conversations()
    assert info.title == "A better name"
    await chatting.until(lambda: "· A better name" in chatting.screen)


async def load(chatting: Chatting) -> None:
    await chatting.ask("Hi")
    number = chatting.chat.conversation
    await clear_only(chatting)
    await chatting.send(f"/load {number}")
    await chatting.until(lambda: chatting.said == ["Hi", chatting.model.reply])
    await chatting.send("/load 999")
    await chatting.until(lambda: "999" in chatting.told)


async def clear_only(chatting: Chatting) -> None:
    await chatting.send("/clear")
    await chatting.until(lambda: not chatting.entries)


async def search(chatting: Chatting) -> None:
    await chatting.ask("Where is the zebra?")
    await clear_only(chatting)
    await chatting.send("/search zebra")
    await chatting.until(lambda: isinstance(chatting.app.screen, ConversationsScreen))
    await chatting.until(lambda: "1 found" in chatting.screen)
    await chatting.press("enter")
    await chatting.until(lambda: len(chatting.entries) == 2)


async def delete(chatting: Chatting) -> None:
    await chatting.ask("Hi")
    await chatting.send("/delete")
    await chatting.until(lambda: "cannot be undone" in chatting.screen)
    await chatting.press("y")
    await chatting.until(lambda: not chatting.entries)
    assert chatting.chat.history.conversations() == []


async def model_(chatting: Chatting) -> None:
    await opens(chatting, "/model", ModelsScreen)
    await chatting.send("/model other")
    await chatting.until(lambda: chatting.chat.model_name == "other")


async def system(chatting: Chatting) -> None:
    await chatting.send("/system Be brief.")
    await chatting.until(lambda: chatting.chat.settings.system == "Be brief.")
    await opens(chatting, "/system", PageScreen)
    await chatting.ask("Hi")
    await chatting.send("/system none")
    await chatting.until(lambda: chatting.chat.settings.system == "")


async def set_(chatting: Chatting) -> None:
    await chatting.send("/set temperature 0.2")
    await chatting.until(lambda: chatting.chat.settings.temperature == 0.2)
    await chatting.send("/set temperature hot")
    await chatting.until(lambda: "temperature must be" in chatting.told)
    await opens(chatting, "/set", PageScreen)


async def sparsity(chatting: Chatting) -> None:
    await chatting.send("/sparsity off")
    await chatting.until(lambda: chatting.chat.settings.sparsity == "off")
    await chatting.send("/sparsity 2")
    await chatting.until(lambda: "0.0 to 0.95" in chatting.told)


async def stats(chatting: Chatting) -> None:
    await chatting.send("/stats")
    await chatting.until(lambda: "no messages yet" in chatting.told)
    await chatting.ask("Hi")
    await opens(chatting, "/stats", PageScreen)


async def read(chatting: Chatting) -> None:
    await chatting.send("/read /nowhere/at/all.txt")
    await chatting.until(lambda: "/nowhere/at/all.txt" in chatting.told)


async def export(chatting: Chatting) -> None:
    await chatting.ask("Hi")
    target = Path(chatting.app.config.model or "") / "chat.json"
    await chatting.send(f"/export {target}")
    await chatting.until(target.exists)
    assert "Hi" in json.dumps(json.loads(target.read_text()))


async def import_(chatting: Chatting) -> None:
    await export(chatting)
    await clear_only(chatting)
    await chatting.send(f"/import {Path(chatting.app.config.model or '') / 'chat.json'}")
    await chatting.until(lambda: chatting.said == ["Hi", chatting.model.reply])
    assert len(chatting.chat.history.conversations()) == 2


COMMANDS: dict[str, Try] = {
    "help": help_,
    "theme": theme,
    "exit": exit_,
    "regen": regen,
    "edit": edit,
    "branch": branch,
    "copy": copy,
    "clear": clear,
    "save": save,
    "load": load,
    "search": search,
    "delete": delete,
    "model": model_,
    "system": system,
    "set": set_,
    "sparsity": sparsity,
    "stats": stats,
    "read": read,
    "export": export,
    "import": import_,
}


@pytest.mark.parametrize("name", slash.COMMANDS)
def test_every_command(
    name: str, model: Scripted, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from stem_local.config import Config

    model.reply = CODE
    # the scripted model takes any name, so that the folder for files can be told by it; a short
    # one leaves room for the chat's name beside it
    folder = tmp_path_factory.mktemp("f")
    run_chat(model, COMMANDS[name], config=Config(model=str(folder)))


async def quit_key(chatting: Chatting) -> None:
    await chatting.press("ctrl+q")
    await chatting.until(lambda: chatting.app._exit)


async def palette_key(chatting: Chatting) -> None:
    await chatting.press("ctrl+p")
    await chatting.until(lambda: "/help" in chatting.screen)


def screen_key(key: str, screen: type) -> Try:
    async def test(chatting: Chatting) -> None:
        await chatting.press(key)
        await chatting.until(lambda: isinstance(chatting.app.screen, screen))

    return test


async def settings_key(chatting: Chatting) -> None:
    await chatting.press("f4")
    await chatting.until(lambda: "Settings of this chat" in chatting.screen)
    await chatting.press("f4")
    await chatting.until(lambda: "Settings of this chat" not in chatting.screen)


async def new_key(chatting: Chatting) -> None:
    await chatting.ask("Hi")
    await chatting.press("ctrl+n")
    await chatting.until(lambda: not chatting.entries)


async def regenerate_key(chatting: Chatting) -> None:
    await chatting.ask("Hi")
    await chatting.press("ctrl+r")
    await chatting.until(lambda: chatting.entries[-1].branch == (2, 2))


async def stop_key(chatting: Chatting) -> None:
    await chatting.send_held("Hi")
    # from the messages it first leads back
    await chatting.press("ctrl+up", "escape", "escape")
    await chatting.let_go()
    assert chatting.entries[-1].state == "stopped"


async def page_keys(chatting: Chatting) -> None:
    for _ in range(4):
        await chatting.ask("Hi")
    bottom = chatting.chat.transcript.scroll_offset.y
    await chatting.press("pageup")
    await chatting.until(lambda: chatting.chat.transcript.scroll_offset.y < bottom)
    assert "more below" in chatting.screen
    await chatting.press("pagedown", "pagedown")
    await chatting.until(lambda: chatting.chat.transcript.scroll_offset.y == bottom)


async def select_key(chatting: Chatting) -> None:
    await chatting.ask("Hi")
    await chatting.press("ctrl+up")
    assert chatting.chat.transcript.selected == chatting.entries[-1].id
    await chatting.press("escape")
    assert chatting.chat.composer.area.has_focus


async def cycle_key(chatting: Chatting) -> None:
    await chatting.press("ctrl+t")
    # from auto a share would come, which needs calibration and is refused in words
    await chatting.until(lambda: "matter" in chatting.told)
    await chatting.press("f8")
    await chatting.until(lambda: chatting.chat.settings.sparsity in ("off", "auto"))


CHAT_KEYS: dict[str, Try] = {
    "app.palette": palette_key,
    "app.quit": quit_key,
    "chat.help": screen_key("f1", HelpScreen),
    "chat.models": screen_key("f2", ModelsScreen),
    "chat.conversations": screen_key("f3", ConversationsScreen),
    "chat.settings": settings_key,
    "chat.new": new_key,
    "chat.regenerate": regenerate_key,
    "chat.stop": stop_key,
    "chat.page_up": page_keys,
    "chat.page_down": page_keys,
    "chat.select": select_key,
    "meter.cycle": cycle_key,
    "meter.denser": cycle_key,
    "meter.sparser": cycle_key,
}


def chat_bindings() -> list[str]:
    return [name for name in remappable() if name.split(".")[0] in ("app", "chat", "meter")]


@pytest.mark.parametrize("name", chat_bindings())
def test_every_key_of_the_chat(name: str, model: Scripted) -> None:
    model.reply = CODE
    run_chat(model, CHAT_KEYS[name])


def test_the_palette_finds_commands_and_runs_them(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("Hi")
        await chatting.press("ctrl+p")
        await chatting.press(*"clear")
        await chatting.until(lambda: "/clear" in chatting.screen)
        await chatting.press("enter")
        await chatting.until(lambda: chatting.app.screen is chatting.chat)
        await chatting.until(lambda: not chatting.entries)

    run_chat(model, test)
