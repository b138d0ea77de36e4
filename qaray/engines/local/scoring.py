"""Log-probabilities of given choices after a prompt, without generating text.

Shared tokens are computed once. The prefix (a rubric, a paper) stays in the cache, and the next prefix reuses the
tokens that it shares with it. The suffixes of a prefix, with their choices, form one prefix tree of tokens: a
question-answer pair shared by five suffixes is computed once, and so is the "1" of "10" and "100". The tree is computed
in large passes without padding, in which each token attends to the prefix and its own ancestors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from qaray.engines.choices import MOST_CHOICE_TOKENS, TokenizedSuffix, shared, tokenised
from qaray.engines.local.causal_lm import CausalLM

TREE_TOKENS = {"cpu": 512, "cuda": 4096}  # per pass


class Scorer:
    """Scores choices with one model. The last prefix stays cached, so requests that share it should be adjacent."""

    def __init__(self, model: CausalLM, tree_tokens: int | None = None) -> None:
        """``tree_tokens``: maximum tokens after the prefix per pass."""
        self.model = model
        self.tree_tokens = tree_tokens or TREE_TOKENS[model.device.type]
        self.prefix_ids: list[int] = []
        self.computed = 0  # tokens computed by the model so far
        capacity = model.seq_len + self.tree_tokens + MOST_CHOICE_TOKENS
        if model.cache.budget_tokens < capacity:
            model.cache = model.new_cache(capacity)
        model.cache.shape(slots=1, capacity=capacity)

    def logprobs(self, prefix: str, suffixes: Sequence[str], choices: Sequence[str]) -> list[list[float]]:
        """Natural log of P(choice | prefix + suffix), [suffixes][choices]: the sum over the choice's tokens.

        The prefix is tokenized separately, a suffix together with each choice. Choices of which one is a prefix of
        another need a terminator ("10⏎", "100⏎"). Raises ValueError for an empty choice or suffix, or a sequence of
        more than ``seq_len`` tokens.
        """
        prefix_ids, tokenized = tokenised(self.model.tokenizer, prefix, suffixes, choices, self.model.seq_len)
        if not suffixes:
            return []
        self._keep(prefix_ids)
        scores: dict[int, list[float]] = {}
        order = sorted(range(len(tokenized)), key=lambda i: tokenized[i].sequences[0])
        for members in self._passes(tokenized, order):
            scores.update(self._one_pass([(i, tokenized[i]) for i in members]))
        return [scores[i] for i in range(len(tokenized))]

    def _keep(self, ids: list[int]) -> None:
        """Prefills the prefix, except for the part that is already cached."""
        common = shared(ids, self.prefix_ids)
        self.prefix_ids = self.prefix_ids[:common]  # still valid if the model fails
        if common < len(ids):
            self.model.prefill(0, ids[common:], common)
            self.computed += len(ids) - common
        self.prefix_ids = ids

    def _passes(self, tokenized: Sequence[TokenizedSuffix], order: Sequence[int]) -> Iterator[list[int]]:
        """Groups of suffixes, adjacent in ``order``, whose tree has at most ``tree_tokens`` tokens, or one suffix."""
        members: list[int] = []
        tree = _Tree()
        for i in order:
            before = len(tree.ids)
            for ids in tokenized[i].inner():
                tree.add(ids)
            if members and len(tree.ids) > self.tree_tokens and len(tree.ids) > before:
                yield members
                members, tree = [], _Tree()
                for ids in tokenized[i].inner():
                    tree.add(ids)
            members.append(i)
        if members:
            yield members

    def _one_pass(self, members: Sequence[tuple[int, TokenizedSuffix]]) -> Iterator[tuple[int, list[float]]]:
        """Yields (index, log-probabilities [choices]) of suffixes, all computed in one tree."""
        tree = _Tree()
        for ids in sorted(ids for _, suffix in members for ids in suffix.inner()):  # sorted: nodes are depth-first
            tree.add(ids)
        heads: dict[int, int] = {}  # node → row of the logits
        wanted: list[tuple[int, int, int, int]] = []  # suffix, choice, row, token
        for i, suffix in members:
            for choice, ids in enumerate(suffix.sequences):
                path = tree.path(ids[:-1])
                for place in range(suffix.own, len(ids)):
                    row = heads.setdefault(path[place - 1], len(heads))
                    wanted.append((i, choice, row, ids[place]))
        logits = self.model.prefill_tree(0, tree.ids, tree.parents, len(self.prefix_ids), list(heads))
        self.computed += len(tree.ids)
        rows, tokens = [w[2] for w in wanted], [w[3] for w in wanted]
        terms = (logits[rows, tokens] - torch.logsumexp(logits, dim=-1)[rows]).tolist()
        scores = {i: [0.0] * len(suffix.sequences) for i, suffix in members}
        for (i, choice, _, _), term in zip(wanted, terms, strict=True):
            scores[i][choice] += term
        yield from scores.items()


@dataclass
class _Tree:
    """A prefix tree of token sequences."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, ids: Sequence[int]) -> None:
        node = -1
        for token in ids:
            child = self._children.get((node, token))
            if child is None:
                child = self._children[node, token] = len(self.ids)
                self.ids.append(token)
                self.parents.append(node)
            node = child

    def path(self, ids: Sequence[int]) -> list[int]:
        """The nodes of a sequence that has been added."""
        nodes, node = [], -1
        for token in ids:
            node = self._children[node, token]
            nodes.append(node)
        return nodes
