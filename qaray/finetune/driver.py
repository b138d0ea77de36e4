"""The driver of fine-tuning: examples → training processes on Ray Train → a model folder.

OUT/run.json         the settings that identify the run, written first
OUT/examples/        tokenized examples; OUT/eval_examples/: the held-out ones
OUT/rejected.jsonl   rejected records, with the reason
OUT/training.json    the training log, updated during training
OUT/checkpoints/     Ray Train's checkpoints: the last save_total_limit, sharded
OUT/model/           the model; OUT/manifest.json, written last; OUT/report/index.html
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qaray.asking.request import Request
from qaray.config import ConfigError, FineTuneConfig
from qaray.corpus.readers.dispatch import data_files
from qaray.finetune import examples as ex
from qaray.finetune.deepspeed import DeepSpeedPlan, read_config
from qaray.finetune.flags import for_cpu, normal, training_arguments
from qaray.finetune.loop import TRAINING, LoopSettings, train_loop
from qaray.finetune.model import contract_of, plan_training
from qaray.models.planner import ModelPlan
from qaray.run import cluster as runtime
from qaray.run.directory import Run, RunError, identity_hash, logged_steps, utc_now
from qaray.run.manifests import versions
from qaray.run.rejects import rejected_file
from qaray.run.storage import Location

if TYPE_CHECKING:
    from ray.train import TrainingFailedError

POLL_SECONDS = 2.0  # seconds between two reads of the training log


@dataclass(frozen=True)
class Job:
    """A fine-tuning, planned before any process starts."""

    config: FineTuneConfig
    plan: ModelPlan
    request: Request | None  # request that the examples were made with, None if unknown
    flags: dict[str, str]
    deepspeed: DeepSpeedPlan | None
    checkpoints_kept: int | None

    @property
    def storage(self) -> str:
        """The path or URI under which Ray Train creates the run's folder."""
        path = self.config.storage_path or self.config.output_dir
        return path if "://" in path else os.path.abspath(os.path.expanduser(path))

    @property
    def checkpoints(self) -> Location:
        return Location.of(self.storage) / self.config.run_name

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The settings that identify a run; a start with other values is refused. Looks the data files up once."""
        config = self.config
        return {
            "model_name_or_path": config.model_name_or_path,
            "data": ex.identity_of(config.data_path),
            "eval_data": ex.identity_of(config.eval_data_path) if config.eval_data_path else None,
            "template": self.plan.template.name,
            "template_sha256": self.plan.template.sha256,
            "model_max_length": config.model_max_length,
            "overlength": config.overlength,
            "rope_factor": self.plan.rope_factor,
            "use_full_attn": config.use_full_attn,
            "s2_group_size": config.s2_group_size,
            "low_rank_training": config.low_rank_training,
            "trainable_params": config.trainable_params if config.low_rank_training else None,
            "lora_r": config.lora_r if config.low_rank_training else None,
            "lora_alpha": config.lora_alpha if config.low_rank_training else None,
            "training": dict(sorted(self.flags.items())),
            "deepspeed": self.deepspeed.config if self.deepspeed else None,
            "run_name": config.run_name,
        }


def decide(config: FineTuneConfig) -> Job:
    """Validates all user input; returns the job. Raises ConfigError or FileNotFoundError with one line for the user."""
    for path in filter(None, (config.data_path, config.eval_data_path)):
        data_files(path)
    flags = normal(config.training)
    with contextlib.ExitStack() as stack:
        import tempfile

        folder = stack.enter_context(tempfile.TemporaryDirectory())
        # tf32 depends on the workers' devices.
        driver_flags = {flag: value for flag, value in flags.items() if flag != "tf32"}
        arguments = training_arguments(driver_flags, folder, None, use_cpu=True)
    deepspeed = None
    if config.deepspeed:
        deepspeed = read_config(config.deepspeed, arguments, set(flags), config.num_workers)
    plan = plan_training(config)
    request = ex.request_of(config)
    contract_of(config, plan, request)
    limit = arguments.save_total_limit
    return Job(config, plan, request, flags, deepspeed, limit if limit and limit > 0 else None)


def finished(job: Job, run: Run) -> dict[str, Any] | None:
    """The manifest if this fine-tuning is already finished, else None."""
    manifest: dict[str, Any] | None = run.manifest.read_json()
    return manifest if manifest and run.has_identity(job.identity) else None


def model_folder(run: Run) -> Location:
    return run.root / "model"


def local_cpus(config: FineTuneConfig) -> int:
    """Logical CPUs of a local cluster: enough for the workers, and some for the examples."""
    cores = os.cpu_count() or 1
    return max(4, cores, math.ceil(config.num_workers * config.cpus_per_worker) + 1)


def uses_gpus(config: FineTuneConfig) -> bool:
    """Whether to train on GPUs: ``use_gpu``, or if it is None, whether the cluster has any."""
    return runtime.cluster_gpus() > 0 if config.use_gpu is None else config.use_gpu


def check_checkpoint(job: Job) -> None:
    """Checks that the last checkpoint, if there is one, can be resumed from.

    Raises ConfigError if it belongs to another run, or if it is sharded and was written by another number of workers.
    """
    from qaray.finetune.checkpoints import last_checkpoint

    try:
        place = last_checkpoint(job.checkpoints)
    except ConfigError:
        return
    note = (place / TRAINING).read_json() or {}
    if note.get("identity") != identity_hash(job.identity):
        raise ConfigError(
            f"{place} is a checkpoint of another run: use another --run_name or --storage_path, or remove it"
        )
    if note.get("deepspeed") and note["world_size"] != job.config.num_workers:
        raise ConfigError(
            f"the checkpoint {place} was written by {note['world_size']} workers but --num_workers is "
            f"{job.config.num_workers}: resume with {note['world_size']} workers, or export it with `qaray export "
            f"--checkpoint {place} --output_dir FOLDER` and start a new run from that model with another --output_dir"
        )


def _warn_of_precision(job: Job, notify: Callable[[str], None]) -> None:
    if not uses_gpus(job.config) and for_cpu(job.flags) != job.flags:
        notify("--bf16 True: this CPU does not support bfloat16 natively; training in float32, which is faster")


def prepare(job: Job, run: Run, notify: Callable[[str], None]) -> dict[str, ex.Prepared]:
    """Tokenizes the examples; writes rejected.jsonl. Returns those of "train" and, if there are any, of "eval".

    Raises RunError if one of the two has no example.
    """
    for note in job.deepspeed.notes if job.deepspeed else ():
        notify(note)
    _warn_of_precision(job, notify)
    factory = ex.EncoderFactory(job.config, job.plan.template)
    fingerprint = json.dumps(
        [ex.identity_of(job.config.data_path), job.plan.template.sha256, job.config.model_max_length]
    )
    prepared = {"train": ex.prepare(job.config.data_path, run.root / "examples", factory, fingerprint)}
    if job.config.eval_data_path:
        fingerprint = json.dumps([ex.identity_of(job.config.eval_data_path), fingerprint])
        prepared["eval"] = ex.prepare(job.config.eval_data_path, run.root / "eval_examples", factory, fingerprint)
    with rejected_file(run.root) as reject:
        for each in prepared.values():
            for row in ex.rejected(each.folder):
                reject(row)
    ex.require_examples(job.config.data_path, prepared["train"])
    if job.config.eval_data_path:
        ex.require_examples(job.config.eval_data_path, prepared["eval"])
    for name, each in prepared.items():
        c = each.counts
        notify(
            f"{name}: {c['examples']} examples, {c['tokens']:,} tokens ({c['answer_tokens']:,} with loss), "
            f"{c['rejected']} rejected, {c['truncated']} truncated ({c['truncated_tokens']:,} tokens)"
        )
    return prepared


def train(
    job: Job,
    run: Run,
    prepared: dict[str, ex.Prepared],
    notify: Callable[[str], None],
    progress: Callable[[dict], None],
) -> dict[str, Any]:
    """Runs the training processes to the end; returns the training log. Raises RunError if they fail for good."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from qaray.finetune.checkpoints import CheckpointPointer, resume_point

    config = job.config
    gpus = uses_gpus(config)
    settings = LoopSettings(
        config=config,
        plan=job.plan,
        flags=job.flags,
        deepspeed=job.deepspeed.config if job.deepspeed else None,
        gpus=gpus,
        examples=prepared["train"].folder,
        eval_examples=prepared["eval"].folder if "eval" in prepared else None,
        log=run.training_log,
        contract=contract_of(config, job.plan, job.request).model_dump(),
        identity=identity_hash(job.identity),
        resume=resume_point(job.checkpoints, notify),
    )
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(3600 * config.cluster.wait_hours))
    resources = {"CPU": config.cpus_per_worker, **({"GPU": 1} if gpus else {})}
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"settings": settings},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=gpus,
            resources_per_worker=resources,
            label_selector=config.cluster.labels or None,
        ),
        run_config=RunConfig(
            name=config.run_name,
            storage_path=job.storage,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=job.checkpoints_kept),
            worker_runtime_env={"env_vars": _environment(run, gpus)},
            callbacks=[CheckpointPointer(job.checkpoints)],
        ),
    )
    notify(f"{config.num_workers} training processes on {'GPUs' if gpus else 'CPUs'}")
    with _followed(run.training_log, progress), _interrupt_handler_kept():
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise RunError(_reason(error)) from None
    log: dict[str, Any] = run.training_log.read_json() or {}
    if log.get("failure"):
        raise RunError(log["failure"])
    return log


