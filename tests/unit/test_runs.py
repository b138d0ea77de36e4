import hashlib
import os
import re
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest

from qaray.run.directory import THE_RUN, Run, differences, identity_hash, logged_steps, utc_now
from qaray.run.errors import Damaged, RunRefused
from qaray.run.stopping import StopSignal, stop_on_signal


@pytest.fixture
def run(tmp_path):
    return Run.at(str(tmp_path / "out"))


def test_whether_a_run_was_started_with_these_settings(run):
    assert not run.has_identity({"seed": 0})
    run.identify({"seed": 0})
    assert run.has_identity({"seed": 0})
    assert not run.has_identity({"seed": 1})
    run.identity.write_bytes(b"{")
    assert run.has_identity({"seed": 0})  # by its copy
    run.records_identity.remove()
    with pytest.raises(Damaged, match=r"run\.json is damaged \(Expecting property name"):
        run.has_identity({"seed": 0})


def test_identity(run):
    run.identify({"model": "a", "seed": 0})
    run.identify({"seed": 0, "model": "a"})
    with pytest.raises(RunRefused, match="seed: 0 in the run, 1 asked for"):
        run.identify({"model": "a", "seed": 1})
    with pytest.raises(RunRefused, match="top_p: None in the run"):
        run.identify({"model": "a", "seed": 0, "top_p": 1})


@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b"null", b'"x"', b"{", b'{"format": 3}', b'{"format": 3, "seed": 1}']
)
def test_a_lost_identity_is_known_by_its_copy(run, content):
    run.identify({"seed": 0})
    whole = run.identity.read_json()
    run.identity.remove() if content is None else run.identity.write_bytes(content)
    with pytest.raises(RunRefused, match="seed: 0 in the run, 1 asked for"):
        run.identify({"seed": 1})
    run.identify({"seed": 0})
    assert run.restore() == ["run.json"]
    assert run.identity.read_json() == whole
    assert run.restore() == []


def test_other_settings_are_refused_by_name(run):
    run.identify({"model": "a", "seed": 0})
    written = run.identity.read_json()
    assert written == {
        "format": 3, "model": "a", "seed": 0, "hash": identity_hash({"seed": 0, "model": "a"}),
    }  # fmt: skip
    with pytest.raises(RunRefused) as error:
        run.identify({"model": "b", "seed": 1})
    assert str(error.value) == (
        f"{run.root} was started with other settings (model: 'a' in the run, 'b' asked for; seed: 0 in the run, 1 "
        "asked for): use the same settings or another --output_dir"
    )
    assert run.identity.read_json() == written


@pytest.mark.parametrize(("stored", "layout"), [({"seed": 0}, 1), ({"format": 1}, 1), ({"format": 4}, 4)])
def test_a_run_of_another_layout_is_refused(run, stored, layout):
    run.identity.write_json({**stored, "hash": identity_hash({"seed": 0})})
    run.manifest.write_json({})
    for use in (run.identify, run.has_identity, run.identify_parts, lambda _: run.finished()):
        with pytest.raises(RunRefused) as error:
            use({"seed": 0})
        assert str(error.value) == (
            f"{run.root} was written by an earlier release (layout {layout}, expected 3): finish the run with that "
            "release and pass its processed_output.json to --processed_output, or use another --output_dir"
        )


def test_the_identity_hash_is_the_same_in_every_release():
    assert identity_hash({"b": "µ", "a": 1}) == hashlib.sha256('{"a": 1, "b": "µ"}'.encode()).hexdigest()


def test_an_identity_in_parts_grows(run):
    run.identify_parts({"coverage": {"model": "a"}})
    first = {"format": 3, "coverage": {"model": "a"}}
    assert run.identity.read_json() == {**first, "hash": identity_hash(first)}
    run.identify_parts({"racar": {"engine": "echo"}})
    both = {**first, "racar": {"engine": "echo"}}
    assert run.identity.read_json() == {**both, "hash": identity_hash(both)}
    with pytest.raises(RunRefused) as error:
        run.identify_parts({"similarity": {"engine": "echo"}, "racar": {"engine": "vllm", "seed": 1}})
    assert str(error.value) == (
        f"{run.root} has racar scores with other settings (engine: 'echo' in the run, 'vllm' asked for; seed: None in "
        "the run, 1 asked for): remove that folder or use the same settings"
    )
    before = os.stat(run.identity.path)
    run.identify_parts({"coverage": {"model": "a"}})
    assert os.stat(run.identity.path).st_ino == before.st_ino  # not written again
    assert run.identity.read_json() == {**both, "hash": identity_hash(both)}


