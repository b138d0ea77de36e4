"""Very many pairs, sentences and characters: what is kept, compared, counted and shown of them is bounded."""

import base64
import random
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from qaray.asking.templates import LLAMA2, Template, WordTokenizer
from qaray.evaluate import coverage as coverage_stage
from qaray.evaluate import measure
from qaray.evaluate.coverage import MAX_COSINES, MAX_EVIDENCE, _coverage_row, _texts
from qaray.evaluate.grades import similarity_row
from qaray.evaluate.grounding import _grounding_rows, _Numbers
from qaray.evaluate.rubrics import JudgePrompts
from qaray.evaluate.summary import Tally, _add_similarity, sample_note
from qaray.metrics import coverage, grounding, similarity
from qaray.metrics.grounding import PaperNumbers, mentions
from qaray.metrics.numbers.mentions import Quantity
from qaray.report import figures, limits
from qaray.report.pages import Pages
from qaray.report.papers import MAX_SPANS, _with_scores, spans
from qaray.schema import COVERAGE_SCHEMA, SIMILARITY_SCHEMA, rows_of, table

KEY = {"doi": "10.1/long", "digest": "x"}


def paper(questions, txt="Iron melts at 1811 K.", answers=None):
    pairs = zip(questions, answers or ["Iron."] * len(questions), strict=True)
    numbered = [{"Q": q, "A": a, "pair_id": str(n)} for n, (q, a) in enumerate(pairs)]
    return {**KEY, "shard": "s", "title": None, "txt": txt, "pairs": numbered}


class Counting(WordTokenizer):
    """Counts the characters whose tokens are counted."""

    def __init__(self):
        self.characters = 0

    def count(self, texts):
        self.characters += sum(map(len, texts))
        return super().count(texts)


def request(questions, tokenizer, seq_len=4096):
    prompts = JudgePrompts(Template("llama2", LLAMA2), tokenizer, seq_len)
    compared = similarity.question_pairs(len(questions), KEY["doi"])
    return prompts.similarity(paper(questions), dict.fromkeys(compared, 0.5), [])


@pytest.mark.parametrize("questions", [101, 2_000, 10**7])
def test_a_sample_of_the_question_pairs_is_compared(questions):
    found = similarity.question_pairs(questions, "10.1/a")
    assert len(set(found)) == len(found) == similarity.MAX_QUESTION_PAIRS
    assert found == sorted(found)
    assert all(0 <= i < j < questions for i, j in found)
    assert found == similarity.question_pairs(questions, "10.1/a")
    assert found != similarity.question_pairs(questions, "10.1/b")


def test_the_sample_prefers_no_question():
    times = np.bincount(np.ravel(similarity.question_pairs(200, "d")), minlength=200)
    assert times.sum() == 2 * similarity.MAX_QUESTION_PAIRS
    assert 20 < times.min() <= 50 <= times.max() < 80  # 50 each; the standard deviation is 6


def test_places_of_pairs():
    assert [similarity._pair(place) for place in range(6)] == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    assert similarity._pair(10**18 - 1)[1] == 1_414_213_562


@pytest.mark.parametrize("questions", [0, 1, 5, 100, 150])
def test_cosines_of_the_compared_pairs(questions):
    vectors = similarity.unit_vectors(np.random.default_rng(0).normal(size=(questions, 8)))
    pairs = similarity.question_pairs(questions)
    cosines = similarity.pair_cosines(vectors, pairs)
    assert list(cosines) == pairs
    assert list(cosines.values()) == pytest.approx([float(vectors[i] @ vectors[j]) for i, j in pairs], abs=1e-6)


