"""The trainer of one process, as the training loop makes it, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from qaray.asking.templates import LLAMA2, Template
from qaray.config import FineTuneConfig
from qaray.finetune.arguments import training_arguments
from qaray.finetune.callback import RunCallback
from qaray.finetune.loop import AnswerTrainer, LoopSettings, make_trainer
from qaray.models.planner import ModelPlan
from qaray.run.storage import Location
from qaray.schema import EXAMPLE_SCHEMA

Tokens = list[tuple[list[int], int]]  # ids, and how many of them are the prompt's


def write_shard(folder: Path, examples: Tokens) -> Location:
    rows = [
        {"id": f"e.json:{i}", "input_ids": ids, "prompt_tokens": prompt, "truncated_tokens": 0}
        for i, (ids, prompt) in enumerate(examples)
    ]
    folder.mkdir(parents=True)
    with pa.ipc.new_file(str(folder / "0.arrow"), EXAMPLE_SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA))
    return Location.of(str(folder))


def small_settings(
    folder: Path, model: str, train: Location, held_out: Location | None = None, **flags: Any
) -> LoopSettings:
    values = {"use_full_attn": True, "cache_dir": str(folder / "cache"), "output_dir": str(folder / "out")}
    return LoopSettings(
        config=FineTuneConfig(model_name_or_path=model, data_path="train.json", model_max_length=512, **values),
        plan=ModelPlan(Template("llama2", LLAMA2), 512, 512, 1.0),
        flags={"report_to": "none", **{name: str(value) for name, value in flags.items()}},
        deepspeed=None,
        gpus=False,
        examples=train,
        eval_examples=held_out,
        log=Location.of(str(folder / "training.json")),
        contract={},
        identity="",
        resume=None,
    )


def small_trainer(folder: Path, model: str, train: Location, held_out: Location | None, **flags: Any) -> AnswerTrainer:
    settings = small_settings(folder, model, train, held_out, **flags)
    (folder / "scratch").mkdir()
    arguments = training_arguments(settings.flags, str(folder / "scratch"), None, use_cpu=True)
    return make_trainer(settings, arguments, RunCallback(settings))
