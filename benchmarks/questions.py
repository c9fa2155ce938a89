"""What a chat is asked in the benchmarks."""

from __future__ import annotations

from stem_local.ablation import workloads

QUESTIONS = (
    "What is the capital of France?",
    "Name the planets of the solar system in order.",
    "Write a Python function that adds two numbers.",
    "How many legs does a spider have?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about the sea.",
    "What is the difference between a list and a tuple in Python?",
    "Give me a recipe for pancakes.",
    "Who wrote Romeo and Juliet?",
    "Summarize the story of Cinderella.",
    "What should I pack for a weekend in the mountains?",
    "Write an SQL query that counts the orders of each customer.",
    "How does a bicycle stay upright?",
    "List five healthy breakfast ideas.",
    "What happened in the year 1969?",
    "Translate 'good morning' into French, German and Spanish.",
    "Write an email asking for a day off.",
    "What is the square root of 144?",
    "Why do leaves change their colour in autumn?",
    "Tell me a joke about computers.",
)

_TEXT = 1600  # characters


def tasks() -> list[str]:
    """Things to do with a text that is given: shorten it, or give it back corrected."""
    wanted = ("Summarize this text:", "Correct the spelling of this text and give it back:")
    texts = workloads()
    parts = [texts[name][at : at + _TEXT] for name in ("prose", "chat", "sql") for at in (0, _TEXT)]
    return [f"{wanted[i % 2]}\n\n{part}" for i, part in enumerate(parts)]
