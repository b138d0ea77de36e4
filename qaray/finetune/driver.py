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
from qaray.finetune.arguments import check_cpu, check_device, checked_arguments, steps_of
from qaray.finetune.callback import recorded_failure
from qaray.finetune.card import data_facts
from qaray.finetune.deepspeed import DeepSpeedPlan, read_config
from qaray.finetune.encoding import EncoderFactory
from qaray.finetune.flags import normal
from qaray.finetune.loop import TRAINING, LoopSettings, train_loop
from qaray.finetune.model import contract_of, hidden_size, plan_training
from qaray.models.planner import ModelPlan
from qaray.run import cluster as runtime
from qaray.run.directory import Run, identity_hash, logged_steps, utc_now
from qaray.run.errors import RunError
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
    arguments: Any  # the flags as transformers' TrainingArguments, for any device
    deepspeed: DeepSpeedPlan | None

    @property
    def storage(self) -> str:
        """The path or URI under which Ray Train creates the run's folder."""
        path = self.config.storage_path or self.config.output_dir
        return path if "://" in path else os.path.abspath(os.path.expanduser(path))

    @property
    def checkpoints(self) -> Location:
        return Location.of(self.storage) / self.config.run_name

    @property
    def checkpoints_kept(self) -> int | None:
        limit = self.arguments.save_total_limit
        return limit if limit and limit > 0 else None

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
    flags = normal(config.training, config.output_dir)
    arguments = checked_arguments(flags, config.eval_data_path is not None)
    plan = plan_training(config)
    deepspeed = None
    if config.deepspeed:
        deepspeed = read_config(config.deepspeed, arguments, set(flags), config.num_workers, hidden_size(config))
    request = ex.request_of(config)
    contract_of(config, plan, request)
    return Job(config, plan, request, flags, arguments, deepspeed)


def finished(job: Job, run: Run) -> dict[str, Any] | None:
    """The manifest if this fine-tuning is already finished, else None."""
    manifest: dict[str, Any] | None = run.read_manifest()
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


def identify(job: Job, run: Run, notify: Callable[[str], None]) -> None:
    """Writes the run's identity, or checks it; a folder in which nothing was trained takes other settings.

    Raises RunRefused if something was trained with other settings, ConfigError if its checkpoint cannot be resumed.
    """
    stored = run.stored_identity() if not run.has_identity(job.identity) else None
    if stored and "training" in stored and not _has_trained(job, run):
        notify(f"nothing was trained in {run.root} with its earlier settings: starting with these")
        run.training_log.remove()
        run.replace_identity(job.identity)
    run.identify(job.identity)
    check_checkpoint(job, notify)


def _has_trained(job: Job, run: Run) -> bool:
    log = run.training_log.read_json() or {}
    return run.manifest.exists() or log.get("step", 0) > 0 or _last_checkpoint(job) is not None


def _last_checkpoint(job: Job) -> Location | None:
    from qaray.finetune.checkpoints import last_checkpoint

    try:
        return last_checkpoint(job.checkpoints)
    except ConfigError:
        return None


def check_checkpoint(job: Job, notify: Callable[[str], None]) -> None:
    """Checks that the last checkpoint, if there is one, can be resumed from.

    Raises ConfigError if it belongs to another run, or if it is sharded and was written by another number of workers.
    """
    place = _last_checkpoint(job)
    if place is None:
        return
    note = (place / TRAINING).read_json() or {}
    if note.get("identity") != identity_hash(job.identity):
        raise ConfigError(
            f"{place} is a checkpoint of another run: use another --run_name or --storage_path, or remove it"
        )
    before, workers = note.get("world_size"), job.config.num_workers
    if before == workers:
        return
    if note.get("deepspeed"):
        raise ConfigError(
            f"the checkpoint {place} was written by {before} workers but --num_workers is {workers}: resume with "
            f"{before} workers, or export it with `qaray export --checkpoint {place} --output_dir FOLDER` and start a "
            "new run from that model with another --output_dir"
        )
    batch = job.arguments.per_device_train_batch_size * job.arguments.gradient_accumulation_steps
    notify(
        f"--num_workers is {workers} but the checkpoint {place} was written by {before} workers: a step has "
        f"{batch * workers} examples, not {batch * before}; --gradient_accumulation_steps would keep it, in a new run"
    )