def test_a_judge_is_asked_about_the_sample_and_the_summary_says_so():
    asked, targets = request([f"What is compound {n}?" for n in range(400)], WordTokenizer())
    assert len(asked["suffixes"]) == 2 * similarity.MAX_QUESTION_PAIRS
    row = similarity_row(KEY, targets, [[0.0] * 11] * len(asked["suffixes"]), None)
    assert [(p["i"], p["j"]) for p in row["pairs"]] == similarity.question_pairs(400, KEY["doi"])
    assert row["reason"] is None
    tally = Tally()
    _add_similarity([row], tally)
    assert (tally.question_pairs, tally.sampled_papers) == (5_000, 1)
    assert tally.question_pairs_left_out == 400 * 399 // 2 - 5_000
    assert "74,800 are not" in sample_note({"papers": 1, "question_pairs_left_out": 74_800})


def test_questions_beyond_the_context_are_in_no_suffix():
    """A hundred questions of 20,000 characters, in both orders of 4,950 pairs, would be 400 million characters."""
    tokenizer = Counting()
    long = [f"What of {n}, {'and so on ' * 2_000}?" for n in range(98)]
    asked, targets = request([*long, "What is iron?", "What is zinc?"], tokenizer)
    assert targets["places"] == [2 * 4_949, 2 * 4_949 + 1]
    assert [suffix.count("What is iron?") for suffix in asked["suffixes"]] == [1, 1]
    assert tokenizer.characters < 3 * sum(map(len, long))


def test_suffixes_at_the_border_of_the_context_are_kept():
    """What fits is what is counted as a whole, in blocks too."""
    questions = [f"Q{n} " + "x " * (10 * n) for n in range(30)]
    for seq_len in (250, 400, 700):
        asked, targets = request(questions, WordTokenizer(), seq_len)
        everything, all_targets = request(questions, WordTokenizer(), 10**6)
        room = seq_len - WordTokenizer().count([asked["prefix"]])[0] - 16
        fits = [n for n, s in enumerate(everything["suffixes"]) if WordTokenizer().count([s])[0] <= room]
        assert targets["places"] == fits
        assert asked["suffixes"] == [everything["suffixes"][n] for n in fits]
        assert targets["asked"] == all_targets["asked"]


def test_coverage_in_blocks_is_the_same(monkeypatch):
    scores = np.random.default_rng(3).integers(0, 40, (37, 53)).astype(np.float32) / 40
    whole, best = coverage.coverage(scores), coverage.evidence(scores)
    monkeypatch.setattr(coverage, "BLOCK", 100)
    assert len(coverage._blocks(scores)) > 10
    assert coverage.coverage(scores) == whole  # to the last bit
    assert coverage.evidence(scores) == best
    assert whole.sentence_std == [float(value) for value in scores.astype(np.float64).std(axis=0)]
    k = coverage.sample_size(53)
    rates = [coverage.chunk_rate(ids, 53) for ids in coverage.evidence(scores, k)]
    assert whole.individual == float(np.mean(rates))


def test_matrices_of_rows_are_views_of_their_table():
    rows = [
        {**KEY, "matrix": [[1.0, 2.0], [3.0, 4.0]], "pair_ids": ["a", "b"]},
        {**KEY, "matrix": None},
        {**KEY, "matrix": []},
        {**KEY, "matrix": [[], []]},
    ]
    stored = table(rows, COVERAGE_SCHEMA)
    found = rows_of(stored.slice(0, 3)) + rows_of(pa.concat_tables([stored, stored]).slice(3, 2))
    assert [row["matrix"] if row["matrix"] is None else [list(line) for line in row["matrix"]] for row in found] == [
        [[1, 2], [3, 4]],
        None,
        [],
        [[], []],
        [[1, 2], [3, 4]],
    ]
    assert not found[0]["matrix"][0].flags.owndata
    plain = stored.select(["doi", "pair_ids"])
    assert rows_of(plain) == plain.to_pylist()
    assert table(found, COVERAGE_SCHEMA).column("matrix").to_pylist()[:3] == [[[1, 2], [3, 4]], None, []]


