"""The training loop of each process: transformers' Trainer under Ray Train, with loss on the answer only.

All ranks report a checkpoint to Ray Train, each with the files that it wrote itself: its shards of parameters and
optimizer, its random states; rank 0 adds the trainer's state. Nothing is uploaded twice, and a checkpoint counts only
once it is complete.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerState, TrainingArguments, set_seed

from qaray.config import FineTuneConfig
from qaray.finetune.arguments import for_cpu, training_arguments
from qaray.finetune.callback import DETERMINISTIC, RunCallback, compute_dtype, record_failure, recorded_failure
from qaray.finetune.card import training_facts
from qaray.finetune.evaluation import FORWARD, answer_nll, token_loss
from qaray.finetune.examples import Collator, Examples
from qaray.finetune.model import load_model
from qaray.models.hardware import peak_flops
from qaray.models.planner import ModelPlan
from qaray.models.tokenizer import load_tokenizer
from qaray.run.storage import Location

TRAINING = "qaray_training.json"  # in a checkpoint: metadata for the exporter
MOST_BATCHES = 50  # maximum number of batches whose examples are sorted by length together
WEIGHTS = "trainable.safetensors"  # in a checkpoint without DeepSpeed: the trained parameters


@dataclass(frozen=True)
class LoopSettings:
    """The driver's settings for the training processes. Picklable."""

    config: FineTuneConfig
    plan: ModelPlan
    flags: dict[str, str]  # for TrainingArguments
    deepspeed: dict[str, Any] | None
    gpus: bool  # whether each process has a GPU
    examples: Location
    eval_examples: Location | None
    log: Location  # the training log, a JSON file that rank 0 rewrites
    contract: dict[str, Any]
    identity: str  # hash of the run's identity, stored in its checkpoints
    resume: Location | None  # checkpoint to resume from if Ray Train has none
    data: dict[str, Any] = field(default_factory=dict)  # for the model card: hashes and counts of the examples


def train_loop(values: dict[str, Any]) -> None:
    """Trains from the last checkpoint of the run, or from the start.

    A deterministic error before the first step is recorded in the log and raised: Ray Train then ends the other ranks
    and starts the group again, whose processes find it and return. The driver tells the user.
    """
    settings: LoopSettings = values["settings"]
    if recorded_failure(settings.log):
        return
    callback = RunCallback(settings)
    try:
        _train(settings, callback)
    except DETERMINISTIC as error:
        if not callback.begun:
            record_failure(settings.log, error)
        raise


def _train(settings: LoopSettings, callback: RunCallback) -> None:
    import ray.train

    use_own_ninja()
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None and settings.resume is not None:
        checkpoint = ray.train.Checkpoint(settings.resume.path, settings.resume.fs)
    with tempfile.TemporaryDirectory(prefix="qaray-train-") as scratch:
        flags = settings.flags if settings.gpus else for_cpu(settings.flags)
        arguments = training_arguments(flags, scratch, settings.deepspeed, use_cpu=not settings.gpus)
        arguments.eval_on_start = settings.eval_examples is not None and checkpoint is None
        trainer = make_trainer(settings, arguments, callback)
        if checkpoint is None:
            trainer.train()
            return
        with checkpoint.as_directory() as folder:
            state = TrainerState.load_from_json(os.path.join(folder, "trainer_state.json"))
            if state.global_step < state.max_steps:  # otherwise only the export is missing
                trainer.train(resume_from_checkpoint=folder)


def use_own_ninja() -> None:
    """Has DeepSpeed compile its operators with the ninja beside this interpreter, which need not be in PATH.

    Another version of ninja takes what the first has compiled for outdated, and compiles it again.
    """
    own = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join(filter(None, [own, os.environ.get("PATH")]))


def make_trainer(settings: LoopSettings, arguments: TrainingArguments, callback: RunCallback) -> AnswerTrainer:
    """The trainer of one rank. ``arguments`` must exist before the weights load, to shard them under ZeRO-3."""
    config = settings.config
    if settings.deepspeed is not None:
        import deepspeed

        # Before the weights are loaded: otherwise each process would assume a world size of 1.
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)
    # DeepSpeed's optimizer keeps a float32 copy of 16-bit weights; without DeepSpeed the weights are float32.
    computed = compute_dtype(arguments)
    dtype = computed if settings.deepspeed else torch.float32
    set_seed(arguments.seed)  # for the initial LoRA weights
    model = load_model(config, settings.plan.rope_factor, dtype, device=arguments.device, compute_dtype=computed)
    tokenizer = load_tokenizer(config.model_name_or_path, config.cache_dir, config.trust_remote_code, add_special=True)
    assert tokenizer.hf.pad_token_id is not None
    held_out = Examples(settings.eval_examples) if settings.eval_examples else None
    arguments.eval_do_concat_batches, arguments.batch_eval_metrics = True, False  # token_loss takes all at once
    trainer = AnswerTrainer(
        settings,
        model=model,
        args=arguments,
        train_dataset=Examples(settings.examples),
        eval_dataset=held_out,
        data_collator=Collator(tokenizer.hf.pad_token_id),
        processing_class=tokenizer.hf,
        compute_metrics=partial(token_loss, examples=len(held_out)) if held_out is not None else None,
        callbacks=[callback],
    )
    callback.trainer = trainer
    return trainer


