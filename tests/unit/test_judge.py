"""What the judge is asked, and what its log-probabilities say."""

import math

import numpy as np
import pytest

from qaray.asking.templates import LLAMA2, Template, WordTokenizer
from qaray.evaluate.controls import other_answers, other_questions, paraphrase
from qaray.evaluate.grades import racar_rows, similarity_row
from qaray.evaluate.rubrics import JudgePrompts
from qaray.metrics.racar import passes
from qaray.metrics.similarity import (
    agreement,
    auc,
    both_orders,
    expected_level,
    is_grade,
    normalised,
    question_pairs,
    unit_vectors,
)
from qaray.models.tokenizer import load_tokenizer
from qaray.schema import DIMENSIONS, Failure, failure_of, pair_id

KEY = {"doi": "d", "digest": "x"}


def paper(pairs, txt="Iron melts at 1811 K. " * 20):
    return {
        "doi": "d",
        "shard": "s",
        "digest": "x",
        "title": None,
        "txt": txt,
        "pairs": [{"Q": q, "A": a, "pair_id": pair_id("10.1/a", n)} for n, (q, a) in enumerate(pairs, 1)],
    }


def prompts(seq_len=4096, tokenizer=None, **values):
    return JudgePrompts(Template("llama2", LLAMA2), tokenizer or WordTokenizer(), seq_len, **values)


PAIRS = [("What melts?", "Iron."), ("What is 1811 K?", "Its melting point."), ("Why does it melt?", "Heat.")]
ALIKE = np.ones((3, 3))


def test_both_orders_of_every_pair_are_asked_once():
    request, _about = prompts().similarity(paper(PAIRS), ALIKE, [])
    asked = request["suffixes"]
    assert len(asked) == 6 == len(set(asked))
    assert (
        sum(s.index("What melts?") < s.index("Why does it melt?") for s in asked if "What melts?" in s and "Why" in s)
        == 1
    )
    assert request["choices"][-1] == "100\n"
    assert "What melts?" not in request["prefix"]  # the corpus shares it


def test_the_scores_come_back_to_their_pair():
    """A judge that is sure of one level for each suffix, another in each order."""
    _request, about = prompts().similarity(paper(PAIRS), ALIKE, [])
    levels = [0, 10, 20, 30, 40, 50]
    answers = [[0.0 if 10 * c == level else -1000.0 for c in range(11)] for level in levels]
    row = similarity_row(KEY, about, answers, None)
    assert [(p["i"], p["j"]) for p in row["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    assert [(p["judge"], p["judge_swapped"]) for p in row["pairs"]] == [(0.0, 0.1), (0.2, 0.3), (0.4, 0.5)]
    assert row["reason"] is None


def test_the_prefilter_judges_what_is_near():
    cosines = np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]])
    request, about = prompts(judge_above=0.5).similarity(paper(PAIRS), cosines, [])
    assert len(request["suffixes"]) == 2
    row = similarity_row(KEY, about, [[0.0] * 11] * 2, None)
    assert [p["judge"] for p in row["pairs"]] == [pytest.approx(0.5), None, None]
    assert [p["cosine"] for p in row["pairs"]] == pytest.approx([0.9, 0.1, 0.2])
    assert row["reason"] is None


def test_the_control_of_similarity():
    request, about = prompts().similarity(paper(PAIRS), ALIKE, ["What is gold?"])
    row = similarity_row(KEY, about, [[0.0] * 11] * 9, None)
    assert [each["kind"] for each in row["control"]] == ["duplicate", "paraphrase", "unrelated"]
    assert "Question 1: What melts?\nQuestion 2: What melts?" in request["suffixes"][6]
    assert "What is gold?" in request["suffixes"][8]


def test_one_pair_has_nothing_to_compare_with():
    request, about = prompts().similarity(paper(PAIRS[:1]), np.ones((1, 1)), [])
    assert request["suffixes"] == []
    assert similarity_row(KEY, about, [], None)["reason"] == "fewer_than_two_pairs"


