"""stem-local pull"""

from __future__ import annotations

import click

from ..cli_types import known
from ..oneshot import fetch


@click.command()
@click.argument("model", required=False, shell_complete=known)
@click.option("--quant", type=click.Choice(["int4", "int8"]), help="Format for float weights.")
@click.option("--name", help="Install under this name.")
@click.option("--force", is_flag=True, help="Get and install it anew, replacing what is there.")
@click.option(
    "--calibrate/--no-calibrate",
    default=True,
    help="Learn which words to look at, where that takes seconds (calibrate).",
)
def command(
    model: str | None, quant: str | None, name: str | None, force: bool, calibrate: bool
) -> None:
    """Get a model and install it.

    MODEL is a name of the catalogue (stem-local list --catalog), hf:owner/repo[@revision][:file]
    for anything on the Hugging Face Hub, a .gguf file, or a folder with config.json, safetensors
    and tokenizer.json. Without it the default model is installed.

    An interrupted pull goes on where it stopped when it is run again. Prints the installed name.

    A small model that runs on the CPU then learns which words of its vocabulary to look at, which
    makes it faster. Ctrl-C ends that only: the model is installed, and stem-local calibrate does it
    later.

    \b
    Examples:
      stem-local pull
      stem-local pull qwen2.5-0.5b --quant int8
      stem-local pull hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:qwen2.5-0.5b-instruct-q4_0.gguf
      stem-local pull ./my-model.gguf --name mine --no-calibrate
    """
    from ..catalog import DEFAULT_MODEL

    wanted = model or DEFAULT_MODEL
    installed = fetch(wanted, quant=quant, name=name, force=force, calibrate=calibrate)
    click.echo(installed.name)
