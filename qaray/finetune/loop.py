"""The training loop of each process: transformers' Trainer under Ray Train, with loss on the answer only.

All ranks report a checkpoint to Ray Train, each with the files that it wrote itself: its shards of parameters and
optimizer, its random states; rank 0 adds the trainer's state. Nothing is uploaded twice, and a checkpoint counts only
once it is complete.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments, set_seed

from qaray.config import FineTuneConfig
from qaray.finetune.examples import Collator, Examples
from qaray.finetune.flags import for_cpu, training_arguments
from qaray.finetune.model import load_model
from qaray.models.hardware import peak_flops
from qaray.models.planner import ModelPlan
from qaray.models.tokenizer import load_tokenizer
from qaray.run.storage import Location

WRITE_EVERY = 3.0  # minimum seconds between two writes of the log
TRAINING = "qaray_training.json"  # in a checkpoint: metadata for the exporter
DEEPSPEED = "DeepSpeedEngine"  # class of the wrapped model when DeepSpeed is active
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


def train_loop(values: dict[str, Any]) -> None:
    """Trains from the last checkpoint of the run, or from the start."""
    import ray.train

    settings: LoopSettings = values["settings"]
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None and settings.resume is not None:
        checkpoint = ray.train.Checkpoint(settings.resume.path, settings.resume.fs)
    with tempfile.TemporaryDirectory(prefix="qaray-train-") as scratch:
        flags = settings.flags if settings.gpus else for_cpu(settings.flags)
        arguments = training_arguments(flags, scratch, settings.deepspeed, use_cpu=not settings.gpus)
        arguments.eval_on_start = settings.eval_examples is not None and checkpoint is None
        trainer = make_trainer(settings, arguments)
        if checkpoint is None:
            trainer.train()
            return
        with checkpoint.as_directory() as folder:
            state = TrainerState.load_from_json(os.path.join(folder, "trainer_state.json"))
            if state.global_step < state.max_steps:  # otherwise only the export is missing
                trainer.train(resume_from_checkpoint=folder)


def make_trainer(settings: LoopSettings, arguments: TrainingArguments) -> AnswerTrainer:
    """The trainer of one rank. ``arguments`` must exist before the weights load, to shard them under ZeRO-3."""
    config = settings.config
    if settings.deepspeed is not None:
        import deepspeed

        # Before the weights are loaded: otherwise each process would assume a world size of 1.
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)
    low = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32
    # DeepSpeed's optimizer keeps a float32 copy of 16-bit weights; without DeepSpeed the weights are float32.
    dtype = low if settings.deepspeed else torch.float32
    set_seed(arguments.seed)  # for the initial LoRA weights
    model = load_model(config, settings.plan.rope_factor, dtype)
    tokenizer = load_tokenizer(config.model_name_or_path, config.cache_dir, config.trust_remote_code, add_special=True)
    assert tokenizer.hf.pad_token_id is not None
    callback = RunCallback(settings)
    trainer = AnswerTrainer(
        settings,
        model=model,
        args=arguments,
        train_dataset=Examples(settings.examples),
        eval_dataset=Examples(settings.eval_examples) if settings.eval_examples else None,
        data_collator=Collator(tokenizer.hf.pad_token_id),
        processing_class=tokenizer.hf,
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

    def prediction_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        inputs.pop("index", None)
        return super().prediction_step(model, inputs, *rest, **more)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Length-grouped batches, unless the flags name another sampling strategy."""
        if "train_sampling_strategy" in self.settings.flags:
            return super().get_train_dataloader()
        args = self.args
        group = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.order = LengthGrouped(
            self.train_dataset.lengths, group, args.seed if args.data_seed is None else args.data_seed
        )
        loader = DataLoader(
            self.train_dataset,
            batch_size=args.train_batch_size,
            sampler=self.order,
            collate_fn=self.data_collator,
            drop_last=args.dataloader_drop_last,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
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


class RunCallback(TrainerCallback):
    """Reports checkpoints, writes the log, and stops the run at a non-finite loss."""

    def __init__(self, settings: LoopSettings) -> None:
        self.settings = settings
        self.written = 0.0
        self.failure = ""
        self.engine: dict[str, Any] = {}
        self.trainer: AnswerTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        assert self.trainer is not None
        self.engine = engine_facts(self.trainer)
        if self.settings.deepspeed is not None and self.engine["name"] != DEEPSPEED:
            raise RuntimeError(f"DeepSpeed was requested but the trainer uses {self.engine['name']}")
        self._write(args, state, at_once=True)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        # After resuming within an epoch, the trainer does not pass the epoch to the sampler.
        assert self.trainer is not None
        if self.trainer.order is not None:
            self.trainer.order.set_epoch(int(state.epoch + 1e-6))

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self._broken(state):
            control.should_training_stop, control.should_save, control.should_evaluate = True, False, False
        elif state.global_step >= state.max_steps:
            control.should_save = True
            control.should_evaluate = self.settings.eval_examples is not None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.failure:
            control.should_save, control.should_evaluate = False, False

    def _broken(self, state: Any) -> bool:
        """Whether the loss of any rank is non-finite: all ranks then stop, and nothing of this step is saved."""
        trainer = self.trainer
        assert trainer is not None
        mine = torch.tensor(float(bool(trainer.broken)), device=trainer.args.device)
        if not bool(trainer.accelerator.gather(mine).sum()):
            return False
        found: list[Any] = [trainer.broken]
        if trainer.args.world_size > 1:
            found = [None] * trainer.args.world_size
            torch.distributed.all_gather_object(found, trainer.broken)
        ids = [name for names in found for name in names or []]
        self.failure = (
            f"non-finite loss at step {state.global_step} (examples {', '.join(ids)}); inspect these examples, or "
            "retry with a lower --learning_rate and a new --output_dir"
        )
        return True

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._write(args, state)

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        import ray.train
        from ray.train import Checkpoint

        self._write(args, state, at_once=True)
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        ray.train.report(
            {"step": state.global_step, "epoch": state.epoch},
            checkpoint=Checkpoint.from_directory(folder),
            delete_local_checkpoint_after_upload=True,
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._write(args, state, at_once=True)

    def _write(self, args: Any, state: Any, at_once: bool = False) -> None:
        if not state.is_world_process_zero or (not at_once and time.monotonic() - self.written < WRITE_EVERY):
            return
        self.written = time.monotonic()
        self.settings.log.write_json(
            {
                "step": state.global_step,
                "steps": state.max_steps,
                "epoch": state.epoch,
                "world_size": args.world_size,
                "log": state.log_history,
                "failure": self.failure,
                "engine": self.engine,
            }
        )


def engine_facts(trainer: Trainer) -> dict[str, Any]:
    """The engine that actually runs: some combinations of flags disable DeepSpeed silently."""
    engine = trainer.model_wrapped
    parameters = list(trainer.model.parameters())
    facts = {"name": type(engine).__name__, "parameters": len(parameters)}
    if facts["name"] == DEEPSPEED:
        facts |= {
            "zero_stage": engine.zero_optimization_stage(),
            "partitioned": sum(hasattr(parameter, "ds_id") for parameter in parameters),
            "optimizer": type(getattr(engine, "basic_optimizer", engine.optimizer)).__name__,
            "offloaded": bool(engine.zero_cpu_offload()),
        }
    return facts


def _peak_memory() -> int:
    """Peak memory of this process, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
