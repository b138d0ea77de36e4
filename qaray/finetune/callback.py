"""The callback of training: reports checkpoints, writes the training log, stops at a non-finite loss."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainingArguments

from qaray.config import ConfigError
from qaray.finetune import attention
from qaray.finetune.arguments import precision_notes
from qaray.models.loading import first_line
from qaray.run.storage import Location

if TYPE_CHECKING:
    from qaray.finetune.loop import AnswerTrainer, LoopSettings

WRITE_EVERY = 3.0  # minimum seconds between two writes of the log
DEEPSPEED = "DeepSpeedEngine"  # class of the wrapped model when DeepSpeed is active
# Errors of a set-up that would fail again. Lost peers and storage raise RuntimeError and OSError.
DETERMINISTIC = (
    ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError, NotImplementedError,
)  # fmt: skip
# A training log before the first step.
EMPTY_LOG: dict[str, Any] = {
    "step": 0, "steps": 0, "epoch": 0.0, "world_size": 0, "log": [], "failure": "", "engine": {},
}  # fmt: skip


def recorded_failure(log: Location) -> str:
    """The failure in a training log that makes another attempt pointless; "" if there is none."""
    return str((log.read_json() or {}).get("failure") or "")


def record_failure(log: Location, error: Exception) -> None:
    """Adds a failure to the training log, for the driver and the next attempt of the worker group."""
    text = first_line(error)
    named = text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}"
    log.write_json({**EMPTY_LOG, **(log.read_json() or {}), "failure": named})


def compute_dtype(arguments: TrainingArguments) -> torch.dtype:
    """The data type of matrix products."""
    return torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32


class RunCallback(TrainerCallback):
    """Reports checkpoints, writes the log, and stops the run at a non-finite loss."""

    def __init__(self, settings: LoopSettings) -> None:
        self.settings = settings
        self.written = 0.0
        self.failure = ""
        self.begun = False  # whether set-up is over
        self.engine: dict[str, Any] = {}
        self.trainer: AnswerTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        assert self.trainer is not None
        self.engine = engine_facts(self.trainer)
        if self.settings.deepspeed is not None and self.engine["name"] != DEEPSPEED:
            raise ConfigError(f"DeepSpeed was requested but the trainer uses {self.engine['name']}")
        self.begun = True
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
            # Before the checkpoint is written, so that it contains the last loss.
            control.should_log = control.should_log or args.logging_strategy != "no"

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        # on_step_end has saved and evaluated the last step; strategies by epoch would do it again.
        if self.failure or state.global_step >= state.max_steps:
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


def engine_facts(trainer: AnswerTrainer) -> dict[str, Any]:
    """The engine and attention kernel that actually run: some combinations of flags disable DeepSpeed silently."""
    engine, config = trainer.model_wrapped, trainer.settings.config
    parameters = list(trainer.model.parameters())
    facts: dict[str, Any] = {"name": type(engine).__name__, "parameters": len(parameters)}
    if facts["name"] == DEEPSPEED:
        facts |= {
            "zero_stage": engine.zero_optimization_stage(),
            "partitioned": sum(hasattr(parameter, "ds_id") for parameter in parameters),
            "optimizer": type(getattr(engine, "basic_optimizer", engine.optimizer)).__name__,
            "offloaded": bool(engine.zero_cpu_offload()),
        }
    facts["attention"] = attention.kernel_in_use(config, trainer.args.device, compute_dtype(trainer.args))
    facts["notes"] = device_notes(trainer.settings, trainer.args.device)
    return facts


def device_notes(settings: LoopSettings, device: torch.device) -> list[str]:
    """One line for each limitation of the device that the user can mend."""
    notes = [] if settings.gpus else precision_notes(settings.flags)
    if attention.flash_attn_missing(settings.config, device):
        kind = "full attention" if settings.config.use_full_attn else "S²-Attn"
        notes.append(
            f"flash-attn is not installed: {kind} runs on scaled_dot_product_attention; pip install flash-attn, or "
            "--use_flash_attn False"
        )
    return notes
