"""A jinja2 sandbox for templates that came with a model, with bounds on what they may consume.

jinja2's immutable sandbox keeps a template away from Python. What it leaves open, and this closes
as far as one process can, is a template that never ends or eats all memory.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.exceptions import SecurityError
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 200_000
MAX_SECONDS = 10.0
MAX_WIDTH = 10_000
MAX_DIGITS = 1000
_SPARE = 1 << 20  # characters of a text, beside some times what the messages have
_COPIES = 8
_TEXTS = 128  # as long as one may be, together all that a template makes
_ITEM, _NEW_ITEM = 8, 64  # characters that an item of a list counts as, and one made with it
_FILTERS = frozenset(
    (
        *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first"),
        *("float", "groupby", "int", "items", "join", "last", "length", "list", "lower", "map"),
        *("max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select"),
        *("selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper", "wordcount"),
    )
)
_TEXT_FILTERS = frozenset(
    ("capitalize", "e", "escape", "float", "int", "lower", "safe", "title", "trim", "upper")
)
_REFUSED = frozenset(
    ("format", "format_map", "translate", "encode", "expandtabs", "to_bytes", "from_bytes")
)
_PADDING_METHODS = frozenset(("ljust", "rjust", "center", "zfill"))
_FRONT = (Environment, Context, EvalContext)


class _RefusalError(TemplateError):
    """The template's own refusal, through raise_exception."""


