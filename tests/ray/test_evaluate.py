"""Evaluations as a user runs them, without a model: hashed words embed, a hash judges."""

import json
import os
import signal
from collections import Counter

import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from qaray.models.catalogue import resolve
from tests.chaos.faults import release
from tests.commands import PATIENCE, qaray, start, wait_for
from tests.conftest import make_paper, read_jsonl, with_pairs, write_jsonl
from tests.unit.test_coverage import slow_chunk_rate, slow_walk

ECHO = ("--engine", "echo")


def evaluate(tmp_path, records, *args, out="out"):
    file = write_jsonl(tmp_path / "processed.jsonl", records)
    return qaray("evaluate", "--processed_output", file, "--output_dir", tmp_path / out, *ECHO, *args)


def rows(out, name):
    return pads.dataset(str(out / "evaluation" / f"{name}.parquet"), format="parquet").to_table().to_pylist()


def check_scores(out, dois, pairs):
    """Every paper once in each table, every pair once."""
    for name in ("coverage", "similarity", "paper_scores"):
        assert Counter(row["doi"] for row in rows(out, name)) == dict.fromkeys(dois, 1), name
    wanted = {(doi, qa) for doi in dois for qa in range(pairs[doi])}
    for name in ("racar", "grounding"):
        assert Counter((row["doi"], row["qa"]) for row in rows(out, name)) == dict.fromkeys(wanted, 1), name
    assert not [f for f in out.rglob("*") if f.name.startswith(".tmp-")]
    assert not (out / "evaluation" / "lease.json").exists()


def test_ugly_papers_each_have_a_stated_result(tmp_path):
    nan = float("nan")
    records = [
        with_pairs(0),
        with_pairs(1, 0),
        with_pairs(2, 1),
        with_pairs(3, txt="One sentence only, which melts at 300 K."),
        with_pairs(4)
        | {"Q&A": [{"Q": "What?", "A": ""}, {"Q": "", "A": "Iron."}, {"Q": "Why?", "A": nan}, {"Q": "How?"}]},
        with_pairs(5) | {"keywords": None},
        with_pairs(0, 2),
        {k: v for k, v in with_pairs(7).items() if k != "txt"},
        with_pairs(8) | {"Q&A": "none"},
        with_pairs(9) | {"Q&A": ["none"]},
        {k: v for k, v in with_pairs(10).items() if k != "Q&A"},
        with_pairs(11) | {"txt": nan},
        with_pairs(12) | {"doi": "../../x", "txt": "Wasser\u200b <b>siedet</b> bei 100 °C. 日本語。"},
    ]
    done = evaluate(tmp_path, records, "--no_progress")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    kept = {r["doi"]: r for r in (records[i] for i in (0, 1, 2, 3, 4, 5, 12))}
    check_scores(out, set(kept), {doi: len(r["Q&A"]) for doi, r in kept.items()})
    reasons = [row["reason"] for row in read_jsonl(out / "evaluation" / "rejected.jsonl")]
    assert sorted(reasons) == sorted(
        ["duplicate_doi", "missing_key", "missing_key", "missing_key", "wrong_type", "wrong_type"]
    )
    coverage = {row["doi"]: row for row in rows(out, "coverage")}
    similarity = {row["doi"]: row for row in rows(out, "similarity")}
    none, one, short, ugly = (records[i]["doi"] for i in (1, 2, 3, 4))
    assert (coverage[none]["reason"], coverage[none]["overall"]) == ("no_pairs", None)
    assert "".join(coverage[none]["sentences"]) == records[1]["txt"]
    assert similarity[none]["reason"] == similarity[one]["reason"] == "fewer_than_two_pairs"
    assert (coverage[short]["overall"], coverage[short]["null"]) == (0.1, pytest.approx(0.1))
    problems = {row["qa"]: row["reason"] for row in rows(out, "racar") if row["doi"] == ugly}
    assert problems == {0: "empty_answer", 1: "empty_question", 2: "empty_answer", 3: "empty_answer"}
    grounding = {row["qa"]: row for row in rows(out, "grounding") if row["doi"] == ugly}
    assert {qa: row["reason"] for qa, row in grounding.items()} == problems
    assert (grounding[1]["self_contained"], grounding[1]["answer_words"]) == (None, 1)
    assert [grounding[qa]["answer_words"] for qa in (0, 2, 3)] == [None, None, None]
    summary = json.loads((out / "evaluation" / "summary.json").read_text())
    assert summary["metrics"]["coverage_overall"]["missing"] == 1
    assert summary["metrics"]["similarity_judge"]["missing"] == 2
    assert summary["metrics"]["racar_accuracy"]["missing"] == 2
    assert summary["problems"]["racar: empty_answer"] == 3
    assert json.loads((out / "evaluation" / "manifest.json").read_text())["counts"] == {
        "papers": 7, "pairs": 3 + 1 + 3 + 4 + 3 + 3, "rejected": 6,
    }  # fmt: skip


