"""How a conversation looks, in both house themes."""

from __future__ import annotations

from typing import Any

from textual.pilot import Pilot

from stem_local.history.entries import Attachment, Entry
from stem_tui.widgets.transcript import Transcript

from .conftest import STATS, Host, until

ANSWER = """\
Read it **line by line**, as `wc` does:

1. open the file
2. count

```python
def lines(path):
    # buffered, so it never holds the whole file
    with open(path) as file:
        return sum(1 for _ in file)
```

> Empty files have 0 lines.
"""

ENTRIES = (
    Entry(1, None, "user", "Earlier", 0.0),
    Entry(2, 1, "assistant", "Yes.", 0.0, model="smollm2-135m", stats=STATS),
    Entry(
        *(3, 2, "user", "How do I count lines?", 0.0),
        attachments=(Attachment("notes.txt", "x" * 3200),),
    ),
    Entry(
        *(4, 3, "assistant", ANSWER, 0.0, (2, 3), (), "stopped", "smollm2-135m", STATS),
        forgotten=1,
    ),
)


def test_a_conversation(snap_compare: Any, theme: str) -> None:
    transcript = Transcript()

    async def before(pilot: Pilot[Any]) -> None:
        await pilot.pause()
        await transcript.show(ENTRIES)
        transcript.focus()
        await pilot.press("up", "up")
        (code,) = transcript.messages[3].codes()
        await until(pilot, lambda: not code.is_plain)

    assert snap_compare(Host(transcript, theme=theme), run_before=before)
