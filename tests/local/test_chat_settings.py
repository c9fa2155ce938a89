"""The settings of a chat: what may be typed, saved and read back."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_local.chat_settings import (
    ABOUT,
    MAX_SYSTEM,
    NAMES,
    POLICIES,
    ChatSettings,
    check_name,
    read_quality,
)
from stem_local.errors import UsageError
from stem_local.generate_options import ContextPolicy, Options
from stem_runtime.sampling import SamplingParams

SETTINGS = st.builds(
    ChatSettings,
    system=st.text(max_size=20),
    sparsity=st.one_of(st.sampled_from(["auto", "off"]), st.floats(0, 0.95)),
    quality=st.floats(0, 1),
    context_policy=st.sampled_from(["stop", "drop_oldest"]),
    max_tokens=st.integers(1, 1 << 24),
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 1 << 22),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.1, 10),
    seed=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)


def test_the_defaults_are_the_runtimes_own() -> None:
    assert Options.parse(ChatSettings().options(), "chat").sampling == SamplingParams()
    assert get_args(ContextPolicy) == POLICIES


def test_every_setting_is_described_once() -> None:
    assert tuple(ABOUT) == NAMES == tuple(field.name for field in fields(ChatSettings))
    described = ChatSettings(sparsity=0.3, seed=7).describe()
    assert [name for name, _, _ in described] == list(NAMES)
    values = {name: value for name, value, _ in described}
    assert (values["sparsity"], values["seed"], values["quality"]) == ("30%", "7", "1%")
    assert values["repetition_penalty"] == "1"


@settings(max_examples=60, deadline=None)
@given(SETTINGS)
def test_saved_settings_come_back(chat: ChatSettings) -> None:
    saved = json.loads(json.dumps(chat.to_dict()))
    assert ChatSettings.from_dict(saved) == chat
    Options.parse(chat.options(), "chat")


@settings(max_examples=60, deadline=None)
@given(SETTINGS)
def test_what_is_shown_can_be_typed(chat: ChatSettings) -> None:
    typed = ChatSettings()
    for name, value, _ in chat.describe():
        typed = typed.with_text(name, value)
    for name in NAMES:
        shown, wanted = getattr(typed, name), getattr(chat, name)
        if isinstance(wanted, float):
            assert shown == pytest.approx(wanted, abs=1e-9)
        else:
            assert shown == wanted


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("sparsity", " Auto ", "auto"),
        ("sparsity", "29%", 0.29),
        ("sparsity", "0.3", 0.3),
        ("quality", "2%", 0.02),
        ("context_policy", "Drop oldest", "drop_oldest"),
        ("max_tokens", " 12 ", 12),
        ("temperature", "0", 0.0),
        ("seed", "42", 42),
        ("seed", "none", None),
        ("seed", "random", None),
        ("system", "  Be kind.\n", "  Be kind.\n"),
    ],
)
def test_typed_values(name: str, text: str, value: object) -> None:
    assert getattr(ChatSettings(seed=1).with_text(name, text), name) == value


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("temperature", "hot", "from 0.0 to 100.0, not 'hot'"),
        ("temperature", "nan", "not nan"),
        ("temperature", "inf", "not inf"),
        ("top_p", "0", "above 0.0 to 1.0"),
        ("top_k", "1.5", "a whole number"),
        ("max_tokens", "0", "from 1"),
        ("max_tokens", "9" * 5000, "whole number"),
        ("seed", "-1", "from 0"),
        ("sparsity", "99%", "0.95"),
        ("sparsity", "most", "'most'"),
        ("quality", "a lot", "'a lot'"),
        ("context_policy", "shrug", "stop or drop_oldest, not 'shrug'"),
        ("system", "\ud800", "Unicode"),
        ("system", "x" * (MAX_SYSTEM + 1), "at most"),
        ("temprature", "1", "did you mean temperature?"),
        ("zzz", "1", "there are system, sparsity"),
        ("options", "1", "no setting 'options'"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(name: str, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=r".") as refused:
        ChatSettings().with_text(name, text)
    assert says in str(refused.value)
    assert len(str(refused.value)) < 300


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*NAMES, "from_a_newer_version"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
    )
)
def test_settings_of_strangers_are_taken_as_far_as_they_can_be(saved: dict[str, Any]) -> None:
    mine = ChatSettings(temperature=0.5, system="Be kind.")
    taken = ChatSettings.from_dict(saved, mine)
    for name in NAMES:
        value = getattr(taken, name)
        assert value == saved.get(name, value) or value == getattr(mine, name)
    assert replace(taken) == taken


def test_few_names_are_listed_and_many_are_counted() -> None:
    with pytest.raises(UsageError, match=r"there are n0, n1, .*, n29 and 5 more\.$"):
        check_name("zzz", tuple(f"n{i}" for i in range(35)), "thing")


def test_percentages_are_the_numbers_beside_them() -> None:
    assert read_quality("7%") == 0.07


def test_naming_settings_loads_nothing_heavy() -> None:
    code = "import sys, stem_local.chat_settings, stem_local.config; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