def test_hostile_and_very_long_texts_are_scored_and_shown(tmp_path):
    """Lone surrogates cost their record only; a megabyte, control characters and markup cost nothing."""
    mega, markup, control = "x" * 1_000_000, "</script><script>alert(1)</script>", "nul \0 and \x1b[31m"
    texts = [mega, "y " * 500_000, markup, control, "\u200b", "", float("nan"), "\u202e", "7 mg " * 2_000]
    records = [
        with_pairs(0) | {"Q&A": [{"Q": "What?", "A": text} for text in texts]},
        with_pairs(1) | {"Q&A": [{"Q": text, "A": "Iron."} for text in texts]},
        with_pairs(2, title=markup * 30_000, source=mega, keywords=[mega] * 3),
        with_pairs(3) | {"doi": "d" * 1_000_000, "txt": mega},
        with_pairs(4) | {"Q&A": [{"Q": "What?", "A": "\ud800"}]},
        with_pairs(5, txt=f"{control} {markup}"),
    ]
    done = evaluate(tmp_path, records, "--no_progress")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert [row["reason"] for row in read_jsonl(out / "evaluation" / "rejected.jsonl")] == ["undecodable"]
    check_scores(out, {r["doi"] for r in records if r is not records[4]}, {r["doi"]: len(r["Q&A"]) for r in records})
    empty = {(row["doi"], row["qa"]) for row in rows(out, "grounding") if str(row["reason"]).startswith("empty_")}
    assert empty == {(records[n]["doi"], qa) for n in (0, 1) for qa in (4, 5, 6, 7)}
    report = qaray("report", "--output_dir", out)
    assert report.returncode == 0, report.stderr
    pages = [out / "report" / "index.html", *sorted((out / "report" / "papers").iterdir())]
    assert len(pages) == 6
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert len(text) < 1_500_000, page
        assert "<script>alert" not in text
        assert "\0" not in text
        assert "\x1b" not in text
    assert len(pages[0].read_text()) < 400_000


def test_coverage_recomputed_from_the_stored_matrix(tmp_path):
    assert (
        evaluate(
            tmp_path,
            [with_pairs(i, 1 + i, txt=" ".join(make_paper(j)["txt"] for j in range(5 * i + 1))) for i in range(6)],
        ).returncode
        == 0
    )
    for row in rows(tmp_path / "out", "coverage"):
        scores = np.array(row["matrix"], dtype=np.float32)
        n = len(row["sentences"])
        assert scores.shape[1] == n
        k = max(1, int(0.15 * n))
        own = [sorted(range(n), key=lambda j, i=i: (-scores[i, j], j)) for i in range(len(scores))]
        assert row["overall"] == slow_chunk_rate(slow_walk(scores, k), n)
        assert row["individual"] == pytest.approx(np.mean([slow_chunk_rate(ids[:k], n) for ids in own]))
        assert row["lift"] == pytest.approx(row["overall"] - row["null"])
        assert row["sentence_std"] == pytest.approx(scores.astype(float).std(axis=0), abs=1e-7)
        for ids, best in zip(own, row["evidence"], strict=True):
            assert [one["sentence"] for one in best] == ids[:10]
            assert all(one["text"] == row["sentences"][one["sentence"]].strip() for one in best)


