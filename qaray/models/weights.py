"""Checks a model's weights: from the headers of their files before a cluster is asked for anything, and once loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qaray.models.loading import loading

INDEX = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_weights(folder: str, name: str) -> None:
    """Raises ConfigError unless a local model folder has whole safetensors files. A hub id is not checked."""
    place = Path(folder)
    if not place.is_dir():
        return
    from safetensors import safe_open

    with loading(f"model {name}"):
        for path in _files(place):
            with safe_open(path, framework="numpy"):  # compares the header with the length of the file
                pass


def check_loaded(found: dict[str, Any]) -> None:
    """Raises ValueError if weights are missing, or do not have the shapes that config.json implies.

    ``found``: transformers' loading information. transformers fills such weights with random numbers.
    """
    if mismatched := sorted(found.get("mismatched_keys") or []):
        name, stored, wanted = mismatched[0]
        raise ValueError(
            f"{name} has the shape {list(stored)}, config.json implies {list(wanted)} ({len(mismatched)} such weights)"
        )
    if missing := sorted(found.get("missing_keys") or []):
        raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder. Raises ValueError if it has none, or lacks one of its index."""
    index = folder / INDEX
    if index.is_file():
        parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if missing := [part for part in parts if not (folder / part).is_file()]:
            raise ValueError(f"{missing[0]} is missing, which {INDEX} names")
        return [folder / part for part in parts]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        found = f"only pickled weights ({pickled[0]}), which may run code" if pickled else "no weights"
        raise ValueError(f"the folder has {found}: save the model as safetensors (save_pretrained)")
    return files
