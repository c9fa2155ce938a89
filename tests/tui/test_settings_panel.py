"""The settings panel: what is typed, chosen and slid becomes settings, or a sentence why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from textual.pilot import Pilot
from textual.widgets import Input, Static, TextArea

from stem_local.chat_settings import ChatSettings
from stem_local.errors import UsageError
from stem_local.sparsity import MOST
from stem_tui.widgets.choices import Choices
from stem_tui.widgets.settings_panel import TYPED, SettingsPanel
from stem_tui.widgets.sparsity_slider import SparsityControl, SparsitySlider

from .conftest import Host, run_app, shown


class Panelled(Host):
    """An app with the panel, the focus in its first field, and what it was told."""

    def __init__(self, start: ChatSettings | None = None, **options: Any) -> None:
        self.panel = SettingsPanel(start or ChatSettings(), **options)
        self.told: list[ChatSettings] = []
        self.closed = 0
        super().__init__(self.panel)

    def on_settings_panel_changed(self, event: SettingsPanel.Changed) -> None:
        self.told.append(event.settings)

    def on_settings_panel_closed(self) -> None:
        self.closed += 1

    def field(self, name: str) -> Input:
        return next(field for field in self.panel.query(Input) if field.name == name)


def told(app: Panelled, *keys: str) -> list[ChatSettings]:
    """What the panel posts for these keys, pressed in the first field."""

    async def session(pilot: Pilot[object]) -> list[ChatSettings]:
        app.panel.focus()
        await pilot.pause()
        await pilot.press(*keys)
        await pilot.pause()
        return app.told

    return run_app(app, session)


def test_every_setting_of_a_chat_has_a_place() -> None:
    app = Panelled()

    async def session(pilot: Pilot[object]) -> set[str]:
        await pilot.pause()
        names = {widget.name for widget in app.panel.query("Input, TextArea, Choices")}
        return {name for name in names if name}

    assert run_app(app, session) == {field.name for field in fields(ChatSettings)}


def test_it_shows_what_it_is_given() -> None:
    given = ChatSettings(
        system="Be brief.", sparsity=0.4, context_policy="drop_oldest", temperature=0.1, seed=7
    )

    async def session(pilot: Pilot[object]) -> str:
        await pilot.pause()
        return shown(pilot.app)

    app = Panelled(given)
    seen = run_app(app, session, size=(80, 40))
    for text in ("Be brief.", "(•) a share", "40%", "(•) drop old turns", "(  ) stop"):
        assert text.replace("(  )", "( )") in seen
    for name, value in (("temperature", "0.1"), ("seed", "7"), ("top_k", "40"), ("quality", "1%")):
        assert any(row.split()[1:3] == [name, value] for row in seen.split("\n"))
    assert app.told == []


def test_the_system_prompt_counts_as_it_is_written() -> None:
    assert [s.system for s in told(Panelled(), "h", "i", "enter", "o")] == [
        "h",
        "hi",
        "hi\n",
        "hi\no",
    ]


def test_numbers_count_as_they_are_typed() -> None:
    typed = {
        "quality": ("5%", 0.05),
        "max_tokens": ("64", 64),
        "temperature": ("1.5", 1.5),
        "top_k": ("3", 3),
        "top_p": ("0.5", 0.5),
        "min_p": ("0", 0.0),
        "repetition_penalty": ("1.1", 1.1),
        "seed": ("42", 42),
    }
    app = Panelled()

    async def session(pilot: Pilot[object]) -> None:
        for name, (text, _) in typed.items():
            app.field(name).value = text
        app.field("seed").value = ""
        app.field("seed").focus()
        await pilot.press("4", "2")
        await pilot.pause()

    run_app(app, session)
    assert tuple(typed) == TYPED
    assert app.told[-1] == ChatSettings(**{name: value for name, (_, value) in typed.items()})
    assert app.panel.problems == {}


def test_what_cannot_be_used_says_why_and_does_not_count() -> None:
    app = Panelled()

    async def session(pilot: Pilot[object]) -> None:
        field = app.field("top_p")
        field.focus()
        await pilot.press("end", "x")
        await pilot.pause()
        assert app.told == []
        assert app.panel.problems["top_p"].startswith("top_p must be a number")
        assert "! top_p must be a number above" in shown(app)
        assert "! top_p      " in shown(app)
        await pilot.press("backspace")
        await pilot.pause()
        assert app.panel.problems == {}
        assert "! top_p" not in shown(app)
        assert "Choose among the likeliest" in shown(app)
        assert app.told == []

    run_app(app, session)


def test_one_bad_field_does_not_hold_up_the_others() -> None:
    app = Panelled()

    async def session(pilot: Pilot[object]) -> None:
        app.field("top_k").value = "many"
        app.field("top_p").value = "0.5"
        await pilot.pause()
        assert [settings.top_p for settings in app.told] == [0.5]
        assert list(app.panel.problems) == ["top_k"]

    run_app(app, session)


def test_whatever_is_typed_counts_or_is_refused() -> None:
    app = Panelled()

    async def session(pilot: Pilot[object]) -> None:
        await pilot.pause()

        @settings(max_examples=60)
        @given(st.sampled_from(TYPED), st.text(max_size=8) | st.floats().map(str))
        def typed(name: str, text: str) -> None:
            before = app.panel.settings
            app.panel._take(name, text)
            try:
                assert app.panel.settings == before.with_text(name, text)
            except UsageError as error:
                assert app.panel.settings == before
                assert app.panel.problems[name] == str(error)
            else:
                assert name not in app.panel.problems

        typed()

    run_app(app, session)


def test_the_keys_choose_what_happens_when_the_context_is_full() -> None:
    app = Panelled()

    async def session(pilot: Pilot[object]) -> list[str]:
        next(c for c in app.panel.query(Choices) if c.name == "context_policy").focus()
        await pilot.press("right", "left", "space")
        await pilot.pause()
        return [settings.context_policy for settings in app.told]

    assert run_app(app, session) == ["drop_oldest", "stop", "drop_oldest"]


def test_the_keys_set_the_sparsity() -> None:
    app = Panelled()

    async def session(pilot: Pilot[object]) -> list[object]:
        app.panel.query_one(SparsityControl).query_one(Choices).focus()
        await pilot.press("left", "left", "tab", "right", "left", "home", "minus", "end", "plus")
        await pilot.pause()
        return [settings.sparsity for settings in app.told]

    assert run_app(app, session) == ["off", 0.3, 0.35, 0.3, 0.0, MOST]


def test_the_slider_takes_the_share_when_it_is_moved() -> None:
    app = Panelled()

    async def session(pilot: Pilot[object]) -> str:
        app.panel.query_one(SparsitySlider).focus()
        await pilot.press("right")
        await pilot.pause()
        return shown(app)

    seen = run_app(app, session)
    assert [settings.sparsity for settings in app.told] == [0.35]
    assert "(•) a share" in seen
    assert "▸ ━" in seen


def test_the_mouse_sets_the_sparsity() -> None:
    app = Panelled()

    async def session(pilot: Pilot[object]) -> list[object]:
        choices = app.panel.query_one(SparsityControl).query_one(Choices)
        slider = app.panel.query_one(SparsitySlider)
        await pilot.click(choices, offset=(4, 0))
        await pilot.click(slider, offset=(2, 0))
        await pilot.mouse_down(slider, offset=(10, 0))
        await pilot.hover(slider, offset=(slider.size.width - 6, 0))
        await pilot.mouse_up(slider, offset=(slider.size.width - 6, 0))
        await pilot.hover(slider, offset=(5, 0))
        await pilot.pause()
        assert app.mouse_captured is None
        return [settings.sparsity for settings in app.told]

    seen = run_app(app, session)
    assert (seen[0], seen[1], seen[-1]) == ("off", 0.0, 0.9)
    assert len(seen) == 4


def test_the_mouse_chooses_by_the_label() -> None:
    choices = Choices([("a", "one"), ("b", "the other")], "a")
    taken: list[str] = []

    class Chosen(Host):
        def on_choices_changed(self, event: Choices.Changed) -> None:
            taken.append(event.value)

    async def session(pilot: Pilot[object]) -> None:
        for x in (0, 11, 22, 9, 2, 8):
            await pilot.click(choices, offset=(x, 0))

    run_app(Chosen(choices), session)
    assert taken == ["b", "a"]


def test_loading_posts_nothing_and_clears_what_was_wrong() -> None:
    app = Panelled()

    async def session(pilot: Pilot[object]) -> None:
        app.field("top_k").value = "many"
        await pilot.pause()
        app.panel.load(ChatSettings(system="Other", sparsity=0.123456, quality=0.0123456789))
        await pilot.pause()
        assert app.told == []
        assert app.panel.problems == {}
        assert app.field("top_k").value == "40"
        assert app.panel.query_one(TextArea).text == "Other"
        await pilot.pause()
        assert app.panel.settings.quality == 0.0123456789

    run_app(app, session)


def test_being_told_late_what_was_typed_loses_nothing() -> None:
    app = Panelled()

    async def session(pilot: Pilot[object]) -> None:
        app.panel.focus()
        await pilot.press("a", "b")
        app.field("top_k").value = "many"
        await pilot.pause()
        for posted in app.told:
            app.panel.load(posted)
        await pilot.press("c")
        await pilot.pause()
        assert app.panel.query_one(TextArea).text == "abc"
        assert app.field("top_k").value == "many"
        # from elsewhere the same settings count again
        first = app.told[0]
        app.panel.load(ChatSettings())
        app.panel.load(first)
        await pilot.pause()
        assert app.panel.query_one(TextArea).text == "a"

    run_app(app, session)


def test_it_can_be_loaded_before_it_is_shown() -> None:
    app = Panelled()
    app.panel.load(ChatSettings(top_k=5))

    async def session(pilot: Pilot[object]) -> str:
        await pilot.pause()
        return app.field("top_k").value

    assert run_app(app, session) == "5"


def test_defaults_bring_back_all_but_the_prompt() -> None:
    defaults = ChatSettings(temperature=0.2)
    start = ChatSettings(system="Stay", temperature=1.0, sparsity="off", top_k=1)
    app = Panelled(start, defaults=defaults)
    assert told(app, "f5", "f5") == [ChatSettings(system="Stay", temperature=0.2)]


def test_escape_leaves_the_panel() -> None:
    app = Panelled()
    told(app, "escape")
    assert app.closed == 1


def test_the_setting_that_has_the_focus_is_explained() -> None:
    app = Panelled()

    async def session(pilot: Pilot[object]) -> list[str]:
        seen = []
        for widget in (app.panel, app.field("top_p"), app.panel.query_one(SparsitySlider)):
            widget.focus()
            await pilot.pause()
            seen.append(str(app.panel.query_one(".help", Static).content))
        return seen

    helps = run_app(app, session)
    assert [text.split()[0] for text in helps] == ["System", "Choose", "What"]


def test_everything_can_be_reached_with_tab_at_the_smallest_size() -> None:
    app = Panelled()

    async def session(pilot: Pilot[object]) -> list[str | None]:
        app.panel.focus()
        names = []
        for _ in range(13):
            focused = app.focused
            assert focused is not None
            await pilot.pause()
            assert app.panel.region.contains_region(focused.region)
            names.append(focused.name)
            await pilot.press("tab")
        return names

    names = run_app(app, session)
    assert names == ["system", "sparsity", "sparsity", "context_policy", *TYPED, "system"]


def test_it_looks_as_it_did(theme: str, snap_compare: Callable[..., bool]) -> None:
    panel = SettingsPanel(ChatSettings(system="Be brief.", sparsity=0.4))

    async def act(pilot: Pilot[object]) -> None:
        next(field for field in panel.query(Input) if field.name == "top_k").value = "many"
        panel.query_one(SparsitySlider).focus()
        await pilot.pause()

    assert snap_compare(Host(panel, theme=theme), run_before=act)
