"""Use from Python: docs/python.md."""

import json
import re

from tests.conftest import ROOT


def test_the_python_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """docs/python.md, block by block."""
    page = (ROOT / "docs" / "python.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(compile(block, "docs/python.md", "exec"), names)
    said = capsys.readouterr().out
    processed = json.loads((tmp_path / "runs/python/processed_output.json").read_text())
    pairs = [(record["doi"], pair["pair_id"]) for record in processed for pair in record["Q&A"]]
    found = names["pairs"].to_pylist()
    assert [(row["doi"], row["pair_id"]) for row in found] == pairs
    assert {type(row["self_contained"]) for row in found} == {bool}
    assert f"{len(pairs)} pairs from 8 papers" in said
    assert "8 papers with coverage" in said