class LengthGrouped(Sampler[int]):
    """Groups examples of similar length. The order depends on seed and epoch only: the same on all ranks."""

    def __init__(self, lengths: Sequence[int], group: int, seed: int) -> None:
        self.lengths, self.group, self.seed, self.epoch = list(lengths), group, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order, lengths = torch.randperm(len(self.lengths), generator=generator).tolist(), self.lengths
        size = max(1, min(len(order) // (4 * self.group), MOST_BATCHES)) * self.group
        blocks = [sorted(order[i : i + size], key=lambda place: -lengths[place]) for i in range(0, len(order), size)]
        # The longest example comes first, so that out-of-memory errors occur in the first step.
        longest = max(range(len(blocks)), key=lambda block: lengths[blocks[block][0]], default=0)
        if blocks:
            blocks[0][0], blocks[longest][0] = blocks[longest][0], blocks[0][0]
        return iter([place for block in blocks for place in block])


class AnswerTrainer(Trainer):
    """Trainer with length-grouped batches, sharded checkpoints and detection of non-finite losses."""

    def __init__(self, settings: LoopSettings, **options: Any) -> None:
        super().__init__(**options)
        self.settings = settings
        self.order: LengthGrouped | None = None
        self.step_tokens = 0  # tokens processed by this rank since the last log
        self.since = time.perf_counter()
        self.broken: list[str] = []  # ids of the examples of a batch with a non-finite loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        index = inputs.pop("index")
        if not self.step_tokens:
            self.since = time.perf_counter()
        self.step_tokens += int(inputs["attention_mask"].sum())
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss) and not self.broken:
            self.broken = [self.train_dataset.id(int(i)) for i in index]
        return loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
        """(no loss, ``answer_nll`` [B, 2], the examples' places [B]), which ``token_loss`` receives from all ranks."""
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**{name: inputs[name] for name in FORWARD}).logits
        return None, answer_nll(logits, inputs["shift_labels"]), inputs["index"]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Length-grouped batches, unless the flags name another sampling strategy."""
        if "train_sampling_strategy" in self.settings.flags:
            return super().get_train_dataloader()
        args = self.args
        group = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.order = LengthGrouped(
            self.train_dataset.lengths, group, args.seed if args.data_seed is None else args.data_seed
        )
        return self._batches(
            self.train_dataset,
            batch_size=args.train_batch_size,
            sampler=self.order,
            drop_last=args.dataloader_drop_last,
            persistent_workers=args.dataloader_persistent_workers,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """All held-out examples, the longest first, so that out-of-memory errors occur in the first batch."""
        lengths = self.eval_dataset.lengths
        order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
        return self._batches(self.eval_dataset, batch_size=self.args.eval_batch_size, sampler=order)

    def _batches(self, examples: Examples, **options: Any) -> DataLoader[Any]:
        args = self.args
        loader = DataLoader(
            examples,
            collate_fn=self.data_collator,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            **options,
        )
        return self.accelerator.prepare(loader)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._rates())
        super().log(logs, start_time)

    def _rates(self) -> dict[str, float]:
        """Tokens per second over all ranks, peak memory in GiB, and MFU (6 FLOPs per parameter and token)."""
        seconds = time.perf_counter() - self.since
        mine = torch.tensor(float(self.step_tokens), device=self.args.device)
        tokens = float(self.accelerator.gather(mine).sum())
        self.step_tokens = 0
        rates = {"tokens": tokens, "tokens_per_second": round(tokens / seconds, 1)}
        if self.args.device.type == "cuda":
            rates["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            peak = peak_flops(torch.cuda.get_device_name())
            if peak:
                size = sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())
                rates["mfu"] = round(6 * size * tokens / seconds / (peak * self.args.world_size), 4)
        else:
            rates["memory_gib"] = round(_peak_memory() / 2**30, 2)
        return rates

    def save_model(self, output_dir: str | None = None, *_: Any, **__: Any) -> None:
        """Writes a checkpoint's metadata and, without DeepSpeed, all trained parameters."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if not self.args.should_save:
            return
        note = {
            "world_size": self.args.world_size,
            "deepspeed": self.settings.deepspeed is not None,
            "config": self.settings.config.values(),
            "rope_factor": self.settings.plan.rope_factor,
            "contract": self.settings.contract,
            "identity": self.settings.identity,
            **training_facts(self.args, self.settings.deepspeed, self.settings.data),
        }
        (Location.of(str(folder)) / TRAINING).write_json(note)
        if self.settings.deepspeed is None:
            from safetensors.torch import save_file

            model = self.accelerator.unwrap_model(self.model)
            named = ((name, each) for name, each in model.named_parameters() if each.requires_grad)
            trained = {name: each.detach().cpu().contiguous() for name, each in named}
            save_file(trained, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        target = self.accelerator.unwrap_model(self.model if model is None else model)
        target.load_state_dict(load_file(Path(resume_from_checkpoint) / WEIGHTS), strict=False)


def _peak_memory() -> int:
    """Peak memory of this process, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