def test_a_table_beyond_a_chunk_is_made_in_parts(monkeypatch):
    class Small:
        @staticmethod
        def from_pylist(rows, schema):
            if len(rows) > 2:
                raise pa.ArrowCapacityError("too long")
            return pa.Table.from_pylist(rows, schema=schema)

    rows = [{"doi": str(n), "digest": "x"} for n in range(7)]
    expected = table(rows, SIMILARITY_SCHEMA)
    monkeypatch.setattr("qaray.schema.pa", SimpleNamespace(**{**vars(pa), "Table": Small}))
    assert table(rows, SIMILARITY_SCHEMA).equals(expected)


def embedded(questions, sentences, matrix, **failure):
    return {
        **KEY, "pair_ids": [str(n) for n in range(questions)], "documents": sentences, "matrix": matrix,
        "queries": ["q"] * len(matrix), "query_tokens_lost": [], "document_tokens_lost": [], "reason": None,
        "detail": None, **failure,
    }  # fmt: skip


def test_results_of_coverage_for_papers_without_or_with_too_many_sentences(monkeypatch):
    assert _coverage_row(embedded(0, ["A."], []))["reason"] == "no_pairs"
    assert _coverage_row(embedded(2, [], [[], []]))["reason"] == "empty_paper"
    monkeypatch.setattr(coverage_stage, "MAX_COSINES", 5)
    texts = _texts(paper(["a", "b"], "One is here. Two is here. Three is here."), ["coverage"])
    assert (texts["queries"], len(texts["documents"])) == ([], 3)
    row = _coverage_row(embedded(2, texts["documents"], []))
    assert (row["reason"], row["detail"]) == (
        "over_length",
        "2 pairs × 3 sentences exceed the 5 cosines kept per paper",
    )
    assert row["sentences"] == texts["documents"]
    assert 64 * MAX_COSINES < 2**31  # a block of papers, in one list of Arrow's


def test_evidence_repeats_the_beginning_of_a_long_sentence():
    row = _coverage_row(embedded(3, ["x" * 1_000_000], [[1.0]] * 3))
    assert [len(best[0]["text"]) for best in row["evidence"]] == [MAX_EVIDENCE] * 3


def test_each_sentence_is_read_once_for_the_overlap_of_all_pairs(monkeypatch):
    read = []
    monkeypatch.setattr("qaray.evaluate.grounding.content_words", lambda text: read.append(text) or {"iron"})
    own = paper(["What?"] * 50, answers=["Iron melts."] * 50)
    stored = {"sentences": ["Iron."], "evidence": [[{"sentence": 0, "text": "Iron."}]] * 50}
    rows = list(_grounding_rows(own, [[]] * 50, [], stored))
    assert [row["overlap"] for row in rows] == [0.5] * 50
    assert read == ["Iron."]


def test_texts_without_a_visible_character_are_empty():
    own = paper(["\u200b\u2060", "What?", "What?"], answers=["Iron.", "\u200b", "Iron."])
    rows = list(_grounding_rows(own, [[], [], []], [], None))
    assert [row["reason"] for row in rows] == ["empty_question", "empty_answer", None]
    prompts = JudgePrompts(Template("llama2", LLAMA2), WordTokenizer(), 4096)
    assert prompts.racar(own, [])[1]["empty"] == [0, 1]
    compared = similarity.question_pairs(3)
    assert prompts.similarity(own, dict.fromkeys(compared, 1.0), [])[1]["asked"] == [{"i": 1, "j": 2}]


def test_a_number_is_compared_with_its_neighbours_only(monkeypatch):
    calls = []
    agree = grounding._agree
    monkeypatch.setattr(grounding, "_agree", lambda *args: calls.append(args) or agree(*args))
    mg, g = (mentions(text)[0].readings[0][0][0].unit for text in ("1 mg", "1 g"))
    known = PaperNumbers.of(Quantity(Decimal(100_000 + 2 * n).scaleb(-3), mg) for n in range(5_000))
    assert Quantity(Decimal("105.001"), g) not in known
    for n in range(1_000):
        assert Quantity(Decimal(100_001 + 2 * n).scaleb(-3), mg) not in known
        assert Quantity(Decimal(100_000 + 2 * n).scaleb(-3), mg) in known
    assert len(calls) < 5_000


