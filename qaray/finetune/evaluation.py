"""Held-out loss in nats per answer token, whatever the batches and the number of ranks.

    loss = Σ over distinct examples of their answer tokens' −log p / number of these tokens

transformers' own evaluation averages the means of batches, whatever their numbers of tokens, and counts those examples
twice that accelerate repeats to give each rank the same number of batches. Shapes: B sequences, N positions that
predict an answer token, V vocabulary, E gathered examples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from qaray.finetune.examples import IGNORED

FORWARD = ("input_ids", "attention_mask", "logits_to_keep")  # without labels, the model computes no loss of its own


def answer_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(−log p in nats, number of answer tokens) of each sequence: float64 [B, 2].

    ``logits`` [B, N, V]; ``labels`` [B, N], IGNORED where there is no loss. One sequence at a time is in float32.
    """
    rows = []
    for predicted, wanted in zip(logits, labels, strict=True):
        kept = wanted != IGNORED
        nll = F.cross_entropy(predicted[kept].float(), wanted[kept], reduction="sum")
        rows.append(torch.stack([nll.double(), kept.sum().double()]))
    return torch.stack(rows)


def token_loss(gathered: Any, examples: int) -> dict[str, float]:
    """The loss over ``examples`` distinct examples, as metrics of Trainer.

    ``gathered``: an EvalPrediction with ``predictions`` [E, 2] of ``answer_nll`` and ``label_ids`` [E], the place of
    each example; places may repeat.
    """
    places, first = np.unique(gathered.label_ids, return_index=True)
    assert len(places) == examples, f"{len(places)} of {examples} examples were evaluated"
    nll, tokens = gathered.predictions[first].sum(axis=0)
    return {"loss": float(nll / tokens)}