@contextlib.contextmanager
def _interrupt_handler_kept() -> Iterator[None]:
    """Restores the SIGINT handler afterwards: Ray Train replaces it and does not restore it."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _environment(run: Run, gpus: bool) -> dict[str, str]:
    """Environment variables of the training processes."""
    own = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if run.root.is_local:
        own["TENSORBOARD_LOGGING_DIR"] = f"{run.root.path}/tensorboard"  # for --report_to tensorboard
    return own if gpus else {**own, "DS_ACCELERATOR": "cpu"}


def _reason(error: TrainingFailedError) -> str:
    """The first error of a worker, in one line."""
    from ray.train import ControllerError, WorkerGroupError

    first: BaseException = error
    if isinstance(error, WorkerGroupError):
        first = next(iter(error.worker_failures.values()), error)
    elif isinstance(error, ControllerError):
        first = error.controller_failure
    text = str(first).strip().splitlines()
    return f"training failed: {text[-1] if text else type(first).__name__}"


@contextlib.contextmanager
def _followed(log: Location, progress: Callable[[dict], None]) -> Iterator[None]:
    """Passes the training log to ``progress`` as it grows."""
    end = threading.Event()

    def read_log() -> None:
        with contextlib.suppress(OSError, ValueError):  # storage is briefly unavailable: retried soon
            if content := log.read_json():
                progress(content)

    def follow() -> None:
        while not end.wait(POLL_SECONDS):
            read_log()

    thread = threading.Thread(target=follow, name="qaray-training-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        read_log()


def write_model(job: Job, run: Run, notify: Callable[[str], None]) -> None:
    """Exports the last checkpoint to OUT/model, in a Ray task because the driver may have little memory."""
    import ray

    from qaray.finetune.export import export

    notify("writing the model")
    place = job.checkpoints
    write = ray.remote(export).options(num_cpus=job.config.cpus_per_worker)
    ray.get(
        write.remote(place.path if place.is_local else f"{job.storage}/{job.config.run_name}", model_folder(run).path)
    )


def training_manifest(
    job: Job, run: Run, prepared: dict[str, ex.Prepared], log: dict, seconds: float
) -> dict[str, Any]:
    """The manifest of a finished fine-tuning. Losses are in nats per answer token."""
    steps = logged_steps(log)
    losses = {entry["step"]: entry["eval_loss"] for entry in log["log"] if "eval_loss" in entry}
    evaluation = None
    if losses:
        first, last = losses[min(losses)], losses[max(losses)]
        evaluation = {
            "loss_before": first,
            "loss_after": last,
            "perplexity_before": math.exp(first),
            "perplexity_after": math.exp(last),
        }
    return {
        "run": run.identity.read_json(),
        "versions": versions(),
        "finished": utc_now(),
        "seconds": round(seconds, 1),
        "workers": log["world_size"],
        "examples": {name: each.counts for name, each in prepared.items()},
        "steps": log["step"],
        "loss_first": steps[0]["loss"] if steps else None,
        "loss_last": steps[-1]["loss"] if steps else None,
        "evaluation": evaluation,
        "model": str(model_folder(run)),
    }