def test_neighbours_decide_as_all_numbers_of_the_paper_would():
    units = {
        text: mentions(f"1 {text}")[0].readings[0][0][0].unit
        for text in ("°C", "K", "°F", "mg", "g", "atm", "kPa", "wt%", "vol%", "%", "h", "min")
    }
    draw = random.Random(0)

    def near(base, unit):
        value = (base * draw.uniform(0.97, 1.03) - unit.offset) / unit.factor
        return Quantity(Decimal(f"{value:.{draw.choice([0, 0, 1, 2])}f}"), unit)

    hits = 0
    for _ in range(400):
        unit = draw.choice(list(units.values()))
        asked = near(draw.choice([-1, 1]) * 300 * unit.factor, unit)
        stored = [
            near(unit.base(float(asked.value)), other)
            for other in units.values()
            for _ in range(3)
            if other.dimension == unit.dimension
        ]
        every = any(
            grounding._agree(grounding._in_base_units(*asked), unit, (*grounding._in_base_units(*other), other.unit))
            for other in stored
        )
        assert (asked in PaperNumbers.of(stored)) is every
        hits += every
    assert 50 < hits < 350


def test_numbers_of_a_long_neighbour_are_looked_at_a_bounded_number_of_times():
    long = [{"A": f"{n % 700} mg"} for n in range(3_000)]
    numbers = _Numbers([{"pairs": [{"A": "5 kg"}]}, {"pairs": long}, *[{"pairs": [{"A": "7"}]}] * 60])
    assert len(numbers.with_unit(1)) < 4 * (50 + 4) + 1
    assert [n.text for n in numbers.of_others(0)] == ["0 mg", "1 mg", "2 mg", "3 mg"]


def test_tables_between_tasks_hold_few_papers_and_few_characters(monkeypatch):
    schema = pa.schema([("texts", pa.list_(pa.string()))])
    monkeypatch.setattr(measure, "CHARACTERS_AT_ONCE", 100)
    sizes = [[10] * 3, [60], [60], [500], [1], *[[0]] * 130]
    made = list(measure.tables_of(({"texts": ["x" * n for n in own]} for own in sizes), schema))
    assert [part.num_rows for part in made] == [2, 1, 1, 64, 64, 3]
    assert [part.num_rows for part in measure.tables_of([], schema)] == [0]


class Page(list):
    """A file that keeps what is written to it."""

    def write_bytes(self, content):
        self.append(content)


def scores_of(pairs, sentences):
    """Score rows of a paper with so many pairs and sentences."""
    cosines = np.random.default_rng(1).random((pairs, sentences)).astype(np.float32)
    best = [
        [{"sentence": int(j), "text": "", "score": float(row[j])} for j in np.argsort(-row)[:10]] for row in cosines
    ]
    compared = similarity.question_pairs(pairs, KEY["doi"])
    judged = [{"i": i, "j": j, "cosine": 0.9, "judge": 0.9, "judge_swapped": 0.9} for i, j in compared]
    row = {
        "sentences": [f"Sentence {n}. " for n in range(sentences)], "matrix": list(cosines), "evidence": best,
        "pair_tokens_lost": [0] * pairs, "reason": None, "detail": None,
    }  # fmt: skip
    missing = {"numbers": 900, "numbers_found": 0, "missing": ["5 mg"] * 900, "paper_reference": "x" * 4_000}
    return SimpleNamespace(
        papers={},
        coverage={KEY["doi"]: [row]},
        similarity={KEY["doi"]: [{"pairs": judged, "reason": None, "detail": None}]},
        racar={},
        grounding={KEY["doi"]: [missing] * pairs},
    )


