"""From the answers of a paper to its pairs, or to the reason why it has none."""

import pytest

from qaray.evaluate.sources import GeneratedPapers
from qaray.generate.answers import best_answers, by_doi, by_window, next_owed
from qaray.generate.merge import SHOWN, merged_pairs, no_pairs_detail, paper_outcome, processed_record
from qaray.run.directory import Run
from qaray.schema import PAPER_SCHEMA, PARSED_SCHEMA, table

PAPER = {"doi": "d", "file": "in.json", "position": 7, "row": 0, "tokens": 1, "keywords": ["zinc"], "txt": "Zinc."}
REFUSAL = "I'm sorry, but I cannot help with that."


def pairs_of(*questions):
    return [{"Q": question, "A": f"{question} yes", "pair_id": question} for question in questions]


def answer(questions=(), window=0, attempt=1, finish="stop", reason=None, output="", detail=None):
    return {
        "doi": "d",
        "window": window,
        "attempt": attempt,
        "num_qas": 2,
        "pairs": pairs_of(*questions),
        "finish_reason": None if reason else finish,
        "reason": reason,
        "detail": detail,
        "output": output,
    }


@pytest.mark.parametrize(
    ("answers", "most", "expected"),
    [
        ([], 1, 1),
        ([answer()], 1, None),
        ([answer()], 2, 2),
        ([answer(["a"])], 3, 2),
        ([answer(["a", "b"])], 3, None),
        ([answer(["a", "b", "c"])], 3, None),
        ([answer(reason="engine_error")], 3, None),
        ([answer(), answer(attempt=2, reason="engine_error")], 3, None),
        ([answer(attempt=2), answer()], 3, 3),
    ],
)
def test_the_next_attempt_of_a_window(answers, most, expected):
    assert next_owed(answers, most) == expected


def test_the_best_attempt_has_most_pairs_and_is_the_earliest_of_these():
    rows = [
        answer(["a"], window=1),
        answer(["b", "c"], attempt=3),
        answer(["d"], attempt=1),
        answer(["e", "f"], attempt=2),
        answer(["g"], window=1, attempt=2),
    ]
    assert [(row["window"], row["attempt"]) for row in best_answers(rows)] == [(0, 2), (1, 1)]


def test_rows_by_paper_and_window():
    rows = [answer(window=1), answer(), {**answer(window=1, attempt=2), "doi": "e"}]
    assert by_window(rows) == {1: [rows[0], rows[2]], 0: [rows[1]]}
    assert by_doi(rows) == {"d": rows[:2], "e": rows[2:]}


@pytest.mark.parametrize(
    ("answers", "questions", "status"),
    [
        ([answer(["a", "b"])], "ab", "complete"),
        ([answer(["a", "b", "c"])], "abc", "complete"),
        ([answer(["a"])], "a", "short"),
        ([answer(["a"], finish="length")], "a", "truncated"),
        ([answer(["a"], finish="repetition")], "a", "truncated"),
        ([answer(["a", "b"], finish="length")], "ab", "complete"),
        ([answer(["a"]), answer(["b", "c"], attempt=2)], "bc", "complete"),
        ([answer(["a"]), answer(finish="length", attempt=2)], "a", "short"),  # the worse attempt was cut
        ([answer(["a", "b"]), answer(["c", "d"], window=1)], "abcd", "complete"),
        ([answer(["a", "b"]), answer(["c"], window=1)], "abc", "short"),
        ([answer(["a", "b"]), answer(["B?", "c"], window=1)], "abc", "short"),  # one question counts once
        ([answer(["a", "b"]), answer(reason="engine_error", window=1)], "ab", "short"),
    ],
)
def test_a_paper_with_pairs(answers, questions, status):
    assert paper_outcome(PAPER, answers) == (pairs_of(*questions), status, None)


@pytest.mark.parametrize(
    ("answers", "stage", "reason", "detail"),
    [
        ([answer(reason="over_length", detail="9000 tokens")], "generate", "over_length", "9000 tokens"),
        (
            [answer(output="It is hot."), answer(reason="engine_error", detail="boom", window=1)],
            "generate", "engine_error", "boom",
        ),
        (
            [answer(output=" It is hot. ")],
            "parse", "no_pairs", "no question-answer pair: prose (1 tried, ended by stop): It is hot.",
        ),
        (
            [answer(), answer(attempt=2, finish="length"), answer(window=1, output=REFUSAL)],
            "parse", "no_pairs",
            f"no question-answer pair: empty, refused (3 tried, ended by length, stop): {REFUSAL}",
        ),
        (
            [answer(), answer(attempt=2, reason="engine_error", detail="boom")],
            "parse", "no_pairs", "no question-answer pair: empty (2 tried, ended by engine_error, stop)",
        ),
    ],
)  # fmt: skip
def test_a_paper_without_pairs(answers, stage, reason, detail):
    place = {"doi": "d", "file": "in.json", "position": 7}
    rejected = {**place, "stage": stage, "reason": reason, "detail": detail}
    assert paper_outcome(PAPER, answers) == ([], "malformed", rejected)


def test_why_outputs_have_no_pairs():
    assert no_pairs_detail([" ", "Iron.", "Zinc."]) == "no question-answer pair: empty, prose: Iron."
    assert no_pairs_detail(["", "\n"], "in two files") == "no question-answer pair: empty (in two files)"
    assert no_pairs_detail(["x" * (SHOWN + 1)]) == f"no question-answer pair: prose: {'x' * 200}"


def test_the_first_of_equal_questions_is_kept():
    first, second = pairs_of("What is zinc?", "Why?"), pairs_of("why", "what is Zinc", "How?")
    assert merged_pairs([first, second]) == [*first, second[2]]


def test_a_record_of_the_processed_output():
    full = {**PAPER, "source": "s", "abstract": "b", "title": None}
    assert processed_record(full, pairs_of("a")) == {
        "source": "s",
        "doi": "d",
        "abstract": "b",
        "keywords": ["zinc"],
        "txt": "Zinc.",
        "title": None,
        "num_Q&A": 1,
        "Q&A": pairs_of("a"),
    }
    assert processed_record(PAPER, [])["title"] is None


def test_a_paper_without_pairs_is_left_out_of_the_evaluation(tmp_path):
    run = Run.at(str(tmp_path))
    papers = [{**PAPER, "doi": doi} for doi in ("paired", "none", "unanswered")]
    (run.papers / "part-000000.parquet").write_table(table(papers, PAPER_SCHEMA))
    answers = [{**answer(["a"]), "doi": "paired"}, {**answer(output="prose"), "doi": "none"}]
    run.generation_file("part-000000", []).write_table(table(answers, PARSED_SCHEMA))
    found = GeneratedPapers.of(run).read("part-000000")
    assert [(paper["doi"], paper["txt"], paper["pairs"]) for paper in found] == [("paired", "Zinc.", pairs_of("a"))]
