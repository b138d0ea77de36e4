"""Every shipped file loads, and the architecture page has a line for each module. Imports: see pyproject.toml."""

import json
import re
import subprocess
import sys

from tests.conftest import ROOT

# A folder's line is indented by two blanks for each folder above it, and so are the files in it.
TREE = re.search(r"```\nqaray/\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.S)[1]


def listed():
    """Paths of the tree of docs/architecture.md."""
    folders = []
    for line in TREE.splitlines():
        indent, name = re.match(r"( +)(\S+)", line).groups()
        folders = folders[: len(indent) // 2 - 1]
        yield "/".join([*folders, name.rstrip("/")])
        folders.append(name.rstrip("/"))


def test_every_module_has_a_line_in_the_architecture_page():
    modules = {str(path.relative_to(ROOT / "qaray").with_suffix("")) for path in (ROOT / "qaray").rglob("*.py")}
    modules = {name.removesuffix("/__init__") for name in modules} - {"__init__"}
    assert set(listed()) == modules | {"sample", "report/templates", "report/static"}


def test_help_and_pure_modules_import_neither_ray_nor_torch():
    """What import-linter cannot see: imports of imports outside of the package."""
    pure = [
        "cli",
        "config",
        "schema",
        "asking.prompts",
        "asking.grammar",
        "metrics.grounding",
        "metrics.self_contained",
    ]
    pure += ["corpus.records", "corpus.sentences"]
    pure += ["run.directory", "run.lease", "evaluate.rubrics", "observe.plan", "models.planner", "generate.ledger"]
    lines = "; ".join(f"import qaray.{name}" for name in pure)
    probe = f"import sys; {lines}; print(sorted({{'ray', 'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_jobs_are_thin():
    for job in (ROOT / "jobs").glob("*.py"):
        assert len(job.read_text().splitlines()) <= 40
        done = subprocess.run([sys.executable, job, "--help"], capture_output=True, text=True, check=True, cwd="/")
        assert "--output_dir" in done.stdout


def test_sample_papers_are_what_their_readme_says():
    papers = json.loads((ROOT / "qaray/sample/papers.json").read_text())
    listed = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "qaray/sample/README.md").read_text(), re.M)
    assert [p["doi"] for p in papers] == [f"qaray-sample/{name}" for name in listed]
    for paper in papers:
        assert sorted(paper) == ["abstract", "doi", "keywords", "source", "title", "txt"]
        assert len(paper["txt"].split()) >= 1500
        assert len(paper["keywords"]) >= 5
        assert all(isinstance(k, str) and k for k in paper["keywords"])


def test_version_is_in_the_changelog():
    import qaray

    assert f"## {qaray.__version__}" in (ROOT / "CHANGELOG.md").read_text()
