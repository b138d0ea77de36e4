"""Prefix, suffixes and choices as tokens: what a scorer has to read, and where the choices' own tokens begin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qaray.models.tokenizer import HFTokenizer

MOST_CHOICE_TOKENS = 1024  # inner tokens of the choices of one suffix


@dataclass(frozen=True)
class TokenizedSuffix:
    """One suffix with its choices, as tokens."""

    sequences: list[list[int]]  # suffix + choice, one a choice
    own: int  # place of the first token that belongs to the choices

    def inner(self) -> Iterator[list[int]]:
        """What the model has to read: all but the last token of each."""
        for ids in self.sequences:
            yield ids[:-1]

    def heads(self) -> dict[tuple[int, ...], list[int]]:
        """What stands before a token of a choice → the tokens that choices go on with there."""
        found: dict[tuple[int, ...], set[int]] = {}
        for ids in self.sequences:
            for place in range(self.own, len(ids)):
                found.setdefault(tuple(ids[:place]), set()).add(ids[place])
        return {head: sorted(tokens) for head, tokens in found.items()}


def tokenised(
    tokenizer: HFTokenizer, prefix: str, suffixes: Sequence[str], choices: Sequence[str], seq_len: int
) -> tuple[list[int], list[TokenizedSuffix]]:
    """The prefix's tokens, BOS where the model has one, and the suffixes with their choices.

    The prefix is tokenised by itself, a suffix together with each choice. Raises ValueError for an empty choice or
    suffix, or a sequence beyond ``seq_len`` tokens.
    """
    if not choices or not all(choices) or not all(suffixes):
        raise ValueError("suffixes and choices must not be empty")
    ids = tokenizer.encode(prefix)
    if tokenizer.adds_bos and ids[:1] != [tokenizer.bos_id]:
        ids = [tokenizer.bos_id or 0, *ids]
    asked = [_asked(tokenizer, suffix, choices) for suffix in suffixes]
    longest = len(ids) + max((len(own) for each in asked for own in each.sequences), default=0)
    if longest > seq_len:
        raise ValueError(f"the prompt has {longest} tokens, the maximum is {seq_len}")
    if sum(map(len, choices)) > MOST_CHOICE_TOKENS:
        raise ValueError(f"the choices have more than {MOST_CHOICE_TOKENS} characters in total")
    return ids, asked


def _asked(tokenizer: HFTokenizer, suffix: str, choices: Sequence[str]) -> TokenizedSuffix:
    bare = tokenizer.encode(suffix)
    sequences = [tokenizer.encode(suffix + choice) for choice in choices]
    own = min(shared(bare, ids) for ids in sequences)
    if own == 0:
        raise ValueError("a suffix must not be one token with its choice")
    return TokenizedSuffix(sequences, own)


def shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that two sequences begin with alike."""
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return place
    return min(len(first), len(second))