class _Generator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        self.write("(")
        self._flat(node.expr, frame)
        for operand in node.ops:
            self.write(f" {operators[operand.op]} ")
            self._flat(operand.expr, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        slices = isinstance(node.arg, nodes.Slice)  # which pass by the environment
        self.write("environment.made(" if slices else "(")
        super().visit_Getitem(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self.write("environment.flat(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self.write("environment.flat(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        made = node.ctx == "load"  # others are names to assign to
        self.write("environment.flat(" if made else "")
        super().visit_Tuple(node, frame)
        self.write(")" if made else "")

    def _flat(self, node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.flat(")
        self.visit(node, frame)
        self.write(")")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment chat templates expect, that of Hugging Face transformers.

    A template that exceeds its steps, time or text raises SecurityError. One template, one render
    at a time: `restart` before each. What a template makes is counted, not what it still holds.
    """

    code_generator_class = _Generator
    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            finalize=self.checked,
        )
        # generated code joins everything it collects through this name
        self.concat = self._concat  # type: ignore[method-assign]
        known = {name: self.filters[name] for name in _FILTERS}
        known |= {"tojson": self._to_json, "string": self.text, "join": self._join}
        known |= {"replace": self._replace}
        self.filters = {name: self._counted(name, known[name]) for name in known}
        self.globals = {
            "range": self.globals["range"],
            "namespace": self.globals["namespace"],
            "dict": dict,
            "raise_exception": self._raise,
            "strftime_now": _strftime_now,
        }
        self.restart()

    def restart(self, given: int = 0) -> None:
        """Begin to render messages of `given` characters."""
        self._steps = 0
        self._deadline = time.monotonic() + MAX_SECONDS
        self._most = _SPARE + _COPIES * given
        self._left = _TEXTS * self._most

    def step(self) -> str:
        """Count one turn of a loop or one call of a macro or block."""
        self._steps += 1
        self._check_time(self._steps > MAX_STEPS)
        return ""

    def limit(self, size: int) -> None:
        """Refuse a text or list of `size` characters or items that is too long for one."""
        if size > self._most:
            raise SecurityError(f"it makes a text or list of more than {self._most} items")

    def made(self, value: Any, item: int = _ITEM) -> Any:
        """Count a value that an operation made."""
        size = _length(value)
        self.limit(size)
        self._left -= size if isinstance(value, str) else item * size
        if self._left < 0:
            raise SecurityError("it makes too many texts or lists")
        self._check_time()
        return value

    def flat(self, value: Any) -> Any:
        """Refuse lists of lists that hold so much that to compare them would not end."""
        if not isinstance(value, (str, int)):
            self._walk(value)
        return value

    def checked(self, value: Any) -> Any:
        """Refuse a value whose text would be enormous, such as a list of lists of lists."""
        self.limit(_length(value) if isinstance(value, str) else self._walk(value))
        return value

    def text(self, value: Any) -> str:
        return str(self.checked(value))

    def _check_time(self, over: bool = False) -> None:
        if over or time.monotonic() > self._deadline:
            raise SecurityError("it runs without end")

    def _walk(self, value: Any) -> int:
        """Characters and items of a value and all that it holds."""
        size, seen, todo = 0, 0, [value]
        while todo:
            item = todo.pop()
            size += _length(item)
            seen += 1
            if seen + len(todo) > MAX_STEPS:
                raise SecurityError(f"it makes lists that hold more than {MAX_STEPS} items")
            if isinstance(item, Mapping):
                todo += item.keys()
                todo += item.values()
            elif isinstance(item, (list, tuple)):
                self._check_items(len(item))
                todo += item
        return size

    def _check_items(self, count: int) -> None:
        if count > MAX_STEPS:
            raise SecurityError(f"it makes lists that hold more than {MAX_STEPS} items")

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose result counts, with arguments that it can be trusted with."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            # what jinja2 puts in front of a filter's own arguments is no text
            value = next((arg for arg in args if not isinstance(arg, _FRONT)), None)
            if name in _TEXT_FILTERS:
                self.checked(value)
            if name == "int":
                _limit_digits(_length(value))
            if name == "sum" and _holds_lists((*args[2:], *kwargs.values())):
                raise SecurityError("it adds up what are no numbers")
            return self.made(function(*args, **kwargs))

        return run

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        bodies: list[nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block] = [
            *tree.find_all(nodes.For),
            *tree.find_all(nodes.Macro),
            *tree.find_all(nodes.CallBlock),
            *tree.find_all(nodes.Block),
        ]
        for node in bodies:
            step = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            self.limit(_length(left) + _length(right))
        elif operator == "*":
            self.limit(max(_length(left) * _number(right), _length(right) * _number(left)))
            _limit_digits((_number(left).bit_length() + _number(right).bit_length()) // 4)
        elif operator == "**":
            _limit_digits(_number(left).bit_length() * _number(right) // 4)
        elif isinstance(left, str):
            if re.search(r"\*|\d{5}", left):
                raise SecurityError("it formats text to an enormous width")
            self.limit(len(left) + left.count("%") * len(self.text(right)))
        return self.made(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if not isinstance(owner, str):
            return super().call(context, obj, *args, **kwargs)
        if name in _PADDING_METHODS and any(_number(arg) > MAX_WIDTH for arg in args):
            raise SecurityError("it pads text to an enormous width")
        if name == "join":
            return self.made(self._join(args[0], owner))
        if name == "replace":
            return self.made(self._replace(owner, *args))
        return self.made(super().call(context, obj, *args, **kwargs), _NEW_ITEM)

    def wrap_str_format(self, value: Any) -> None:
        owner, name = getattr(value, "__self__", None), getattr(value, "__name__", "")
        if isinstance(owner, (str, int, type)) and name in _REFUSED:
            raise SecurityError(f"it calls {name}, which is not available")

    def _concat(self, parts: Iterable[Any]) -> str:
        texts = []
        size = 0
        for part in parts:
            texts.append(part if isinstance(part, str) else self.text(part))
            size += len(texts[-1])
            self.limit(size)
        found: str = self.made("".join(texts))
        return found

    def _join(self, values: Iterable[Any], glue: str = "", attribute: str | None = None) -> str:
        if attribute is not None:
            values = [value[attribute] for value in values]
        texts = [value if isinstance(value, str) else self.text(value) for value in values]
        self.limit(sum(map(len, texts)) + len(glue) * len(texts))
        return str(glue).join(texts)

    def _replace(self, text: Any, old: str, new: str, count: int = -1) -> str:
        text = self.text(text)
        self.limit(len(text) + text.count(old) * len(new))
        return str(text.replace(old, new, -1 if count is None else count))

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        if not isinstance(indent, int | None) or _number(indent) > MAX_WIDTH:
            raise SecurityError("it indents JSON by an enormous width")
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return self._concat(encoder.iterencode(self.checked(value)))

    def _raise(self, message: Any) -> None:
        raise _RefusalError(self.text(message))


def _limit_digits(count: int) -> None:
    if count > MAX_DIGITS:
        raise SecurityError(f"it makes a number of more than {MAX_DIGITS} digits")


def _holds_lists(values: Iterable[Any]) -> bool:
    return any(isinstance(value, (list, tuple)) for value in values)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _number(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 256 or re.search(r"\d{4}", pattern):
        raise SecurityError("it formats the date to an enormous width")
    return datetime.now().strftime(pattern)


def refusal(error: Exception) -> str | None:
    """Return what the template said through raise_exception, None for any other error."""
    return str(error) if isinstance(error, _RefusalError) else None
