"""Write the tables of docs/gpu.md from the code, or check that they are current.

python docs/generate_gpu.py [--check | --bytes]

Writing compiles every kernel for every chip, which takes minutes and needs torch and Triton; with
--bytes the table of machine code stays as it is. --check looks at that table no more: the tests,
which compile anyway, do so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from generate_page import write_or_check

from stem_runtime.config import ModelConfig
from stem_runtime.formats.packed import expected_tensors
from stem_runtime.kernels.cpu import layout as L
from stem_runtime.quant import GROUP, groups_of
from stem_runtime.quant.layout import tiles_shape

if TYPE_CHECKING:
    from stem_runtime.kernels.gpu.compile import MachineCode

PAGE = Path(__file__).with_name("gpu.md")
CONTEXT = 1024
SHARES = (1.0, 0.5, 0.3, 0.1)

CARDS = {"A100 80 GB": 2039, "RTX 4090": 1008, "H100 SXM": 3350, "RTX 5090": 1792}
"""GB/s of memory by NVIDIA's data sheets; one card for each capability that is compiled for."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes, from its published configuration."""

    name: str
    d_model: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    @property
    def config(self) -> ModelConfig:
        head_dim = self.d_model // self.heads
        return ModelConfig(
            family="llama",
            n_layers=self.layers,
            d_model=self.d_model,
            n_heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=head_dim,
            ffn_dim=self.ffn,
            vocab_size=self.vocab,
            context_length=CONTEXT,
            norm_eps=1e-5,
            activation="silu",
            rope_inv_freq=(1.0,) * (head_dim // 2),
            layer_windows=(0,) * self.layers,
            attn_scale=1.0,
            tied_head=self.tied,
        )


SHAPES = (
    Shape("SmolLM2-135M", 576, 1536, 30, 9, 3, 49152, tied=True),
    Shape("Llama-3.2-1B", 2048, 8192, 16, 32, 8, 128256, tied=True),
    Shape("ProSparse-Llama-2-7B", 4096, 11008, 32, 32, 32, 32000, tied=False),
)


def tensor_bytes(name: str, shape: tuple[int, ...]) -> int:
    """Of a tensor as a pull packs it: the body int4, embedding and head int8, vectors float32."""
    if len(shape) == 1:
        return 4 * shape[0]
    return prod(tiles_shape(*shape, "int8" if name in ("embed", "head") else "int4"))


def token_bytes(config: ModelConfig, share: float, context: int = CONTEXT) -> float:
    """Bytes that one decoded token reads where `share` of the neurons passes the gate test.

    All gates are read, rows of up and columns of down of the neurons that pass, and the scales of
    every group of 32 columns with one of them. A share of 1 is the dense FFN.
    """
    sizes = {name: tensor_bytes(name, shape) for name, shape in expected_tensors(config)}
    if not config.tied_head:
        del sizes["embed"]
    cache = 4 * config.kv_heads * config.head_dim * config.n_layers * context
    if share == 1:
        return sum(sizes.values()) + cache
    rest = sum(size for name, size in sizes.items() if not name.endswith((".up", ".down")))
    record = L.row_bytes(L.INT4, groups_of(config.d_model))
    record += L.column_bytes(L.INT4, config.d_model)
    used = groups_of(config.ffn_dim) * (1 - (1 - share) ** GROUP)
    scales = used * L.shared_bytes(L.INT4, config.d_model)
    return rest + cache + config.n_layers * (share * config.ffn_dim * record + scales)


def bytes_table() -> str:
    """Bytes per token, and the tokens per second that each card's memory allows at most."""
    lines = [
        f"| | neurons active | MB per token | {' | '.join(CARDS)} |",
        "|---" * (3 + len(CARDS)) + "|",
    ]
    for shape in SHAPES:
        for share in SHARES:
            size = token_bytes(shape.config, share)
            rates = [f"{1e9 * bandwidth / size:,.0f}" for bandwidth in CARDS.values()]
            what = "all (dense)" if share == 1 else f"{share:.0%}"
            lines.append(f"| {shape.name} | {what} | {size / 1e6:,.1f} | {' | '.join(rates)} |")
    return "\n".join(lines)


def code_table(codes: Iterable[MachineCode]) -> str:
    """One line for each kernel of a launch, one column for each chip."""
    from stem_runtime.kernels.gpu.compile import CHIPS

    chips = [f"{chip // 10}.{chip % 10} ({CHIPS[chip].examples})" for chip in CHIPS]
    lines = [
        f"| | kernel | threads | by 128 bits | {' | '.join(chips)} |",
        "|---" * (4 + len(chips)) + "|",
    ]
    rows: dict[tuple[str, int], dict[int, MachineCode]] = {}
    seen: dict[tuple[str, int], int] = {}
    for code in codes:
        place = seen[code.launch, code.chip] = seen.get((code.launch, code.chip), -1) + 1
        rows.setdefault((code.launch, place), {})[code.chip] = code
    return "\n".join([*lines, *(code_line(row) for row in rows.values())])


def code_line(row: dict[int, MachineCode]) -> str:
    cells = []
    for code in row.values():
        spilled = f", {code.local_bytes} spilled" if code.local_bytes else ""
        cells.append(f"{code.registers}{spilled}, {code.shared_bytes:,}")
    shares = [code.wide_share for code in row.values() if code.wide_share is not None]
    first = next(iter(row.values()))
    wide = f"{min(shares):.0%}" if shares else ""
    kernel = first.kernel.removeprefix("_")
    return f"| {first.launch} | {kernel} | {first.threads} | {wide} | {' | '.join(cells)} |"


def replaced(page: str, section: str, text: str) -> str:
    """`page` with `text` between the marks of `section`."""
    marks = rf"(<!-- {section}: begin -->\n).*?(\n<!-- {section}: end -->)"
    return re.sub(marks, lambda found: f"{found[1]}\n{text}\n{found[2]}", page, flags=re.DOTALL)


def codes_of(chip: int) -> list[MachineCode]:
    from stem_runtime.kernels.gpu.compile import machine_code
    from stem_runtime.kernels.gpu.launches import LAUNCHES

    return [code for launch in LAUNCHES for code in machine_code(launch, chip)]


def compiled_table() -> str:
    import triton

    from stem_runtime.kernels.gpu.compile import CHIPS

    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        codes = [code for found in pool.map(codes_of, CHIPS) for code in found]
    return f"Compiled by Triton {triton.__version__}.\n\n{code_table(codes)}"


if __name__ == "__main__":
    page = replaced(PAGE.read_text(encoding="utf-8"), "bytes", bytes_table())
    if not sys.argv[1:]:
        page = replaced(page, "machine code", compiled_table())
    elif sys.argv[1:] == ["--bytes"]:
        sys.argv.pop()
    write_or_check("gpu.md", page)