def written(own, scores=None):
    """The paper as shown, and its page."""
    facts = {
        "title": own["title"] or own["doi"], "source": None, "keywords": [], "tokens": 7, "truncated": 0, "status": "",
        "why": "", "attempts": 0, "windows": 1, "outputs": [], **{k: own[k] for k in own if k != "title"},
    }  # fmt: skip
    shown, page = limits.cut_paper(_with_scores(facts, scores), "there"), Page()
    Pages().write(page, "paper.html", "paper.js", paper=shown)
    return shown, page[0]


def test_a_page_does_not_grow_with_the_pairs():
    small, large = (written(paper(["What is it?"] * count, "x"), scores_of(count, 2_000)) for count in (400, 800))
    assert len(large[1]) < 1.05 * len(small[1]) < 3_000_000
    assert "Showing the first 200 pairs; 600 more are in there." in large[1].decode()
    assert len(large[0]["pairs"]) == len(large[0]["evidence"]) == limits.PAIRS
    warnings = large[0]["pairs"][0]["warnings"]
    assert warnings[0].endswith("880 more")
    assert max(map(len, warnings)) < 400


@pytest.mark.parametrize(("questions", "title"), [(100, "by the judge"), (800, "by the judge, means of 16 × 16")])
def test_cells_of_the_similarity_figure(questions, title):
    pairs = [{"i": 0, "j": questions - 1, "cosine": 0.9, "judge": 0.4, "judge_swapped": 0.8}]
    image = str(figures.question_similarity(pairs, questions, by_judge=True))
    svg = base64.b64decode(image.partition("base64,")[2].partition('"')[0]).decode()
    assert f"Question similarity, {title}<" in svg


def test_a_page_shows_the_beginning_of_long_texts():
    own = paper(["<b>" * 400_000, "\u200b"], "x. " * 700_000, ["&" * 1_000_000, ""])
    own |= {
        "title": "<i>" * 300_000,
        "doi": "'" * 1_000_000,
        "keywords": ["k" * 10**6] * 100,
        "outputs": ["o" * 10**6] * 50,
    }
    shown, page = written(own)
    assert len(page) < 2_000_000
    assert len(shown["title"]) < 400
    assert len(shown["doi"]) < 400
    assert (len(shown["keywords"]), len(shown["outputs"])) == (51, 20)
    assert b"<b>" not in page
    assert b"<i>" not in page
    assert sum(map(len, shown["sentences"])) == limits.TEXT
    assert "1,100,000 more characters are in there" in page.decode()


def test_evidence_beyond_the_shown_text_is_left_out(monkeypatch):
    monkeypatch.setattr(limits, "SENTENCES", 3)
    shown, _ = written(paper(["a", "b"]), scores_of(2, 9))
    assert len(shown["sentences"]) == 3
    assert all(place < 3 for best in shown["evidence"] for place, _ in best)


@pytest.mark.parametrize("text", ["\ud800 alone", "nul \0 and \x1b[31m", "\x85\x9f", "</script><script>", "\u2028"])
def test_a_page_is_valid_whatever_the_text(text):
    own = paper([text], text, [text]) | {"title": text, "doi": text, "keywords": [text]}
    page = written(own)[1].decode()
    assert not [c for c in page if (ord(c) < 32 and c not in "\t\n\r") or 126 < ord(c) < 160]
    assert page.count("<script") == 2  # the evidence and the page's own


class Shards:
    """A source whose only shard has so many rows."""

    def __init__(self, rows):
        self.run = SimpleNamespace(papers=self)
        self.rows = rows

    def shards(self):
        return ["part"]

    def __truediv__(self, _):
        return self

    def count_rows(self):
        return self.rows


@pytest.mark.parametrize(
    ("rows", "most", "number"), [(500, 1_000, 25), (10**6, 10**6, MAX_SPANS), (0, 9, 0), (30, 25, 2)]
)
def test_a_shard_is_read_for_a_bounded_number_of_spans(rows, most, number):
    found = list(spans(Shards(rows), most, 20))
    assert len(found) == number
    assert sum(span.papers for span in found) == min(rows, most)
    assert [span.first for span in found] == [span.before for span in found]