@pytest.mark.long
def test_killed_and_stopped_evaluation_goes_on(tmp_path):
    """SIGKILL while texts are embedded, SIGTERM while pairs are judged, and the same command each time."""
    records, out = [with_pairs(i) for i in range(24)], tmp_path / "out"
    file = write_jsonl(tmp_path / "processed.jsonl", records)
    args = ("evaluate", "--processed_output", file, "--output_dir", out, *ECHO, "--papers_per_shard", 4)
    for stage, table, number in (("embed", "coverage", signal.SIGKILL), ("judge", "racar", signal.SIGTERM)):
        process = start(*args, faults={"hold": {stage: 2}, "folder": tmp_path})
        folder = out / "evaluation" / f"{table}.parquet"
        wait_for(lambda folder=folder: list(folder.glob("*/*.parquet")), process)
        os.killpg(process.pid, number)
        if number == signal.SIGTERM:
            wait_for((out / "evaluation" / "stop").exists, process)
            release(tmp_path, stage)
        output, _ = process.communicate(timeout=PATIENCE)
        if number == signal.SIGTERM:
            assert process.returncode == 143, output
            assert "stopped: judging" in output
            assert "rerun the command to resume" in output
        assert not (out / "evaluation" / "manifest.json").exists()
    done = qaray(*args)
    assert done.returncode == 0, done.stderr
    dois = {r["doi"] for r in records}
    check_scores(out, dois, dict.fromkeys(dois, 3))
    again = qaray(*args)
    assert again.returncode == 0
    assert again.stdout == done.stdout


def test_a_changed_file_is_measured_anew_where_it_changed(tmp_path):
    records = [with_pairs(i) for i in range(5)]
    assert evaluate(tmp_path, records).returncode == 0
    before = {row["doi"]: row["digest"] for row in rows(tmp_path / "out", "coverage")}
    changed = [with_pairs(0, 2), *records[1:4], with_pairs(7)]
    assert evaluate(tmp_path, changed).returncode == 0
    out = tmp_path / "out"
    check_scores(out, {r["doi"] for r in changed}, {r["doi"]: len(r["Q&A"]) for r in changed})
    after = {row["doi"]: row["digest"] for row in rows(out, "coverage")}
    assert after[records[0]["doi"]] != before[records[0]["doi"]]
    assert after[records[1]["doi"]] == before[records[1]["doi"]]