def test_racar_asks_five_dimensions_of_every_pair_after_the_paper():
    own = paper([*PAIRS, ("What of gold?", " ")])
    request, about = prompts().racar(own, ["Silver."])
    assert request["prefix"].endswith(own["txt"])
    suffixes = request["suffixes"]
    assert len(suffixes) == 5 * (3 + 1)  # the empty answer is not judged; one control
    assert all(s.endswith(f"{name.capitalize()}: ") for s, name in zip(suffixes, DIMENSIONS * 4, strict=True))
    assert "Answer: Silver." in suffixes[15]
    assert "Question: What melts?" in suffixes[15]
    answers = [[0.0 if level == n % 5 else -1000.0 for level in range(5)] for n in range(20)]
    rows = list(racar_rows(KEY, about, answers, None))
    assert [row["qa"] for row in rows] == [0, 1, 2, 3]
    assert [rows[1][name] for name in DIMENSIONS] == [1, 2, 3, 4, 5]
    assert [rows[1][f"{name}_argmax"] for name in DIMENSIONS] == [1, 2, 3, 4, 5]
    assert rows[0]["swapped"] == dict(zip(DIMENSIONS, [1.0, 2.0, 3.0, 4.0, 5.0], strict=True))
    assert rows[1]["swapped"] is None
    assert (rows[3]["reason"], rows[3]["accuracy"], rows[3]["passes"]) == ("empty_answer", None, None)
    assert rows[0]["passes"] is False  # relevance 1


def test_a_paper_beyond_the_judges_context_is_cut_and_that_is_recorded(tiny_model):
    tokenizer = load_tokenizer(tiny_model, "cache")
    request, about = prompts(2600, tokenizer).racar(paper(PAIRS, "x" * 5000), [])
    row = next(racar_rows(KEY, about, [[0.0] * 5] * 15, None))
    assert 0 < row["paper_tokens_lost"] < 5000
    longest = max(len(tokenizer.encode(s)) for s in request["suffixes"])
    assert len(tokenizer.encode(request["prefix"])) + longest <= 2600


def test_an_answer_too_long_for_the_judge_costs_that_pair_only(tiny_model):
    _request, about = prompts(2600, load_tokenizer(tiny_model, "cache")).racar(
        paper([*PAIRS, ("Why?", "x" * 3000)]), []
    )
    rows = list(racar_rows(KEY, about, [[0.0] * 5] * 15, None))
    assert rows[3]["reason"] == "over_length"
    assert rows[0]["accuracy"] == pytest.approx(3.0)


def test_a_failure_of_the_engine_is_every_rows():
    failure = Failure("engine_error", "boom")
    _, about = prompts().racar(paper(PAIRS), [])
    assert [failure_of(row) for row in racar_rows(KEY, about, None, failure)] == [failure] * 3
    _request, about = prompts().similarity(paper(PAIRS), ALIKE, [])
    assert failure_of(similarity_row(KEY, about, None, failure)) == failure


def test_scores_name_their_pairs():
    _, about = prompts().racar(paper(PAIRS), [])
    ids = [pair["pair_id"] for pair in paper(PAIRS)["pairs"]]
    assert [row["pair_id"] for row in racar_rows(KEY, about, [[0.0] * 5] * 15, None)] == ids
    _request, about = prompts().similarity(paper(PAIRS), ALIKE, [])
    assert similarity_row(KEY, about, [[0.0] * 11] * 6, None)["pair_ids"] == ids


def test_the_test_set_rule_leaves_agnosticism_to_the_words():
    good = dict.fromkeys(DIMENSIONS, 3.0)
    assert passes(good, self_contained=True)
    assert passes({**good, "agnosticism": 1.0}, self_contained=True)
    assert not passes(good, self_contained=False)
    assert not passes({**good, "accuracy": 2.99}, self_contained=True)
    assert not passes({**good, "accuracy": None}, self_contained=True)


def test_expected_values():
    assert normalised([math.log(1), math.log(3)]).tolist() == pytest.approx([0.25, 0.75])
    assert expected_level([-700.0, -700.0 + math.log(3)], [0, 100]) == pytest.approx(75)
    assert expected_level([-math.inf, 0.0], [1, 5]) == 5
    for bad in ([], [math.nan, 0.0], [-math.inf, -math.inf]):
        with pytest.raises(ValueError, match="not numbers"):
            expected_level(bad, range(len(bad)))


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ([], False),
        ([0.0], True),
        ([-math.inf, -1.0], True),
        ([-math.inf, -math.inf], False),
        ([0.0, math.nan], False),
        ([math.nan, -math.inf], False),
        ([None, 0.0], False),  # null in the JSON of an endpoint
    ],
)
def test_what_is_a_grade(logprobs, expected):
    assert is_grade(logprobs) is expected
    if not expected:
        with pytest.raises(ValueError, match="^the judge's scores are not numbers$"):
            normalised(logprobs)


