"""Questions in other words, by rule: what the control of the similarity judge compares a question with.

The openings of most questions of the corpus are covered. The rest of the words stay, as they do when people rephrase.
"""

from __future__ import annotations

import re

_MAIN = r"(?:main |key |primary |major )?"
_RULES: list[tuple[str, str]] = [
    (rf"^What (?:is|are) the {_MAIN}(?:advantages?|benefits?) of (.+)\?$", r"Which benefits does \1 bring?"),
    (r"^What (?:is|was) the (?:purpose|aim|goal|role|function) of (.+)\?$", r"What does \1 serve for?"),
    (
        rf"^What (?:is|are) the {_MAIN}(?:factors?|parameters?) (?:that )?(?:affect|influence|determine)s? (.+)\?$",
        r"On what does \1 depend?",
    ),
    (r"^What (?:is|are) (.+)\?$", r"How would you define or describe \1?"),
    (r"^What (?:was|were) (.+)\?$", r"Can you name \1?"),
    (r"^What (.+)\?$", r"Could you say what \1?"),
    (r"^Which (.+)\?$", r"Can you name which \1?"),
    (r"^How much (.+)\?$", r"In what amount \1?"),
    (r"^How many (.+)\?$", r"What is the number of \1?"),
    (r"^How (?:is|are|was|were|does|do|did|can|could) (.+)\?$", r"By what means or in what way: \1?"),
    (r"^How (.+)\?$", r"In what manner \1?"),
    (r"^Why (.+)\?$", r"For what reason \1?"),
    (r"^When (.+)\?$", r"At what time \1?"),
    (r"^Where (.+)\?$", r"At what place \1?"),
]
_COMPILED = [(re.compile(pattern, re.IGNORECASE | re.DOTALL), form) for pattern, form in _RULES]


def paraphrase(question: str) -> str:
    """The question with another opening."""
    question = " ".join(question.split())
    for pattern, form in _COMPILED:
        if match := pattern.match(question):
            return match.expand(form)
    return f"Please explain the following: {question}"
