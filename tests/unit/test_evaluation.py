"""The held-out loss: nats per answer token over distinct examples, whatever the batches. Ranks: tests/train."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qaray.finetune.evaluation import answer_nll, token_loss
from qaray.finetune.examples import IGNORED
from tests.training import small_trainer, write_shard

LENGTHS = [(9, 4), (30, 2), (12, 11), (17, 8), (21, 20)]  # tokens, and how many of them are the prompt's


def test_nll_and_tokens_read_by_eye():
    """Two sequences over a vocabulary of two: p = 3/4 and 1/4 at the first position, 1/2 at the second."""
    logits = torch.log(torch.tensor([[[3.0, 1.0], [1.0, 1.0]], [[3.0, 1.0], [1.0, 1.0]]]))
    labels = torch.tensor([[0, 1], [1, IGNORED]])
    found = answer_nll(logits.bfloat16(), labels)
    expected = [[math.log(4 / 3) + math.log(2), 2], [math.log(4), 1]]
    assert found.tolist() == pytest.approx(np.array(expected), abs=5e-3)
    assert found.dtype == torch.float64


def test_an_example_that_two_ranks_evaluate_counts_once_and_a_long_answer_more():
    rows, places = np.array([[1.0, 1], [30.0, 10], [1.0, 1], [30.0, 10]]), np.array([7, 3, 7, 3])
    gathered = SimpleNamespace(predictions=rows, label_ids=places)
    assert token_loss(gathered, 2) == {"loss": pytest.approx(31 / 11)}
    with pytest.raises(AssertionError, match="2 of 3 examples"):
        token_loss(gathered, 3)


def examples(number):
    random = torch.Generator().manual_seed(number)
    return [
        (torch.randint(2, 250, (length,), generator=random).tolist(), prompt) for length, prompt in LENGTHS[:number]
    ]


def plain_loss(model, rows):
    """The same by hand: one example after another, all positions, one sum."""
    nll, tokens = 0.0, 0
    for ids, prompt in rows:
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
        nll -= sum(logs[place - 1, ids[place]].item() for place in range(prompt, len(ids)))
        tokens += len(ids) - prompt
    return nll / tokens


@pytest.mark.parametrize(("number", "batch"), [(3, 2), (5, 2), (5, 3), (1, 1)])
def test_one_process(tmp_path, tiny_model, number, batch):
    trainer = evaluator(tmp_path, tiny_model, number, batch)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain_loss(trainer.model, examples(number)), rel=1e-5)


def evaluator(folder, model, number, batch):
    held_out = write_shard(folder / "eval", examples(number))
    train = write_shard(folder / "train", examples(2))
    return small_trainer(folder, model, train, held_out, per_device_eval_batch_size=batch)
