"""The whole of `qaray generate` with the echo engine on real Ray."""

import json
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.chaos.faults import release
from tests.commands import PATIENCE, check_complete, generations, kill, qaray, shards, shell, start, wait_for
from tests.conftest import ROOT, make_paper, read_jsonl, write_jsonl

HELD = "heldword"
ECHO = ("--engine", "echo", "--num_qas", "3")


def test_every_record_ends_in_a_row_or_a_reason(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    papers = [make_paper(i) for i in range(30)]
    odd = [make_paper(100 + i, doi=doi) for i, doi in enumerate(["2101.00010", "../../x", "a/b\n", "007", " é "])]
    bad = [
        {"doi": "x1", "txt": " ", "keywords": []},
        {"doi": 5, "txt": "t", "keywords": []},
        {"doi": "x2"},
        [],
        papers[3],
    ]
    (folder / "1.json").write_text(json.dumps([*papers, *bad, *odd]))
    (folder / "2.jsonl").write_text(json.dumps(make_paper(50)) + "\n{broken\n" + json.dumps(papers[4]) + "\n")
    (folder / "3.json").write_text("[" + json.dumps(make_paper(51)) + ", {")
    done = qaray("generate", "--file_path", folder, "--output_dir", out, *ECHO)
    assert done.returncode == 0, done.stderr
    dois = {p["doi"] for p in [*papers, *odd, make_paper(50), make_paper(51)]}
    manifest = check_complete(out, dois)
    reasons = {"empty_text": 1, "wrong_type": 2, "missing_key": 1, "duplicate_doi": 2, "not_json": 2}
    assert manifest["counts"]["by_reject_reason"] == reasons
    duplicate = next(r for r in read_jsonl(out / "rejected.jsonl") if r["reason"] == "duplicate_doi")
    assert duplicate["detail"] == f"record 3 of {folder}/1.json has the same doi"
    record = json.loads((out / "processed_output.json").read_text())[0]
    assert list(record) == ["source", "doi", "abstract", "keywords", "txt", "title", "num_Q&A", "Q&A"]
    assert record["num_Q&A"] == len(record["Q&A"]) == 3
    original = json.loads((out / "original_output.json").read_text())
    assert [list(r) for r in original[:1]] == [["doi", "input", "output"]]
    assert original[0]["input"].startswith("[INST] <<SYS>>")
    assert papers[0]["txt"] in original[0]["input"]
    page = (out / "report" / "papers" / "000001.html").read_text()
    assert "What is the melting point of compound 0-0" in page or "melting point of compound 0-0" in page
    rows = pq.read_table(out / "papers").to_pylist()
    assert [r["row"] for r in rows] == list(range(len(dois)))
    assert all(r["tokens"] > 10 for r in rows)


def test_a_run_without_a_paper_keeps_its_reasons_and_says_the_same_again(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", [{"DOI": "10.0/a", "txt": "t"}, {"doi": "10.0/b", "txt": ["t"]}])
    out = tmp_path / "out"
    for _ in range(2):
        done = qaray("generate", "--file_path", tmp_path / "p.jsonl", "--output_dir", out, *ECHO)
        assert done.returncode == 1
        first = "doi is missing; keys: DOI, txt; DOI: did you mean doi?"
        assert f"2 records were rejected, the first because {first}" in done.stderr.splitlines()[-1]
        assert [row["reason"] for row in read_jsonl(out / "rejected.jsonl")] == ["missing_key", "wrong_type"]


def test_optional_fields_that_were_left_out_are_counted_once(tmp_path):
    papers = [make_paper(0, title=["T"]), make_paper(1, title=3, keywords=4), make_paper(2)]
    write_jsonl(tmp_path / "p.jsonl", [*papers, make_paper(3, doi=f"https://doi.org/{papers[2]['doi'].upper()}")])
    out = tmp_path / "out"
    for _ in range(2):
        done = qaray("generate", "--file_path", tmp_path / "p.jsonl", "--output_dir", out, *ECHO)
        assert done.returncode == 0, done.stderr
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["left_out"] == {
            "title was not a string": 2, "keywords was not a string or a list of strings": 1,
        }  # fmt: skip
        assert (manifest["counts"]["papers"], manifest["counts"]["by_reject_reason"]) == (3, {"duplicate_doi": 1})


def test_same_command_again_does_nothing_and_new_papers_are_added(tmp_path):
    """With names beyond ASCII, which Ray's metrics refuse."""
    out, file = tmp_path / "läufe 文", tmp_path / "päpers.jsonl"
    write_jsonl(file, [make_paper(i) for i in range(20)])
    args = ("generate", "--file_path", tmp_path, "--output_dir", out, *ECHO)
    assert qaray(*args).returncode == 0
    before = {f: f.stat().st_mtime_ns for f in (out / "generations").iterdir()}
    manifest = check_complete(out, {make_paper(i)["doi"] for i in range(20)})
    assert qaray(*args).returncode == 0
    assert {f: f.stat().st_mtime_ns for f in (out / "generations").iterdir()} == before
    assert json.loads((out / "manifest.json").read_text())["last_start"] == manifest["last_start"]
    # The file grows in front and behind, and another one comes: old papers are known, one doi comes twice.
    write_jsonl(file, [make_paper(90), *[make_paper(i) for i in range(20)], make_paper(91)])
    write_jsonl(tmp_path / "q.jsonl", [make_paper(92), make_paper(5)])
    assert qaray(*args, "--actors", "1:2").returncode == 0
    manifest = check_complete(out, {make_paper(i)["doi"] for i in [*range(20), 90, 91, 92]})
    assert manifest["counts"]["by_reject_reason"] == {"duplicate_doi": 1}
    assert set(before) < set((out / "generations").iterdir())


def test_a_run_of_an_earlier_release_is_refused(tmp_path):
    """Layout 1 had neither ids of pairs nor columns for reason and detail."""
    out, file = tmp_path / "out", write_jsonl(tmp_path / "p.jsonl", [make_paper(1)])
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"engine": "echo", "num_qas": 10, "hash": "0"}))
    (out / "manifest.json").write_text("{}")
    generate = ("generate", "--file_path", file, "--output_dir", out, "--engine", "echo")
    for args in (generate, ("evaluate", "--engine", "echo", "--output_dir", out), ("report", "--output_dir", out)):
        done = qaray(*args)
        assert done.returncode == 2, (args[0], done.stderr)
        assert "was written by an earlier release (layout 1, expected 3)" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (out / "generations").exists()