@pytest.mark.parametrize(
    ("identity", "engine"),
    [
        ({"engine": "echo"}, "echo"),
        ({"similarity": {"engine": "vllm"}}, "vllm"),
        ({"similarity": None, "racar": {"engine": "http"}}, "http"),
        ({"coverage": {"model": "a"}}, None),
    ],
)
def test_the_engine_of_a_run(run, identity, engine):
    assert run.engine is None
    run.identify(identity)
    assert run.engine == engine


def test_what_is_no_finished_run_is_refused(run):
    with pytest.raises(RunRefused) as error:
        run.finished()
    assert str(error.value) == f"{run.root} is not a run directory: pass the --output_dir of a finished run"
    run.identify({"seed": 0})
    with pytest.raises(RunRefused) as error:
        run.finished()
    assert str(error.value) == (
        f"{run.root} has no finished run (manifest.json is missing): rerun the command that started it"
    )
    run.write_manifest({"papers": 3})
    assert run.finished() == {"papers": 3, "epoch": 0} == run.manifest.read_json()
    run.unfinish()
    assert run.read_manifest() is None
    assert not run.manifest.exists()


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b'{"epoch": 7}'])
def test_a_lost_manifest_is_known_by_its_copy(run, content):
    run.identify({"seed": 0})
    run.write_manifest({"papers": 3})
    run.manifest.remove() if content is None else run.manifest.write_bytes(content)
    assert run.finished() == {"papers": 3, "epoch": 0}
    assert run.restore() == ["manifest.json"]
    assert run.manifest.read_json() == {"papers": 3, "epoch": 0}


def test_a_damaged_manifest_without_a_copy_is_named_and_written_again(run):
    run.identify({"seed": 0})
    run.manifest.write_bytes(b"[1]")
    with pytest.raises(Damaged, match=r"manifest\.json is damaged \(an object is expected"):
        run.finished()
    assert run.restore() == ["manifest.json"]
    assert run.read_manifest() is None


@pytest.mark.parametrize(
    "names", [["manifest.json"], ["report"], ["processed_output.json"], ["papers"], ["x", "lease.json"]]
)
def test_a_foreign_folder_is_refused_and_stays(run, names):
    for name in names:
        (run.root / name).write_bytes(b"theirs")
    with pytest.raises(RunRefused, match="not empty, and has no run.json"):
        run.refuse_foreign()
    assert {path.name: path.read_bytes() for path in Path(run.root.path).iterdir()} == dict.fromkeys(names, b"theirs")


def test_what_is_no_foreign_folder(run):
    run.refuse_foreign()  # there is none
    (run.root / ".DS_Store").write_bytes(b"")
    (run.root / "lease.json").write_bytes(b"{}")
    run.refuse_foreign()
    run.evaluation.identify({"seed": 0})
    (run.root / "report/index.html").write_bytes(b"")
    run.refuse_foreign()  # of the evaluation of a processed output
    run.refuse_foreign_report()
    run.identify({"seed": 0})
    (run.root / "papers/x").write_bytes(b"")
    run.refuse_foreign()


def test_a_foreign_report_is_refused(run):
    (run.root / "report/index.html").write_bytes(b"theirs")
    with pytest.raises(RunRefused, match="report is not a report of qaray"):
        run.refuse_foreign_report()


def test_an_evaluation_measures_the_run_unless_its_pairs_were_imported(run):
    assert run.measured() is None
    run.evaluation.manifest.write_json({"pairs_of": "other.json"})
    assert run.measured() is None
    run.evaluation.manifest.write_json({"pairs_of": THE_RUN, "papers": 2})
    assert run.measured() == {"pairs_of": THE_RUN, "papers": 2}