def test_probabilities_have_double_precision():
    assert normalised(np.array([-700.0, -700.5], dtype=np.float32)).dtype == np.float64


@pytest.mark.parametrize(
    ("judge", "swapped", "expected"), [(0.2, 0.6, 0.4), (0.0, 0.0, 0.0), (None, 0.6, None), (0.2, None, None)]
)
def test_the_mean_of_both_orders(judge, swapped, expected):
    assert both_orders(judge, swapped) == expected


def test_unit_vectors():
    found = unit_vectors([[3, 4], [0, 0], [0, -7]])
    assert found == pytest.approx(np.array([[0.6, 0.8], [0, 0], [0, -1]]))
    assert found.dtype == np.float32
    assert unit_vectors(np.ones((2, 4))).dtype == np.float32


def test_auc_and_agreement():
    assert auc([3, 4], [1, 2]) == 1
    assert auc([1, 2], [1, 2]) == 0.5
    assert auc([], [1]) is None
    assert agreement([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.9]) == pytest.approx(1)
    assert agreement([1, 1, 1], [1, 2, 3]) is None
    assert agreement([1, 2, 3], [1, 1, 1]) is None
    assert agreement([1, 2], [1, 2]) is None
    assert agreement([1, 2, 3], [0.3, 0.2, 0.1]) == pytest.approx(-1)
    assert agreement([1, 2, 3, 4], [0, 0, 1, 1]) == pytest.approx(2 / math.sqrt(5))


def test_question_pairs_and_vectors():
    assert question_pairs(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert question_pairs(1) == question_pairs(0) == []
    assert unit_vectors(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [
        [pytest.approx(0.6), pytest.approx(0.8)],
        [0, 0],
    ]


def test_controls_come_from_other_papers():
    papers = [[{"Q": f"Q{p}{i}", "A": f"A{p}{i}"} for i in range(2)] for p in range(3)] + [[]]
    assert other_questions(papers, 0, 3) == ["Q10", "Q11", "Q20"]
    assert other_answers(papers, 2) == ["A00", "A01"]
    assert other_questions(papers[:1], 0, 3) == []


@pytest.mark.parametrize(
    "question",
    ["What is iron?", "How does it melt?", "Why so?", "Name it.", "What is the role of zinc in enzymes?", ""],
)
def test_a_paraphrase_has_other_words_at_its_head(question):
    assert paraphrase(question) != question
    assert set(question.rstrip("?.").split()[-1:]) <= set(paraphrase(question).replace(":", " ").rstrip("?.").split())


def test_a_judge_that_gives_no_numbers():
    """NaN where a grade should be is told, is in no mean, and costs no other grade."""
    request, about = prompts().similarity(paper(PAIRS), ALIKE, [])
    sure = [0.0] + [-1000.0] * 10
    row = similarity_row(KEY, about, [[math.nan] * 11] + [sure] * 5, None)
    assert [p["judge"] for p in row["pairs"]] == [None, 0.0, 0.0]
    assert row["reason"] == "not_finite"
    request, about = prompts().racar(paper(PAIRS), [])
    answers = [[0.0, -1.0, -1.0, -1.0, -1.0] for _ in request["suffixes"]]
    answers[7] = [-math.inf] * 5  # a dimension of the second pair
    rows = list(racar_rows(KEY, about, answers, None))
    assert [row["accuracy"] is None for row in rows] == [False, True, False]
    assert [bool(row["reason"]) for row in rows] == [False, True, False]


def test_cosines_that_are_no_numbers_are_judged_and_stored_as_none():
    cosines = np.full((3, 3), np.nan)
    request, about = prompts().similarity(paper(PAIRS), cosines, [])
    assert len(request["suffixes"]) == 6
    row = similarity_row(KEY, about, [[0.0] * 11] * 6, None)
    assert [p["cosine"] for p in row["pairs"]] == [None] * 3
    assert row["reason"] == "not_finite"
