"""Tokenizes the prefix, suffixes and choices of a score request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qaray.asking.templates import prompt_ids
from qaray.models.tokenizer import HFTokenizer

MOST_CHOICE_TOKENS = 1024  # limit on the tokens of the choices of one suffix


@dataclass(frozen=True)
class TokenizedSuffix:
    """A suffix and its choices as tokens."""

    sequences: list[list[int]]  # tokens of suffix + choice, one sequence per choice
    own: int  # index of the first token that belongs to the choices

    def inner(self) -> Iterator[list[int]]:
        """The tokens that the model reads: each sequence without its last token."""
        for ids in self.sequences:
            yield ids[:-1]

    def heads(self) -> dict[tuple[int, ...], list[int]]:
        """Context before a choice token → the tokens with which choices continue it, sorted."""
        continuations: dict[tuple[int, ...], set[int]] = {}
        for ids in self.sequences:
            for position in range(self.own, len(ids)):
                continuations.setdefault(tuple(ids[:position]), set()).add(ids[position])
        return {head: sorted(tokens) for head, tokens in continuations.items()}


def tokenised(
    tokenizer: HFTokenizer, prefix: str, suffixes: Sequence[str], choices: Sequence[str], seq_len: int
) -> tuple[list[int], list[TokenizedSuffix]]:
    """(prefix tokens, with BOS if the tokenizer adds it; the suffixes with their choices).

    The prefix is tokenized separately, a suffix together with each choice. Raises ValueError for an empty choice or
    suffix, a sequence of more than ``seq_len`` tokens, or choices that are too long.
    """
    if not choices or not all(choices) or not all(suffixes):
        raise ValueError("suffixes and choices must not be empty")
    ids = prompt_ids(prefix, tokenizer)
    tokenized = [_tokenize(tokenizer, suffix, choices) for suffix in suffixes]
    longest = len(ids) + max((len(sequence) for each in tokenized for sequence in each.sequences), default=0)
    if longest > seq_len:
        raise ValueError(f"the prompt has {longest} tokens, the maximum is {seq_len}")
    if sum(map(len, choices)) > MOST_CHOICE_TOKENS:
        raise ValueError(f"the choices have more than {MOST_CHOICE_TOKENS} characters in total")
    return ids, tokenized


def _tokenize(tokenizer: HFTokenizer, suffix: str, choices: Sequence[str]) -> TokenizedSuffix:
    suffix_ids = tokenizer.encode(suffix)
    sequences = [tokenizer.encode(suffix + choice) for choice in choices]
    own = min(shared(suffix_ids, ids) for ids in sequences)
    if own == 0:
        raise ValueError("a suffix must not be one token with its choice")
    return TokenizedSuffix(sequences, own)


def shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix of two token sequences."""
    for position, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return position
    return min(len(first), len(second))
