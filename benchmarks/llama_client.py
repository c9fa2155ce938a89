"""llama.cpp in a child process, for comparisons. The other half is llama_worker.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WORKER = Path(__file__).with_name("llama_worker.py")


class Llama:
    """Calls into one llama_worker.py process, which sleeps between calls.

    `python` is an interpreter with llama-cpp-python installed.
    """

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Run one request to its end. Raises SystemExit with the child's message."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"llama.cpp ended during {do}, with status {self._process.wait()}.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SystemExit(f"llama.cpp, {do}: {answer['error']}")
        return answer

    def quantize(self, source: Path, out: Path, kind: str = "Q4_0") -> None:
        """Make `out` from `source` with llama.cpp's own quantizer, unless it is already there."""
        if not out.exists():
            part = out.with_suffix(".part")
            self.call("quantize", source=str(source), out=str(part), kind=kind)
            part.rename(out)
