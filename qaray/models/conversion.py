"""Converts a bundled model's GGUF file, once, to a safetensors folder that transformers and vLLM can load."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import uuid
from pathlib import Path

from qaray.models.loading import quiet_transformers


def convert_once(gguf: Path, target: Path) -> None:
    """Converts a GGUF file to a safetensors folder unless it exists. Concurrent processes wait for the first."""
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if (target / "config.json").exists():
            return
        temporary = target.parent / f".{target.name}-{uuid.uuid4().hex}"
        try:
            _convert(gguf, temporary)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # no setting disables this bar
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
