"""The `stem-chat` command: a chat on a terminal, one answer where there is none."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from stem_local import __version__
from stem_local.cli import INTERRUPTED, Told
from stem_local.cli_types import as_text, installed, sparsity
from stem_local.config import Config, config_file, load_config
from stem_local.errors import UsageError
from stem_local.history import typed_number

if TYPE_CHECKING:
    from stem_local.sparsity import Sparsity

Resume = int | Literal["latest"]

_CUT_OFF = {
    "length": "(cut off: max_tokens is reached)",
    "context": "(cut off: the context is full; --context makes it larger)",
}


def _resume(value: str) -> Resume:
    if value == "latest":
        return "latest"
    if (number := typed_number(value)) is not None:
        return number
    raise UsageError(
        f"--resume takes the number of a conversation, or nothing for the latest, not {value!r:.40}"
        "; a question comes before it."
    )


@click.command("stem-chat", cls=Told, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("question", required=False)
@click.option("--model", metavar="M", shell_complete=installed, help="Model to chat with.")
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="latest",
    type=_resume,
    metavar="[ID]",
    help="Go on with a saved conversation, the latest one unless its number is given.",
)
@click.option(
    "--private/--no-private", default=None, help="Write no conversation to disk, or do after all."
)
@click.option(
    "--sparsity",
    type=sparsity,
    metavar="S",
    help="What to leave out: auto, off, or a share of the neurons up to 0.95.",
)
@click.option("--context", type=int, metavar="N", help="Tokens of prompt and answers.")
@click.option("--threads", type=int, metavar="N", help="Threads to compute with.")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the settings from here instead.",
)
@click.option("--print-config", is_flag=True, help="Print the settings in force, as a file.")
@click.version_option(__version__, prog_name="stem-chat")
def main(
    question: str | None,
    model: str | None,
    system: str | None,
    resume: Resume | None,
    private: bool | None,
    sparsity: Sparsity | None,
    context: int | None,
    threads: int | None,
    file: Path | None,
    print_config: bool,
) -> None:
    """Chat with a language model on your own machine.

    QUESTION is the first message. Where input or output is no terminal it is answered there, piped
    input following it, and nothing is saved.

    \b
    Examples:
      stem-chat
      stem-chat --model qwen3-0.6b --system "Answer in one sentence."
      stem-chat --resume
      stem-chat "Summarise this:" < notes.txt
      stem-chat "Name three rivers." > rivers.txt
      stem-chat --print-config
    """
    config = load_config(file)
    file = file or config_file()
    given = _given(system=system, sparsity=sparsity)
    chat = replace(config.chat, **given)
    settings = _given(model=model, private=private, context=context, threads=threads)
    config = replace(config, chat=chat, **settings)
    if print_config:
        from stem_local.config_text import to_toml

        click.echo(to_toml(config, file), nl=False)
    elif _has_screen():
        if config.private and resume is not None:
            raise UsageError(
                "--resume opens a saved conversation, and a private chat has none; "
                "leave it out, or add --no-private."
            )
        first = None if question is None else as_text(question)
        _open(config, file, model=model, given=given, resume=resume, first=first)
    elif resume is not None:
        raise UsageError("--resume needs a terminal for input and output.")
    else:
        _answer(config, question)


def _given(**options: Any) -> dict[str, Any]:
    """The options that the command line has."""
    return {name: value for name, value in options.items() if value is not None}


def _has_screen() -> bool:
    """Whether there is a terminal to draw on and to type into."""
    streams = (sys.stdin, sys.stdout)
    terminal = all(s is not None and not s.closed and s.isatty() for s in streams)
    return terminal and os.environ.get("TERM") != "dumb"


def _open(config: Config, file: Path, **options: Any) -> None:
    # how long Textual waits, as it is imported, for more to follow an Escape: its 100 ms are felt
    os.environ.setdefault("ESCDELAY", "25")
    from .app import ChatApp
    from .binding_table import check_config

    check_config(config, file)
    app = ChatApp(config, **options)
    app.run(mouse=config.mouse)
    if app.return_code:
        raise click.exceptions.Exit(app.return_code)


def _answer(config: Config, question: str | None) -> None:
    """Answer on standard output, as it comes."""
    from stem_local.oneshot import full_prompt, open_model, piped_input
    from stem_local.terminal import interruptible, print_answer, tell

    prompt = full_prompt(question, piped_input())
    if prompt is None:
        raise UsageError("There is no terminal to chat on; give a question, or pipe one in.")
    chat = config.chat
    model = open_model(
        config.model,
        threads=config.threads,
        context=config.context,
        kernels=None,
        device=config.device,
        gpu_memory=config.gpu_memory,
        kv_cache=config.kv_cache,
        sparsity=chat.sparsity,
        quality=chat.quality,
    )
    with model, interruptible() as cancel:
        options = chat.options() | {"draft": config.draft, "cancel": cancel}
        chunks = model.stream(prompt, system=chat.system or None, **options)
        reason = print_answer(chunks).finish_reason
    if reason in _CUT_OFF:
        tell(_CUT_OFF[reason])
    if reason == "cancelled":
        raise click.exceptions.Exit(INTERRUPTED)
