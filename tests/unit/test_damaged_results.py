"""Reports and comparisons of folders with missing, damaged and foreign files: one line names the file."""

import json

import pyarrow as pa
import pytest

from qaray.evaluate.compare import compare
from qaray.evaluate.summary import BOUNDS
from qaray.report import records
from qaray.run.directory import Run
from qaray.run.errors import Damaged, RunRefused
from qaray.run.storage import Location

SCORES = {"doi": ["10.1/a", "10.1/b"], **{name: [0.25, 0.5] for name in BOUNDS}}
SUMMARY = {"metrics": {}, "problems": {}}
METRIC = {
    "mean": 0.5, "low": None, "high": None, "papers": 2, "missing": 0, "histogram": {"edges": [0, 1], "counts": [2]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is missing"),
        (b"", "is damaged ("),
        (b'{"metrics": {', "is damaged ("),
        (b"\xff\xfe\x00", "is damaged ("),
        (b"[]", "is damaged, or not of qaray (it: "),
        (b"{}", "is damaged, or not of qaray (metrics: Field required)"),
        (b'{"metrics": 3, "problems": {}}', "is damaged, or not of qaray (metrics: "),
        (b'{"metrics": {"x": {}}, "problems": {}}', "is damaged, or not of qaray (metrics.x.mean: Field required)"),
        (
            b'{"metrics": {}, "problems": {}, "racar": {}}',
            "is damaged, or not of qaray (racar.passing: Field required)",
        ),
    ],
)
def test_a_summary_that_cannot_be_shown_is_named(tmp_path, content, problem):
    file = tmp_path / "summary.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Damaged) as error:
        records.read_checked(Location.of(str(file)), records.Summary, "rerun it")
    assert str(error.value).startswith(f"{file} {problem}")
    assert str(error.value).endswith(": rerun it")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("summary", [SUMMARY, {"metrics": {"coverage_overall": METRIC}, "problems": {"x: y": 1}}])
def test_a_whole_summary_is_accepted(tmp_path, summary):
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert records.read_checked(Location.of(str(tmp_path / "summary.json")), records.Summary, "") == summary


@pytest.mark.parametrize("shape", [records.GenerationManifest, records.EvaluationManifest, records.TrainingManifest])
def test_a_manifest_of_another_program_is_named(shape):
    for foreign in ({}, {"counts": {"papers": "two"}}, {"manifest_version": 3, "name": "an extension"}):
        with pytest.raises(Damaged, match=r"^x is damaged, or not of qaray \([\w.]+: .*\): rerun it$"):
            records.checked("x", foreign, shape, "rerun it")


def evaluated(folder, scores, manifest='{"pairs_of": "the run itself"}'):
    """A folder with an evaluation's scores, as far as a comparison reads it."""
    run = Run.at(str(folder))
    table = folder / "evaluation/paper_scores.parquet"
    table.mkdir(parents=True)
    if manifest is not None:
        (folder / "evaluation/manifest.json").write_text(manifest)
    if isinstance(scores, bytes):
        (table / "part-000000.parquet").write_bytes(scores)
    elif scores is not None:
        Location.of(str(table / "part-000000.parquet")).write_table(pa.table(scores))
    return run


@pytest.mark.parametrize(
    ("scores", "manifest", "named"),
    [
        (None, "{}", "paper_scores.parquet is missing or empty"),
        (b"", "{}", "paper_scores.parquet/part-000000.parquet is damaged"),
        (b"PAR1 and no more", "{}", "paper_scores.parquet/part-000000.parquet is damaged"),
        ({"doi": ["10.1/a"]}, "{}", "paper_scores.parquet has a file without the column coverage_overall"),
        ({"x": [1]}, "{}", "paper_scores.parquet has a file without the column doi"),
        ({**SCORES, "doi": [1, 2]}, "{}", "paper_scores.parquet has a file whose scores are not numbers"),
        ({**SCORES, "racar_passes": ["a", "b"]}, "{}", "paper_scores.parquet has a file whose scores are not numbers"),
        (SCORES, None, "has no finished evaluation"),
        (SCORES, '{"pairs_of": ', "manifest.json is damaged"),
        (SCORES, "[1]", "manifest.json is damaged"),
    ],
)
def test_a_comparison_names_the_file_that_it_cannot_use(tmp_path, scores, manifest, named):
    good = evaluated(tmp_path / "good", SCORES)
    bad = evaluated(tmp_path / "bad", scores, manifest)
    with pytest.raises(RunRefused) as error:
        compare(good, bad)
    assert named in str(error.value)
    assert str(tmp_path / "bad") in str(error.value)
    assert "\n" not in str(error.value)


def test_scores_that_are_not_finite_are_compared_with_nothing(tmp_path):
    first = evaluated(tmp_path / "a", SCORES)
    second = evaluated(tmp_path / "b", {**SCORES, "numbers_found": [float("nan"), 0.75]})
    found = compare(first, second)["metrics"]
    assert (found["numbers_found"]["papers"], found["numbers_found"]["missing"]) == (1, 1)
    assert found["numbers_found"]["difference"] == 0.25
    assert found["coverage_overall"]["papers"] == 2
