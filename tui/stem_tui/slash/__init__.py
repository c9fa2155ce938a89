"""Slash commands: one table, from which completion, help and the palette are made."""

from .command import SlashCommand, Suggestion, literal, parse
from .registry import COMMANDS, arguments, awaited, completed, find, names, run, start, unknown

__all__ = [
    "COMMANDS",
    "SlashCommand",
    "Suggestion",
    "arguments",
    "awaited",
    "completed",
    "find",
    "literal",
    "names",
    "parse",
    "run",
    "start",
    "unknown",
]
