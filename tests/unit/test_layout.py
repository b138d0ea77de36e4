"""Imports only climb the list of docs/architecture.md, pure modules stay pure, and every shipped file loads."""

import ast
import json
import re
import subprocess
import sys

from tests.conftest import ROOT

ROWS = re.findall(r"^\| `([a-z_/]+)`[^|]*\|[^|]*\|\s*(yes)?\s*\|$", (ROOT / "docs/architecture.md").read_text(), re.M)
ORDER = [name.rstrip("/").replace("/", ".") for name, _ in ROWS]
PURE = [name.rstrip("/").replace("/", ".") for name, pure in ROWS if pure]


def modules():
    for path in sorted((ROOT / "qaray").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "qaray").with_suffix("").parts)
        if name != "__init__":
            yield name, path


def position(name):
    """Of a module's row, or of its package's."""
    return ORDER.index(name if name in ORDER else name.rpartition(".")[0])


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("qaray."):
            name = node.module.removeprefix("qaray.")
            if (ROOT / "qaray" / name / "__init__.py").exists():
                for alias in node.names:
                    module = (ROOT / "qaray" / name / f"{alias.name}.py").exists()
                    yield f"{name}.{alias.name if module else '__init__'}"
            else:
                yield name
        elif isinstance(node, ast.ImportFrom) and node.module == "qaray":
            yield from (alias.name for alias in node.names)


def test_every_module_is_in_the_list():
    assert {position(name) for name, _ in modules()} == set(range(len(ORDER)))


def test_imports_only_climb():
    falling = [
        f"{name} imports {other}"
        for name, path in modules()
        for other in imports(path)
        if position(other) > position(name) or (position(other) == position(name) and name in ORDER)
    ]
    assert falling == []


def test_pure_modules_import_neither_ray_nor_torch():
    pure = [name for name, _ in modules() if ORDER[position(name)] in PURE]
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
