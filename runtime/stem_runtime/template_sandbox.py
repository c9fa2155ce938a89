"""A jinja2 sandbox for templates that came with a model, with bounds on what they may consume.

jinja2's immutable sandbox keeps a template away from Python. What it leaves open, and this closes
as far as one process can, is a template that never ends or eats all memory.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARS = 1 << 25
MAX_STEPS = 200_000
MAX_SECONDS = 10.0
MAX_WIDTH = 10_000
_FILTERS = frozenset(
    (
        *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first"),
        *("float", "groupby", "int", "items", "join", "last", "length", "list", "lower", "map"),
        *("max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select"),
        *("selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper", "wordcount"),
    )
)
_FORMATTING = frozenset(("format", "format_map", "translate"))
_PADDING_METHODS = frozenset(("ljust", "rjust", "center", "zfill", "expandtabs"))


class _RefusalError(TemplateError):
    """The template's own refusal, through raise_exception."""


class _Generator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment chat templates expect, that of Hugging Face transformers.

    A template that exceeds its steps, time or text raises SecurityError. One template, one render
    at a time: `restart` before each.
    """

    code_generator_class = _Generator
    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            finalize=_checked,
        )
        # generated code joins everything it collects through this name
        self.concat = _concat  # type: ignore[method-assign]
        self.filters = {name: self.filters[name] for name in _FILTERS}
        self.filters |= {"tojson": _to_json, "string": _text, "join": _join, "replace": _replace}
        self.globals = {
            "range": self.globals["range"],
            "namespace": self.globals["namespace"],
            "dict": dict,
            "raise_exception": _raise,
            "strftime_now": _strftime_now,
        }
        self.restart()

    def restart(self) -> None:
        self._steps = 0
        self._deadline = time.monotonic() + MAX_SECONDS

    def step(self) -> str:
        """Count one turn of a loop or one call of a macro."""
        self._steps += 1
        if self._steps > MAX_STEPS or time.monotonic() > self._deadline:
            raise SecurityError("it runs without end")
        return ""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        bodies: list[nodes.For | nodes.Macro | nodes.CallBlock] = [
            *tree.find_all(nodes.For),
            *tree.find_all(nodes.Macro),
            *tree.find_all(nodes.CallBlock),
        ]
        for node in bodies:
            step = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            _limit(_length(left) + _length(right))
        elif operator == "*":
            _limit(max(_length(left) * _number(right), _length(right) * _number(left)))
            _limit((_number(left).bit_length() + _number(right).bit_length()) // 8)
        elif operator == "**":
            _limit(_number(left).bit_length() * _number(right) // 8)
        elif isinstance(left, str) and re.search(r"\*|\d{5}", left):
            raise SecurityError("it formats text to an enormous width")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            if name in _PADDING_METHODS and any(_number(arg) > MAX_WIDTH for arg in args):
                raise SecurityError("it pads text to an enormous width")
            if name == "join":
                return _join(args[0], owner)
            if name == "replace":
                return _replace(owner, *args)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> None:
        if isinstance(getattr(value, "__self__", None), str) and value.__name__ in _FORMATTING:
            raise SecurityError(f"it calls str.{value.__name__}, which is not available")


def _limit(size: int) -> None:
    if size > MAX_CHARS:
        raise SecurityError(f"it makes a text or list of more than {MAX_CHARS} items")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _number(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _checked(value: Any) -> Any:
    """Refuse a value whose text would be enormous, such as a list of lists of lists."""
    size, seen, todo = 0, 0, [value]
    while todo:
        item = todo.pop()
        size += _length(item)
        seen += 1
        _limit(size if seen < MAX_STEPS else MAX_CHARS + 1)
        if isinstance(item, Mapping):
            todo += item.keys()
            todo += item.values()
        elif isinstance(item, (list, tuple)):
            todo += item
    return value


def _text(value: Any) -> str:
    return str(_checked(value))


def _concat(parts: Iterable[Any]) -> str:
    texts = []
    size = 0
    for part in parts:
        texts.append(part if isinstance(part, str) else _text(part))
        size += len(texts[-1])
        _limit(size)
    return "".join(texts)


def _join(values: Iterable[Any], glue: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        values = [value[attribute] for value in values]
    texts = [value if isinstance(value, str) else _text(value) for value in values]
    _limit(sum(map(len, texts)) + len(glue) * len(texts))
    return str(glue).join(texts)


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    text = _text(text)
    _limit(len(text) + text.count(old) * len(new))
    return str(text.replace(old, new, -1 if count is None else count))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if _number(indent) > MAX_WIDTH:
        raise SecurityError("it indents JSON by an enormous width")
    return json.dumps(
        _checked(value),
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: Any) -> None:
    raise _RefusalError(_text(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 256 or re.search(r"\d{4}", pattern):
        raise SecurityError("it formats the date to an enormous width")
    return datetime.now().strftime(pattern)


def refusal(error: Exception) -> str | None:
    """Return what the template said through raise_exception, None for any other error."""
    return str(error) if isinstance(error, _RefusalError) else None