def test_another_identity_is_refused_with_the_difference(tmp_path):
    out, file = tmp_path / "out", write_jsonl(tmp_path / "p.jsonl", [make_paper(1)])
    args = ("generate", "--file_path", file, "--output_dir", out, "--engine", "echo")
    assert qaray(*args).returncode == 0
    again = qaray(*args, "--num_qas", "4", "--seed", "1")
    assert again.returncode == 2
    assert "num_qas: 10 in the run, 4 asked for; seed: 0 in the run, 1 asked for" in again.stderr
    assert len(again.stderr.splitlines()) == 1


def test_limit_reads_the_first_records_only_and_can_be_lifted(tmp_path):
    out, file = tmp_path / "out", write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(12)])
    args = ("generate", "--file_path", file, "--output_dir", out, *ECHO, "--papers_per_shard", "3")
    assert qaray(*args, "--limit", "7").returncode == 0
    check_complete(out, {make_paper(i)["doi"] for i in range(7)})
    assert qaray(*args).returncode == 0
    check_complete(out, {make_paper(i)["doi"] for i in range(12)})


def test_killed_driver_goes_on_where_it_stopped(tmp_path):
    """SIGKILL in the middle of a run, then the same command on a cluster of two logical CPUs."""
    number, out = 240, tmp_path / "out"
    file = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(number)])
    args = ("generate", "--file_path", file, "--output_dir", out, *ECHO)
    killed = start(*args, faults={"rows": 20, "hold": {"generate": 3}, "folder": tmp_path})
    wait_for(lambda: shards(out / "generations", 3), killed)
    kill(killed)
    written = {f.name for f in (out / "generations").glob("part*")}
    assert not (out / "manifest.json").exists()
    done = shell(*args, "--local_cpus", "2", local=True)
    assert done.returncode == 0, done.stderr
    manifest = check_complete(out, {make_paper(i)["doi"] for i in range(number)})
    rows = generations(out)
    assert len(rows) == len({(r["doi"], r["window"], r["attempt"]) for r in rows}) == number
    assert manifest["last_start"]["prompts"] == number - 20 * len(written)
    assert written < {f.name for f in (out / "generations").glob("part*")}


def test_killed_while_reading(tmp_path):
    records, out = [make_paper(i % 190) for i in range(200)], tmp_path / "out"
    records[150] = make_paper(150, txt=f"{HELD} {make_paper(150)['txt']}")
    file = write_jsonl(tmp_path / "p.jsonl", records)
    args = ("generate", "--file_path", file, "--output_dir", out, *ECHO, "--papers_per_shard", "20")
    killed = start(*args, faults={"hold": {"tokens": HELD}, "folder": tmp_path})
    wait_for(lambda: shards(out / "papers", 2), killed)
    kill(killed)
    assert len(list((out / "papers").glob("part*"))) < 10
    assert qaray(*args).returncode == 0
    manifest = check_complete(out, {make_paper(i)["doi"] for i in range(190)})
    assert manifest["counts"]["by_reject_reason"] == {"duplicate_doi": 10}


