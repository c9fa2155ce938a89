"""What the scripts that write generated pages share."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(name: str, text: str) -> None:
    """Write a page of this folder, or with --check end with an error where it is not current."""
    page = Path(__file__).with_name(name)
    if sys.argv[1:] == ["--check"]:
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            sys.exit(f"docs/{name} is not what the code says; run `make docs`.")
    elif not sys.argv[1:]:
        page.write_text(text, encoding="utf-8")
    else:
        sys.exit("--check is the only argument")