def test_metrics_can_be_added_and_other_settings_are_refused(tmp_path):
    records = [with_pairs(i) for i in range(3)]
    assert evaluate(tmp_path, records, "--metrics", "grounding").returncode == 0
    assert {f.name for f in (tmp_path / "out/evaluation").glob("*.parquet")} == {
        "grounding.parquet",
        "paper_scores.parquet",
    }
    done = evaluate(tmp_path, records, "--metrics", "grounding,coverage")
    assert done.returncode == 0, done.stderr
    assert "coverage_overall" in done.stdout
    alone = evaluate(tmp_path, records, "--metrics", "grounding")
    assert alone.stdout == done.stdout  # what was measured before is still told
    more = evaluate(tmp_path, [*records, with_pairs(3)], "--metrics", "grounding")
    assert "coverage_overall" not in more.stdout  # a paper lacks it
    refused = evaluate(tmp_path, records, "--metrics", "coverage", "--query_instruction", "Query: ")
    assert refused.returncode == 2
    assert "query_instruction: '' in the run, 'Query: ' asked for" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_generated_run_is_evaluated_and_two_are_compared(tmp_path):
    file = write_jsonl(tmp_path / "papers.jsonl", [make_paper(i) for i in range(6)])
    for name, count in (("a", 2), ("b", 3)):
        out = tmp_path / name
        assert qaray("generate", "--file_path", file, *ECHO, "--num_qas", count, "--output_dir", out).returncode == 0
        done = qaray("evaluate", "--output_dir", out, *ECHO)
        assert done.returncode == 0, done.stderr
        check_scores(out, {make_paper(i)["doi"] for i in range(6)}, {make_paper(i)["doi"]: count for i in range(6)})
    compared = qaray("evaluate", "--compare", tmp_path / "a", tmp_path / "b")
    assert compared.returncode == 0, compared.stderr
    assert "6 papers in both; 0 only in A, 0 only in B" in compared.stdout
    line = next(line for line in compared.stdout.splitlines() if line.startswith("numbers_found"))
    assert line.split()[1:4] == ["1.000", "1.000", "0.000"]
    refused = qaray("evaluate", "--compare", tmp_path / "a", tmp_path / "nothing")
    assert refused.returncode == 2
    assert "is not an evaluated run: pass the --output_dir of evaluate" in refused.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--metrics", "beauty"), "unknown metric 'beauty': choose from coverage, similarity, racar, grounding"),
        (("--metrics", ","), "unknown metric ''"),
        (("--embed_actors", "2:1"), "embed_actors must be MIN:MAX"),
        (("--processed_output", "nowhere.json"), "no such file or folder: nowhere.json"),
        (("--judge_above", "2"), "judge_above must be between -1 and 1, got 2"),
        ((), "is not a run directory"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(tmp_path, args, words):
    done = qaray("evaluate", "--output_dir", tmp_path / "out", *ECHO, *args)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_judge_that_is_not_there(tmp_path):
    done = evaluate(tmp_path, [with_pairs(0)], "--engine", "transformers", "--judge_model", "/no/such")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "model /no/such: no such folder" in done.stderr


def test_an_embedder_that_gives_no_numbers(tmp_path, model_cache):
    """A model in which one word has no vector: the papers that hold it say so, the others lose nothing."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(resolve("bundled:minilm", model_cache), device="cpu")
    word = model.tokenizer.convert_tokens_to_ids("zinc")
    model.transformers_model.get_input_embeddings().weight.data[word] = float("nan")
    model.save(str(tmp_path / "model"))
    records = [with_pairs(i) for i in range(3)]
    records[1]["Q&A"][2]["Q"] = "Why does zinc melt?"
    done = evaluate(
        tmp_path, records, "--embedding_model", tmp_path / "model", "--metrics", "coverage,similarity",
        "--dtype", "float32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    bad = {records[1]["doi"]}
    for name in ("coverage", "similarity"):
        problems = {row["doi"]: row["reason"] for row in rows(tmp_path / "out", name)}
        assert {doi for doi, problem in problems.items() if problem == "not_finite"} == bad, name
        assert set(problems) == {r["doi"] for r in records}
    row = next(row for row in rows(tmp_path / "out", "similarity") if row["doi"] in bad)
    assert [pair["cosine"] is None for pair in row["pairs"]] == [False, True, True]
    assert all(pair["judge"] is not None for pair in row["pairs"])
    summary = json.loads((tmp_path / "out/evaluation/summary.json").read_text())
    assert summary["metrics"]["coverage_overall"]["missing"] == 1
    assert summary["metrics"]["similarity_cosine"]["missing"] == 0
    assert summary["near_duplicates"]["questions"] == 8


def test_near_duplicates_across_papers(tmp_path):
    questions = ["Why is the sky blue?", "How do enzymes bind zinc?", "What limits a laser's linewidth?"]
    questions.append(questions[0])
    records = [with_pairs(i, 1) | {"Q&A": [{"Q": q, "A": "So."}]} for i, q in enumerate(questions)]
    assert evaluate(tmp_path, records, "--metrics", "similarity", "--duplicate_cosine", "0.99").returncode == 0
    found = pq.read_table(tmp_path / "out/evaluation/near_duplicates.parquet").to_pylist()
    assert [(r["doi"], r["other_doi"]) for r in found] == [(records[0]["doi"], records[3]["doi"])]


def test_real_models_and_an_answer_beyond_the_embedders_limit(tmp_path, model_cache, tiny_model):
    """The bundled embedder and a small random judge through the actor pools."""
    records = [with_pairs(i) for i in range(3)]
    records[1]["Q&A"][0]["A"] = "iron " * 700
    file, out = write_jsonl(tmp_path / "processed.jsonl", records), tmp_path / "out"
    done = qaray(
        "evaluate", "--processed_output", file, "--output_dir", out, "--judge_model", tiny_model,
        "--cache_dir", model_cache, "--context_size", "4096",
        "--prompt_template", "llama2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_scores(out, {r["doi"] for r in records}, {r["doi"]: 3 for r in records})
    coverage = {row["doi"]: row for row in rows(out, "coverage")}
    lost = coverage[records[1]["doi"]]["pair_tokens_lost"]
    assert lost[0] > 100
    assert lost[1:] == [0, 0]
    best = coverage[records[0]["doi"]]["evidence"][0][0]["text"]
    assert "compound 0-0" in best
    racar = [row for row in rows(out, "racar") if row["doi"] == records[0]["doi"]]
    assert all(1 <= row["accuracy"] <= 5 for row in racar)
    first = next(r for r in rows(out, "racar") if r["doi"] == records[1]["doi"] and r["qa"] == 0)
    assert first["reason"] == "over_length"


def test_what_is_shown_is_of_the_papers_as_they_are(tmp_path):
    """Papers that are added, and pairs made elsewhere in the same directory: no score is shown beside other papers."""
    out = tmp_path / "out"
    papers, elsewhere = tmp_path / "p.jsonl", write_jsonl(tmp_path / "elsewhere.jsonl", [with_pairs(9), with_pairs(10)])

    def done(command, *args):
        run = qaray(command, "--output_dir", out, *ECHO, *args)
        assert run.returncode == 0, run.stderr

    def shown():
        index = (out / "report/index.html").read_text()
        pages = sorted(file.name for file in (out / "report/papers").iterdir())
        return index.partition("<h1>")[2].partition("</h1>")[0], "Numbers found" in index, len(pages)

    write_jsonl(papers, [make_paper(i) for i in range(3)])
    done("generate", "--file_path", papers, "--num_qas", 2)
    assert shown() == ("6 question-answer pairs from 3 of 3 papers", False, 3)
    done("evaluate")
    assert shown() == ("6 question-answer pairs from 3 of 3 papers", True, 3)
    write_jsonl(papers, [make_paper(i) for i in range(5)])
    done("generate", "--file_path", papers, "--num_qas", 2)
    assert shown() == ("10 question-answer pairs from 5 of 5 papers", False, 5)
    done("evaluate", "--metrics", "grounding")  # the others have rows of three papers only
    assert shown() == ("10 question-answer pairs from 5 of 5 papers", True, 5)
    assert set(json.loads((out / "evaluation/summary.json").read_text())["metrics"]) >= {"numbers_found"}
    done("evaluate", "--metrics", "grounding", "--processed_output", elsewhere)
    assert shown() == ("6 question-answer pairs of 2 papers, evaluated", True, 2)
    done("generate", "--file_path", papers, "--num_qas", 2)
    assert shown() == ("10 question-answer pairs from 5 of 5 papers", False, 5)
    done("evaluate", "--metrics", "grounding")
    assert shown() == ("10 question-answer pairs from 5 of 5 papers", True, 5)
    write_jsonl(papers, [make_paper(i) for i in range(6)])
    done("generate", "--file_path", papers, "--num_qas", 2)  # the other pairs' papers still lie there
    assert shown() == ("12 question-answer pairs from 6 of 6 papers", False, 6)
    assert not (out / "evaluation/manifest.json").exists()
