"""Fine-tunings as a user makes them, on a tiny model and few examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Done, qaray

SEED_FLAGS = [
    "--bf16", "True", "--use_flash_attn", "True", "--low_rank_training", "False", "--per_device_train_batch_size", "1",
    "--per_device_eval_batch_size", "1", "--evaluation_strategy", "no", "--save_strategy", "steps",
    "--save_total_limit", "2", "--weight_decay", "0.0", "--lr_scheduler_type", "constant_with_warmup",
    "--logging_steps", "1", "--tf32", "False",
]  # fmt: skip


def write_examples(path: Path, number: int, **changes: Any) -> Path:
    """Examples that a tiny model can learn by heart: the answer repeats a word of the input."""
    words = ["iron", "zinc", "neon", "lead"]
    rows = [
        {
            "instruction": "Name the element.",
            "input": f"{'The sample was heated. ' * (1 + i % 3)}It is {words[i % 4]}.",
            "output": f"The element is {words[i % 4]}.",
            **changes,
        }
        for i in range(number)
    ]
    path.write_text(json.dumps(rows))
    return path


def fine_tune_args(model: str, data: Path, out: Path, *more: Any) -> list[Any]:
    """The original's command line with the model, the data, the length and the folder replaced."""
    line = ["fine-tune", "--model_name_or_path", model, "--data_path", data, "--output_dir", out]
    return [*line, "--model_max_length", "768", *SEED_FLAGS, *more]


def fine_tune(*args: Any) -> Done:
    """Runs it in this process, on the session's cluster."""
    return qaray(*fine_tune_args(*args))


def training_log(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "training.json").read_text())["log"]


def losses(out: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in training_log(out) if "loss" in entry]


@pytest.fixture(scope="session", autouse=True)
def _cluster(cluster: dict[str, str]) -> None:
    """A real Ray head that all commands join."""