def test_sigterm_ends_in_a_resumable_run_and_a_second_driver_is_refused(tmp_path):
    number, out = 240, tmp_path / "out"
    file = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(number)])
    args = ("generate", "--file_path", file, "--output_dir", out, *ECHO)
    running = start(*args, faults={"rows": 20, "hold": {"generate": 3}, "folder": tmp_path})
    wait_for(lambda: shards(out / "generations", 2), running)
    second = qaray(*args)
    assert second.returncode == 2
    assert "another driver is working on" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    running.send_signal(signal.SIGTERM)
    wait_for((out / "stop").exists, running)
    release(tmp_path, "generate")
    output, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 143, output
    assert "rerun the command to resume" in output
    assert not (out / "lease.json").exists()
    assert not (out / "manifest.json").exists()
    assert 0 < len(generations(out)) < number
    assert qaray(*args).returncode == 0
    check_complete(out, {make_paper(i)["doi"] for i in range(number)})


@pytest.mark.long
def test_many_papers_on_two_logical_cpus(tmp_path):
    number, out = 20_000, tmp_path / "out"
    file = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(number)])
    args = ("generate", "--file_path", file, "--output_dir", out, *ECHO, "--local_cpus", "2", "--report_papers", "0")
    for prompts in (number, number):  # the second start finds nothing to do, and keeps the figures of the first
        done = shell(*args, local=True)
        assert done.returncode == 0, done.stderr
        assert check_complete(out, {make_paper(i)["doi"] for i in range(number)})["last_start"]["prompts"] == prompts


def test_overlong_papers(tmp_path):
    papers = [make_paper(0), make_paper(1, txt=" ".join(make_paper(i)["txt"] for i in range(60)))]
    file = write_jsonl(tmp_path / "p.jsonl", papers)
    base = (
        "generate",
        "--file_path",
        file,
        *ECHO,
        "--seq_len",
        "1500",
        "--context_size",
        "1500",
        "--num_qas",
        "6",
    )
    for policy in ("truncate", "skip", "split"):
        out = tmp_path / policy
        assert qaray(*base, "--output_dir", out, "--overlength", policy).returncode == 0
        manifest = check_complete(out, {p["doi"] for p in papers})
        rows = [r for r in generations(out) if r["doi"] == papers[1]["doi"]]
        assert all(r["prompt_tokens"] + 900 <= 1500 for r in rows if not r["reason"])
        if policy == "truncate":
            assert rows[0]["truncated_tokens"] == manifest["tokens"]["truncated"] > 0
            assert rows[0]["end"] < len(papers[1]["txt"])
        if policy == "skip":
            assert manifest["counts"]["by_reject_reason"] == {"over_length": 1}
        if policy == "split":
            spans = sorted((r["start"], r["end"]) for r in rows)
            assert len(spans) > 1
            text = papers[1]["txt"]
            assert "".join(text[a:b] for a, b in spans).replace(" ", "") == text.replace(" ", "")
            original = json.loads((out / "original_output.json").read_text())
            assert [r["window"] for r in original if r["doi"] == papers[1]["doi"]] == list(range(len(spans)))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--temperature", "hot"), "'hot' is not a valid float"),
        (("--file_path", "nowhere.json"), "no such file or folder: nowhere.json"),
        (("--seq_len", "9000", "--context_size", "8192"), "seq_len 9000 exceeds context_size 8192"),
        (("--no_such_flag", "1"), "No such option '--no_such_flag'"),
        (("--num_qas", "0"), "num_qas must be between 1 and 100, got 0"),
        (("--config", "nowhere.yaml"), "--config nowhere.yaml"),
        (("--engine", "transformers", "--base_model", "bundled:nothing"), "unknown bundled model 'nothing'"),
        (("--engine", "transformers", "--base_model", "/no/such/model"), "no such folder"),
        (("--engine", "transformers"), "--base_model is required"),
        (("--prompt_template", "nowhere.txt"), "--prompt_template nowhere.txt"),
        (("--seq_len", "600"), "leaves no room for a paper"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(tmp_path, args, words):
    file = write_jsonl(tmp_path / "p.jsonl", [make_paper(1)])
    base = ["generate", "--output_dir", str(tmp_path / "out"), "--engine", "echo", "--file_path", str(file)]
    done = qaray(*base, *args)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_flags_from_a_file(tmp_path):
    file = write_jsonl(tmp_path / "p.jsonl", [make_paper(1)])
    (tmp_path / "c.yaml").write_text(f"file_path: {file}\nengine: echo\nnum_qas: 2\nno_progress: true\n")
    out = tmp_path / "out"
    done = qaray("generate", "--config", tmp_path / "c.yaml", "--output_dir", out, "--num_qas", "3")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads((out / "run.json").read_text())["num_qas"] == 3


def test_help_imports_nothing_heavy():
    done = shell("--help")
    assert done.returncode == 0
    assert "generate" in done.stdout
    heavy = "{'torch', 'ray', 'transformers', 'pyarrow'} & set(sys.modules)"
    probe = f"import sys; from qaray.cli import main; main(['generate', '--help']); print(sorted({heavy}))"
    shown = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.rstrip().endswith("[]")
    assert "--temperature" in shown.stdout
