"""stem-local convert"""

from __future__ import annotations

from pathlib import Path

import click

from ._output import Bar


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--quant", type=click.Choice(["int4", "int8"]), help="Format for float weights.")
def command(source: Path, out: Path, quant: str | None) -> None:
    """Pack SOURCE into the folder OUT, which must not exist yet.

    SOURCE is a .gguf file, or a folder with config.json, safetensors and tokenizer.json. The
    result can be used by its path; stem-local pull SOURCE installs it under a name instead.
    Prints the folder.

    \b
    Examples:
      stem-local convert model.Q4_0.gguf packed/
      stem-local convert ./llama-checkpoint packed/ --quant int8
    """
    from stem_runtime.formats.convert import convert

    from ..progress import Meter
    from ..spec import model_name

    with Bar() as bar:
        convert(
            source,
            out,
            quant=quant,
            name=model_name(out.resolve().name) or "model",
            origin={"file": source.name},
            progress=Meter(bar, "pack", 1).reach,
        )
    click.echo(str(out))
