"""Machine code for chips that are not there: what it needs of them, and how wide it reads."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import stem_runtime.kernels.gpu
from stem_runtime.formats.packed import expected_tensors, open_packed
from stem_runtime.kernels.gpu.compile import CHIPS, MachineCode
from stem_runtime.kernels.gpu.machine_code import loads_by_argument
from stem_runtime.neuron_tables import COUNTS, NeuronTables
from stem_runtime.sparsity.neurons import LayerNeurons, Neurons, layer_weights, mask_of
from stem_runtime.sparsity.plan import FfnPlan

from ..tiny import random_packed, tiny_config

PACKAGE = Path(stem_runtime.kernels.gpu.__file__).parent


def start(cache: Path, *command: str | Path) -> subprocess.Popen[str]:
    """A process in which kernels are compiled, not interpreted as they are in this one."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0
    return output


@pytest.fixture(scope="module")
def cache(request: pytest.FixtureRequest) -> Path:
    """Compiled kernels, kept from run to run under a hash of all that they are made from."""
    folder: Path = request.config.cache.mkdir("triton")
    return folder


@pytest.fixture(scope="module")
def codes(cache: Path) -> list[MachineCode]:
    """Every kernel on every chip; two processes, since it takes a minute."""
    module = ("-m", "stem_runtime.kernels.gpu.compile", "--json", "--quick", "--chips")
    chips = [str(chip) for chip in CHIPS]
    running = [start(cache, *module, *chips[part::2]) for part in range(2)]
    rows = [row for process in running for row in json.loads(finish(process))["kernels"]]
    for row in rows:
        row["stream_loads"] = {int(size): n for size, n in row["stream_loads"].items()}
    return [MachineCode(**row) for row in rows]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that writes docs/gpu.md."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "docs"))
    return import_module("generate_gpu")


def launched(path: Path) -> set[str]:
    """Names of the kernels that a module launches: those in `[module.]name[grid](...)`."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    subscripts = [call.func for call in calls if isinstance(call.func, ast.Subscript)]
    names = {node.value.id for node in subscripts if isinstance(node.value, ast.Name)}
    return names | {node.value.attr for node in subscripts if isinstance(node.value, ast.Attribute)}


def test_no_kernel_is_left_out(codes: list[MachineCode]) -> None:
    wanted = set().union(*(launched(path) for path in PACKAGE.glob("*.py")))
    for chip in CHIPS:
        assert {code.kernel for code in codes if code.chip == chip} == wanted


def test_registers_are_not_spilled(codes: list[MachineCode]) -> None:
    assert [code for code in codes if code.local_bytes] == []


def test_every_block_finds_room_on_its_chip(codes: list[MachineCode]) -> None:
    for code in codes:
        assert code.shared_bytes <= CHIPS[code.chip].shared_limit, code
        assert code.registers * code.threads <= 65536, code


def test_streams_are_read_by_128_bits(codes: list[MachineCode]) -> None:
    """What else is read of them are scales, of which there are fewer than quants."""
    streams = [code for code in codes if code.wide_share is not None]
    assert {code.chip for code in streams} == set(CHIPS)
    for code in streams:
        assert max(code.stream_loads) == 16, code
        assert code.wide_share is not None
        assert code.wide_share >= 0.5, code


def test_the_page_has_every_kernel(codes: list[MachineCode], page: ModuleType) -> None:
    """Figures move with every edit, and are those of the last `make docs`; limits are above."""
    text = page.PAGE.read_text(encoding="utf-8")
    rows = [page.code_line({code.chip: code}).split(" | ")[:2] for code in codes]
    assert [row for row in rows if " | ".join(row) not in text] == []


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_the_bytes_counted_are_those_of_a_packed_model(
    family: str, tmp_path: Path, page: ModuleType
) -> None:
    config = tiny_config(family, ffn_dim=200, tied_head=family == "llama")
    model = open_packed(random_packed(tmp_path / "model", config))
    shapes = expected_tensors(config)
    assert sum(page.tensor_bytes(name, shape) for name, shape in shapes) == model.nbytes
    ffn = config.ffn_dim
    everyone = mask_of(np.ones(ffn, np.bool_))
    ones = np.ones(ffn, np.float32)
    layers = [
        LayerNeurons(layer_weights(model, index, "up"), ones, ones, everyone, everyone)
        for index in range(config.n_layers)
    ]
    tables = NeuronTables(model, Neurons(tuple(layers)), 1)
    tables.set_plan(FfnPlan.exact(config.n_layers))
    counts = np.zeros((config.n_layers, len(COUNTS)))
    counts[:, :3] = ffn, 0.25 * ffn, 0.25 * ffn
    dense = sum(
        model.matrix(f"layers.{index}.{name}").nbytes
        for index in range(config.n_layers)
        for name in ("gate", "up", "down")
    )
    saved = page.token_bytes(config, 1.0) - page.token_bytes(config, 0.25)
    assert saved == pytest.approx(dense - tables.nbytes(counts))


SPILLING = """
import torch
import triton
import triton.language as tl

from stem_runtime.kernels.gpu.compile import machine_code
from stem_runtime.kernels.gpu.launches import Launch


@triton.jit
def turn(out, x, STEP: tl.constexpr):
    place = tl.arange(0, 4096) * STEP
    values = tl.load(x + place)
    tl.store(out + tl.arange(0, 4096), values - tl.sum(values, axis=0))


def check(step, registers):
    x = torch.empty(8192, dtype=torch.int32, device="meta")
    call = lambda: turn[(1,)](x, x, STEP=step, num_warps=1, maxnreg=registers)
    (code,) = machine_code(Launch("turn", call, frozenset({"x"})), 80)
    print(code.kernel, code.local_bytes > 0, code.stream_loads)


check(step=1, registers=255)
check(step=2, registers=64)
"""


def test_spilled_registers_and_narrow_loads_are_found(cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "spilling.py"
    script.write_text(SPILLING)
    assert finish(start(cache, script)).splitlines() == [
        "turn False {16: 32}",
        "turn True {4: 128}",
    ]


PTX = """
ld.param.b64 %rd1, [_turn_param_0];
ld.param.b64 %rd2, [_turn_param_2];
mad.wide.s32 %rd3, %r1, 4, %rd1;
mov.b64 %rd4, %rd3;
$L__BB0_1:
@%p1 ld.global.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd4 + 0 ];
@!%p1 ld.global.L1::evict_first.v2.b16 { %rs2, %rs3 }, [ %rd5 + 32 ];
ld.global.b64 %rd6, [%rd2];
ld.global.b8 %rs1, [%rd6];
st.shared.v2.b64 [%r10], {%rd3, %rd3};
ld.shared.v2.b64 {%rd7, %rd8}, [%r11];
ld.global.v2.b32 { %r12, %r13 }, [ %rd8 + 0 ];
cp.async.cg.shared.global [ %r9 + 0 ], [ %rd2 + 16 ], 0x10, %r8;
add.s64 %rd5, %rd4, 288;
@%p2 mov.b64 %rd4, %rd5;
st.global.b32 [%rd4], %r2;
"""


def test_loads_are_told_apart_by_where_addresses_come_from() -> None:
    """Around a loop and through shared memory, but not through global; stores do not count."""
    assert loads_by_argument(PTX) == {0: Counter({16: 1, 8: 1, 4: 1}), 2: Counter({8: 1, 16: 1})}
