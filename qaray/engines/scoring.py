"""Log-probabilities of given choices after a prompt: no text is generated.

Rows that share a prefix read it once: its keys and values stay in the slot while the suffixes come and go.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qaray.engines.causal_lm import CausalLM


class Scorer:
    """Scores choices with one model. The last prefix is kept; rows that share it should follow one another."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        self.prefix_ids: list[int] = []
        self.prefills = 0  # prefixes computed so far
        model.cache.shape(slots=1, capacity=min(model.seq_len, model.cache.budget_tokens))

    def logprobs(self, prefix: str, suffix: str, choices: Sequence[str]) -> list[float]:
        """Natural log of P(choice | prefix + suffix) for each choice: the sum over its tokens.

        Prefix, suffix and choice are tokenised apart, so that the borders are the caller's. Raises ValueError
        for an empty choice or suffix, or a sequence beyond ``seq_len``.
        """
        tokenizer = self.model.tokenizer
        suffix_ids = tokenizer.encode(suffix)
        choice_ids = [tokenizer.encode(choice) for choice in choices]
        if not choices or not all(choice_ids) or not suffix_ids:
            raise ValueError("suffix and choices must not be empty")
        self._keep(prefix, room=len(suffix_ids) + max(map(len, choice_ids)))
        start = len(self.prefix_ids)
        after_suffix = torch.log_softmax(self.model.prefill(0, suffix_ids, start), dim=-1)
        start += len(suffix_ids)
        return [self._choice(ids, after_suffix, start) for ids in choice_ids]

    def _choice(self, ids: list[int], first: torch.Tensor, start: int) -> float:
        total = float(first[ids[0]])
        if len(ids) > 1:
            logits = self.model.prefill(0, ids[:-1], start, logits="all")
            following = torch.log_softmax(logits, dim=-1)
            total += float(following[torch.arange(len(ids) - 1), ids[1:]].sum())
        return total

    def _keep(self, prefix: str, room: int) -> None:
        """Puts the prefix into the slot unless it is there."""
        ids = self.model.tokenizer.encode(prefix)
        if self.model.tokenizer.adds_bos and ids[:1] != [self.model.tokenizer.bos_id]:
            ids = [self.model.tokenizer.bos_id or 0, *ids]
        if len(ids) + room > self.model.cache.capacity:
            raise ValueError(f"the prompt has {len(ids) + room} tokens, {self.model.cache.capacity} fit")
        if ids != self.prefix_ids:
            self.prefix_ids = []
            if ids:
                self.model.prefill(0, ids)
            self.prefix_ids = ids
            self.prefills += 1
