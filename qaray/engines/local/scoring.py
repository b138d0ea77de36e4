"""Log-probabilities of given choices after a prompt: no text is generated.

What prompts share is computed once. The prefix (a rubric, a paper) stays in the cache, the part of it that the next
prefix begins with too. All that follows a prefix, many suffixes with their choices, is one prefix tree of tokens: the
question-answer pair that five suffixes begin with is there once, and so is the "1" of "10" and "100". The tree's tokens
are computed many at a time, unpadded, each seeing the prefix and its own ancestors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from qaray.engines.choices import MOST_CHOICE_TOKENS, TokenizedSuffix, shared, tokenised
from qaray.engines.local.causal_lm import CausalLM

TREE_TOKENS = {"cpu": 512, "cuda": 4096}  # of one pass


class Scorer:
    """Scores choices with one model. The last prefix is kept; rows that share it should follow one another."""

    def __init__(self, model: CausalLM, tree_tokens: int | None = None) -> None:
        """``tree_tokens``: tokens after the prefix that are computed in one pass."""
        self.model = model
        self.tree_tokens = tree_tokens or TREE_TOKENS[model.device.type]
        self.prefix_ids: list[int] = []
        self.computed = 0  # tokens that the model has read so far
        capacity = model.seq_len + self.tree_tokens + MOST_CHOICE_TOKENS
        if model.cache.budget_tokens < capacity:
            model.cache = model.new_cache(capacity)
        model.cache.shape(slots=1, capacity=capacity)

    def logprobs(self, prefix: str, suffixes: Sequence[str], choices: Sequence[str]) -> list[list[float]]:
        """Natural log of P(choice | prefix + suffix), [suffixes][choices]: the sum over the choice's tokens.

        The prefix is tokenised by itself, a suffix together with each choice. A choice that begins like another is
        told from it only by an end of its own ("10⏎", "100⏎"). Raises ValueError for an empty choice or suffix, or a
        sequence beyond ``seq_len``.
        """
        prefix_ids, asked = tokenised(self.model.tokenizer, prefix, suffixes, choices, self.model.seq_len)
        if not suffixes:
            return []
        self._keep(prefix_ids)
        found: dict[int, list[float]] = {}
        order = sorted(range(len(asked)), key=lambda i: asked[i].sequences[0])
        for members in self._passes(asked, order):
            found.update(self._one_pass([(i, asked[i]) for i in members]))
        return [found[i] for i in range(len(asked))]

    def _keep(self, ids: list[int]) -> None:
        """Puts the prefix into the slot, but for the part that lies there."""
        common = shared(ids, self.prefix_ids)
        self.prefix_ids = self.prefix_ids[:common]  # if the model fails, this much is there
        if common < len(ids):
            self.model.prefill(0, ids[common:], common)
            self.computed += len(ids) - common
        self.prefix_ids = ids

    def _passes(self, asked: Sequence[TokenizedSuffix], order: Sequence[int]) -> Iterator[list[int]]:
        """Neighbours in ``order`` whose tree has at most ``tree_tokens`` tokens, or one that has more by itself."""
        members: list[int] = []
        tree = _Tree()
        for i in order:
            before = len(tree.ids)
            for ids in asked[i].inner():
                tree.add(ids)
            if members and len(tree.ids) > self.tree_tokens and len(tree.ids) > before:
                yield members
                members, tree = [], _Tree()
                for ids in asked[i].inner():
                    tree.add(ids)
            members.append(i)
        if members:
            yield members

    def _one_pass(self, members: Sequence[tuple[int, TokenizedSuffix]]) -> Iterator[tuple[int, list[float]]]:
        """(request, log-probabilities) of requests whose tokens make one tree."""
        tree = _Tree()
        for ids in sorted(ids for _, asked in members for ids in asked.inner()):  # in this order nodes are depth-first
            tree.add(ids)
        heads: dict[int, int] = {}  # node → row of the logits
        wanted: list[tuple[int, int, int, int]] = []  # request, choice, row, token
        for i, asked in members:
            for choice, ids in enumerate(asked.sequences):
                path = tree.path(ids[:-1])
                for place in range(asked.own, len(ids)):
                    row = heads.setdefault(path[place - 1], len(heads))
                    wanted.append((i, choice, row, ids[place]))
        logits = self.model.prefill_tree(0, tree.ids, tree.parents, len(self.prefix_ids), list(heads))
        self.computed += len(tree.ids)
        rows, tokens = [w[2] for w in wanted], [w[3] for w in wanted]
        terms = (logits[rows, tokens] - torch.logsumexp(logits, dim=-1)[rows]).tolist()
        found = {i: [0.0] * len(asked.sequences) for i, asked in members}
        for (i, choice, _, _), term in zip(wanted, terms, strict=True):
            found[i][choice] += term
        yield from found.items()


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
        """The nodes of a sequence that was added."""
        nodes, node = [], -1
        for token in ids:
            node = self._children[node, token]
            nodes.append(node)
        return nodes
