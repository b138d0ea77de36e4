import numpy as np
import pytest
import torch

from qaray.engines.attempts import stream_seed
from qaray.engines.endings import is_repetitive
from qaray.engines.local.sampling import SHORTLIST, RandomStream, sample


def nucleus(probabilities, top_p):
    """The plain definition: likeliest tokens until their mass reaches top_p."""
    order = np.argsort(-probabilities, kind="stable")
    size = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
    kept = order[:size]
    return kept, probabilities[kept] / probabilities[kept].sum()


@pytest.mark.parametrize("flat", [False, True])
def test_nucleus_sampling_follows_the_definition(flat):
    """Also where the nucleus is larger than the shortlist."""
    vocabulary = 4 * SHORTLIST
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0)) * (0.01 if flat else 3)
    probabilities = torch.softmax(logits[0].double() / 0.7, -1).numpy()
    kept, weights = nucleus(probabilities, 0.9)
    assert (len(kept) > SHORTLIST) is flat
    draws = np.linspace(0, 1, 999, endpoint=False) + 1e-4
    found = sample(logits.expand(len(draws), -1), draws.tolist(), 0.7, 0.9)
    expected = kept[np.searchsorted(np.cumsum(weights), draws, side="right").clip(max=len(kept) - 1)]
    assert (np.asarray(found) == expected).mean() > 0.99  # but for draws on a border


def test_greedy_and_extremes():
    logits = torch.tensor([[0.0, 5.0, 1.0], [2.0, 0.0, 9.0]])
    assert sample(logits, [0.9, 0.9], 0, 0.9) == [1, 2]
    assert sample(logits, [0.999999, 0.0], 1.0, 0.0001) == [1, 2]
    banned = torch.tensor([[float("-inf"), 1.0, float("-inf")]])
    assert sample(banned, [0.999999], 1.0, 1.0) == [1]


def test_streams_are_their_own():
    keys = [
        (0, "a", 0, 1),
        (1, "a", 0, 1),
        (0, "b", 0, 1),
        (0, "a", 1, 1),
        (0, "a", 0, 2),
        (0, "a\x000", 0, 1),
    ]
    draws = {RandomStream(stream_seed(*key)).next() for key in keys}
    assert len(draws) == len(keys)
    assert RandomStream(stream_seed(*keys[0])).next() == RandomStream(stream_seed(*keys[0])).next()


def test_circles():
    words = list(range(300))
    assert not is_repetitive(words, "")
    assert is_repetitive(words + [7] * 97, "")
    assert is_repetitive(words + list(range(50)) * 3, "")
    assert not is_repetitive(words + list(range(50)) * 2, "")
    assert not is_repetitive([1, 2, 3], "")
    line = "Q{}: What is the band gap of silicon at 300 K?\n"
    assert is_repetitive(words, "".join(line.format(i) for i in range(4)))
    assert not is_repetitive(words, "".join(line.format(i) for i in range(3)))
