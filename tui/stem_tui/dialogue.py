"""The open conversation: what of it is saved, and what the model is shown of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stem_local.errors import UsageError

if TYPE_CHECKING:
    from stem_local.chat_settings import ChatSettings
    from stem_local.history import Attachment, Conversation, Entry, History


class Dialogue:
    """A branch of a conversation in a history, kept in step with it.

    `id` is None until there is something to save. `entries` is the open branch, oldest first.
    What saves blocks for a moment: call it in a thread.
    """

    def __init__(self, history: History | None, settings: ChatSettings, model: str = "") -> None:
        """`history` is None until it is open; nothing can be saved then."""
        self._history = history
        self.settings = settings
        self.model = model
        self.id: int | None = None
        self.title = ""
        self.entries: list[Entry] = []

    @classmethod
    def open(cls, history: History, conversation: int, default: ChatSettings) -> Dialogue:
        """A conversation as it was left. Raises UsageError where there is none."""
        saved = history.get(conversation)
        settings = type(default).from_dict(saved.settings, default)
        dialogue = cls(history, settings, model_of(saved))
        dialogue.id, dialogue.title = conversation, saved.info.title
        dialogue.entries = list(saved.entries)
        return dialogue

    @property
    def history(self) -> History:
        if self._history is None:
            raise UsageError("The saved chats are still being opened; try again.")
        return self._history

    @property
    def figures(self) -> Mapping[str, Any] | None:
        """`Stats.to_dict()` of the last answer that has them."""
        found = (entry.stats for entry in reversed(self.entries))
        return next((stats for stats in found if stats and "tokens_per_second" in stats), None)

    @property
    def forgotten(self) -> int:
        """How many of the oldest turns the model is no longer shown."""
        return max((entry.forgotten for entry in self.entries), default=0)

    @property
    def context_used(self) -> int:
        """Tokens that the last answer left in the context, 0 where there is none."""
        stats = self.figures or {}
        counts = (stats.get("prompt_tokens"), stats.get("completion_tokens"))
        return sum(count for count in counts if isinstance(count, int))

    def entry(self, number: int) -> Entry:
        """An entry of the open branch. Raises UsageError for one that is not on it."""
        for entry in self.entries:
            if entry.id == number:
                return entry
        raise UsageError("That message is not on the open branch any more.")

    def last(self, role: str) -> Entry:
        """The newest message of a role. Raises UsageError where there is none."""
        for entry in reversed(self.entries):
            if entry.role == role:
                return entry
        raise UsageError("There is no message yet.")

    def say(self, text: str, attachments: Sequence[Attachment] = ()) -> Entry:
        """Add a message of the user at the end of the branch."""
        if self.id is None:
            self.id = self.history.create(self.saved_settings())
        parent = self.entries[-1].id if self.entries else None
        entry = self.history.add(self.id, parent, "user", text, attachments=attachments)
        self.entries.append(entry)
        if not self.title:
            self.read_title()
        return entry

    def read_title(self) -> None:
        """Take over the title that is saved, which may have been changed elsewhere."""
        if self.id is not None:
            self.title = self.history.outline(self.id).info.title

    def answer(self) -> Entry:
        """Add an empty answer at the end of the branch, to be written while it comes."""
        assert self.id is not None, "an answer follows a message"
        entry = self.history.add(
            self.id, self.entries[-1].id, "assistant", "", state="streaming", model=self.model
        )
        self.entries.append(entry)
        return entry

    def cut(self, entry: Entry) -> None:
        """End the branch before an entry; what is added next becomes its sibling."""
        self.entries = self.entries[: self.entries.index(entry)]

    def cut_after(self, entry: Entry) -> None:
        """End the branch with an entry; what is added next becomes a sibling of what followed."""
        self.entries = self.entries[: self.entries.index(entry) + 1]

    def put(self, entry: Entry) -> None:
        """Replace an entry of the branch by what has become of it."""
        self.entries = [entry if old.id == entry.id else old for old in self.entries]

    def save_last(self) -> None:
        """Save the last entry as it is now."""
        self.save(self.entries[-1])

    def save(self, entry: Entry) -> None:
        """Save an entry as it is now."""
        self.history.update(
            entry.id,
            content=entry.content,
            state=entry.state,
            stats=entry.stats,
            forgotten=entry.forgotten,
            model=entry.model,
        )

    def step(self, entry: int, step: int) -> None:
        """Open the branch of a sibling. Raises UsageError where there is none that way."""
        assert self.id is not None, "an entry belongs to a conversation"
        self.history.branch(self.id, step, entry)
        self.entries = list(self.history.get(self.id).entries)

    def save_settings(self) -> None:
        """Save the settings and the model as they are now."""
        if self.id is not None:
            self.history.set_settings(self.id, self.saved_settings())

    def saved_settings(self) -> dict[str, Any]:
        return {**self.settings.to_dict(), "model": self.model}

    def deleted(self) -> bool:
        """Whether the conversation is no longer saved: another window may have deleted it."""
        if self.id is not None:
            try:
                self.history.outline(self.id)
            except UsageError:
                return True
        return False

    def move(self, history: History) -> None:
        """Go on in another history, with the open branch; what is saved in the old one stays."""
        if self.entries:
            from stem_local.history import Conversation, ConversationInfo

            first, last = self.entries[0].created, self.entries[-1].created
            info = ConversationInfo(0, self.title, first, last, len(self.entries))
            saved = Conversation(info, self.saved_settings(), tuple(self.entries))
            self.id = history.insert(saved)
            self.entries = list(history.get(self.id).entries)
        else:
            self.id = None
        self._history = history

    def messages(self) -> list[dict[str, str]]:
        """What the model is shown: user and assistant in turn, as templates want it.

        A message that got no answer is joined with the one after it.
        """
        shown: list[dict[str, str]] = []
        for entry in self.entries:
            text = prompt_text(entry)
            if not text.strip():
                continue
            if shown and shown[-1]["role"] == entry.role:
                shown[-1]["content"] += "\n\n" + text
            else:
                shown.append({"role": entry.role, "content": text})
        return shown


def model_of(conversation: Conversation) -> str:
    """The model that a saved conversation was last answered by, empty where it does not say."""
    model = conversation.settings.get("model")
    return model if isinstance(model, str) else ""


def prompt_text(entry: Entry) -> str:
    """A message as the model reads it: its attachments first, each fenced under its name."""
    from stem_local.history.exchange import fenced

    files = [fenced(attachment.name, attachment.text) for attachment in entry.attachments]
    return "\n\n".join([*files, entry.content])