def _check_device(job: Job) -> None:
    """Checks the flags against the device of the workers. Raises ConfigError for a precision that it lacks."""
    import ray

    if not uses_gpus(job.config):
        check_cpu(job.arguments)
        return
    task = ray.remote(check_device).options(num_gpus=1, label_selector=job.config.cluster.labels or None, max_retries=0)
    ray.get(task.remote(job.flags))


def prepare(job: Job, run: Run, notify: Callable[[str], None]) -> dict[str, ex.Prepared]:
    """Tokenizes the examples; writes rejected.jsonl. Returns those of "train" and, if there are any, of "eval".

    Raises ConfigError if the flags do not suit the workers' device, or if one of the two has no example.
    """
    for note in job.deepspeed.notes if job.deepspeed else ():
        notify(note)
    _check_device(job)
    config = job.config
    factory = EncoderFactory(config, job.plan.template)
    facts = ("data", "model_name_or_path", "template_sha256", "model_max_length", "overlength")
    fingerprint = json.dumps([job.identity[name] for name in facts])
    prepared = {"train": ex.prepare(config.data_path, run.root / "examples", factory, fingerprint)}
    if config.eval_data_path:
        fingerprint = json.dumps([job.identity["eval_data"], fingerprint])
        prepared["eval"] = ex.prepare(config.eval_data_path, run.root / "eval_examples", factory, fingerprint)
    with rejected_file(run.root) as reject:
        for each in prepared.values():
            for row in ex.rejected(each.folder):
                reject(row)
    ex.require_examples(config.data_path, prepared["train"])
    if config.eval_data_path:
        ex.require_examples(config.eval_data_path, prepared["eval"])
    for name, each in prepared.items():
        c = each.counts
        notify(
            f"{name}: {c['examples']} examples, {c['tokens']:,} tokens ({c['answer_tokens']:,} with loss), "
            f"{c['rejected']} rejected, {c['truncated']} truncated ({c['truncated_tokens']:,} tokens)"
        )
    _check_steps(job, prepared["train"].counts["examples"])
    return prepared


def _check_steps(job: Job, examples: int) -> None:
    """Raises ConfigError if the examples make no step, or another number than DeepSpeed's JSON says."""
    workers = job.config.num_workers
    steps = steps_of(job.arguments, examples, workers)
    if not steps:
        batch = job.arguments.per_device_train_batch_size
        raise ConfigError(
            f"{examples} examples are less than a batch of {batch} for each of {workers} workers, and "
            "--dataloader_drop_last True drops it: nothing would be trained"
        )
    if job.deepspeed:
        job.deepspeed.check(job.arguments, steps)


def train(
    job: Job,
    run: Run,
    prepared: dict[str, ex.Prepared],
    notify: Callable[[str], None],
    progress: Callable[[dict], None],
) -> dict[str, Any]:
    """Runs the training processes to the end; returns the training log.

    Raises ConfigError if they cannot start with these settings, RunError if they fail for good.
    """
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
        data=_data_facts(config, prepared),
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
    if recorded_failure(run.training_log):  # of an earlier start
        run.training_log.remove()
    with _followed(run.training_log, _with_engine(progress, notify)), _interrupt_handler_kept():
        try:
            trainer.fit()
        except TrainingFailedError as error:
            if not recorded_failure(run.training_log):
                raise RunError(_reason(error)) from None
    log: dict[str, Any] = run.training_log.read_json() or {}
    if failure := log.get("failure"):
        # Before the first step, it would fail again with these settings.
        raise RunError(failure) if log["step"] else ConfigError(f"training cannot start: {failure}")
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


def _data_facts(config: FineTuneConfig, prepared: dict[str, ex.Prepared]) -> dict[str, Any]:
    """What the model card says of the examples: files with their hashes, and counts."""
    paths = {"train": config.data_path, "eval": config.eval_data_path}
    files = {name: data_facts(path) for name, path in paths.items() if path}
    return {**files, "counts": {name: each.counts for name, each in prepared.items()}}


def _with_engine(progress: Callable[[dict], None], notify: Callable[[str], None]) -> Callable[[dict], None]:
    """``progress``, with a line on the attention kernel and on each limitation of the workers when they are known."""
    said: set[str] = set()

    def listen(log: dict[str, Any]) -> None:
        engine = log.get("engine") or {}
        lines = [f"attention: {engine['attention']}"] if "attention" in engine else []
        for line in [*lines, *engine.get("notes", [])]:
            if line not in said:
                said.add(line)
                notify(line)
        progress(log)

    return listen


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
        "run": run.stored_identity(),
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
