"""stem-local pull"""

from __future__ import annotations

import click

from ..cli_types import known
from ._output import Bar


@click.command()
@click.argument("model", required=False, shell_complete=known)
@click.option("--quant", type=click.Choice(["int4", "int8"]), help="Format for float weights.")
@click.option("--name", help="Install under this name.")
@click.option("--force", is_flag=True, help="Get and install it anew, replacing what is there.")
def command(model: str | None, quant: str | None, name: str | None, force: bool) -> None:
    """Get a model and install it.

    MODEL is a name of the catalogue (stem-local list --catalog), hf:owner/repo[@revision][:file]
    for anything on the Hugging Face Hub, a .gguf file, or a folder with config.json, safetensors
    and tokenizer.json. Without it the default model is installed.

    An interrupted pull goes on where it stopped when it is run again. Prints the installed name.

    \b
    Examples:
      stem-local pull
      stem-local pull qwen2.5-0.5b --quant int8
      stem-local pull hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:qwen2.5-0.5b-instruct-q4_0.gguf
      stem-local pull ./my-model.gguf --name mine
    """
    from ..catalog import DEFAULT_MODEL
    from ..hub import pull

    with Bar() as bar:
        installed = pull(model or DEFAULT_MODEL, quant=quant, name=name, progress=bar, force=force)
    click.echo(installed.name)