def test_the_files_of_a_run(run):
    assert (run.shard_names(), run.generation_files(), list(run.rejected_records()), run.size()) == ([], {}, [], 0)
    rows = pa.table({"doi": ["a", "b"]})
    for place in (
        run.papers / "part-000001.parquet",
        run.papers / "part-000000.parquet",
        run.papers / "notes.txt",
        run.rejected_papers / "part-000001.parquet",
        run.rejected_papers / "part-000000.parquet",
        run.generations / "part-000000.bb.parquet",
        run.generations / "part-000000.aa.parquet",
        run.generations / "part-000001.cc.parquet",
        run.generations / "part-000001.txt",
    ):
        place.write_table(rows)
    assert run.shard_names() == ["part-000000", "part-000001"]
    at = run.generations.path
    assert run.generation_files() == {
        "part-000000": [f"{at}/part-000000.aa.parquet", f"{at}/part-000000.bb.parquet"],
        "part-000001": [f"{at}/part-000001.cc.parquet"],
    }
    assert list(run.rejected_records()) == [{"doi": "a"}, {"doi": "b"}] * 2
    before = run.size()
    assert before == 7 * os.path.getsize(run.papers.path + "/part-000000.parquet")
    for place in (run.root, run.papers, run.generations):
        (place / "more").write_bytes(b"12345")
    assert run.size() == before + 15


def test_an_answer_file_is_named_after_its_keys(run):
    digest = hashlib.sha256(b'[["a", 0, 1]]').hexdigest()[:16]
    file = run.generation_file("part-000003", [("a", 0, 1)])
    assert file.path == f"{run.generations.path}/part-000003.{digest}.e000000.parquet"


def test_files_of_killed_writers_are_removed(run):
    folders = (
        "", "papers/", "papers/_rejected/", "papers/_left_out/", "generations/", "report/", "report/papers/",
        "racar.parquet/", "racar.parquet/parts/",
    )  # fmt: skip
    for folder in (*folders, "model/"):
        (run.root / f"{folder}.tmp-1-part").write_bytes(b"x")
        (run.root / f"{folder}part").write_bytes(b"x")
    run.clean()
    left = {path.relative_to(run.root.path).as_posix() for path in Path(run.root.path).rglob("*") if path.is_file()}
    assert left == {"model/.tmp-1-part", *(f"{folder}part" for folder in (*folders, "model/"))}


def test_differences():
    assert differences({"a": 1, "b": None}, {"a": 1}) == ""
    assert differences({"b": 1, "a": "x"}, {"c": 2, "a": "y"}) == (
        "a: 'x' in the run, 'y' asked for; b: 1 in the run, None asked for; c: None in the run, 2 asked for"
    )


def test_logged_steps_have_a_loss():
    log = {"log": [{"loss": 0.0, "step": 1}, {"eval_loss": 2.0, "step": 1}, {"train_runtime": 3.0}]}
    assert logged_steps(log) == [{"loss": 0.0, "step": 1}]


def test_times_are_utc_in_seconds():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", utc_now())


def test_stop_signal(run):
    run.root.make_folder()
    asked = StopSignal(run.stop_flag)
    assert not asked()
    run.stop_flag.write_json({})
    assert StopSignal(run.stop_flag)()


def test_shard_names_are_those_of_their_keys(run):
    keys = [("10.1/x", 0, 1), ("../y", 0, 1)]
    assert run.generation_file("part-000001", keys) == run.generation_file("part-000001", list(keys))
    assert run.generation_file("part-000001", keys) != run.generation_file("part-000001", keys[:1])
    assert run.generation_file("part-000001", keys).path.startswith(run.generations.path + "/part-000001.")


def test_a_signal_asks_for_a_stop_of_this_start_only(run):
    run.root.make_folder()
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal(run):
        assert not run.stop_flag.exists()
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + 10
        while not run.stop_flag.exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert run.stop_flag.exists()
    assert not run.stop_flag.exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_pipe_or_a_file_without_end_is_no_manifest(run):
    run.identify({"seed": 0})
    os.mkfifo(run.manifest.path)
    with pytest.raises(Damaged, match=r"manifest\.json is damaged \(it is not a regular file"):
        run.finished()
    os.unlink(run.manifest.path)
    with open(run.manifest.path, "wb") as stream:
        stream.truncate(1 << 33)  # takes no room
    with pytest.raises(Damaged, match=r"it is not a regular file of at most 268,435,456 bytes"):
        run.finished()


def test_a_file_is_no_run(run):
    run.root.write_bytes(b"papers")
    with pytest.raises(RunRefused, match="is a file: pass a folder"):
        run.refuse_foreign()
