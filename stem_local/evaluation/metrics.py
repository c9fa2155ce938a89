"""How near an answer is to the ones that people gave, as SQuAD v1.1 counts it."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """An answer as SQuAD compares it: lower case, without punctuation, articles, extra blanks.

    Only ASCII punctuation goes, and it goes before the articles do (Rajpurkar et al., "SQuAD:
    100,000+ Questions for Machine Comprehension of Text", 2016, and its evaluation).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1 where the answer is one of those accepted, else 0."""
    return float(normalized(answer) in map(normalized, accepted))


def f1(answer: str, accepted: Sequence[str]) -> float:
    """Overlap of words with the nearest accepted answer, 0 to 1."""
    return max((_overlap(normalized(answer), normalized(one)) for one in accepted), default=0.0)


def _overlap(left: str, right: str) -> float:
    """Harmonic mean of the shares of words that two texts have in common; 0 if one is empty."""
    ours, theirs = Counter(left.split()), Counter(right.split())
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0
