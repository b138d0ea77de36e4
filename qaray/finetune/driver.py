"""The driver of a fine-tuning: examples → training processes on Ray Train → a model folder.

OUT/run.json         what identifies the run; written first
OUT/examples/        the examples as tokens; OUT/eval_examples/ those that are kept out
OUT/rejected.jsonl   records that are no examples, and why
OUT/training.json    the training log, written as it goes
OUT/checkpoints/     Ray Train's: the last save_total_limit checkpoints, sharded
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
from typing import TYPE_CHECKING, Any

from qaray.asking.request import Request
from qaray.config import ConfigError, FineTuneConfig
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

LOOK_EVERY = 2.0  # seconds between two looks at the training log


@dataclass(frozen=True)
class Job:
    """A fine-tuning as decided before any process starts."""

    config: FineTuneConfig
    plan: ModelPlan
    request: Request | None  # that the examples were made with, if it is known
    flags: dict[str, str]
    deepspeed: DeepSpeedPlan | None
    checkpoints_kept: int | None

    @property
    def storage(self) -> str:
        """Where Ray Train puts the run's folder."""
        path = self.config.storage_path or self.config.output_dir
        return path if "://" in path else os.path.abspath(os.path.expanduser(path))

    @property
    def checkpoints(self) -> Location:
        return Location.of(self.storage) / self.config.run_name


def decide(config: FineTuneConfig) -> Job:
    """Reads everything that the user may have got wrong. Raises ConfigError or FileNotFoundError, one line each."""
    for path in filter(None, (config.data_path, config.eval_data_path)):
        ex.data_files(path)
    flags = normal(config.training)
    with contextlib.ExitStack() as stack:
        import tempfile

        folder = stack.enter_context(tempfile.TemporaryDirectory())
        here = {flag: value for flag, value in flags.items() if flag != "tf32"}  # of the workers' devices
        arguments = training_arguments(here, folder, None, use_cpu=True)
    deepspeed = None
    if config.deepspeed:
        deepspeed = read_config(config.deepspeed, arguments, set(flags), config.num_workers)
    plan = plan_training(config)
    request = ex.request_of(config)
    contract_of(config, plan, request)
    limit = arguments.save_total_limit
    return Job(config, plan, request, flags, deepspeed, limit if limit and limit > 0 else None)


def identity(job: Job) -> dict[str, Any]:
    """What may not change between two starts of a run."""
    config = job.config
    return {
        "model_name_or_path": config.model_name_or_path,
        "data": ex.identity_of(config.data_path),
        "eval_data": ex.identity_of(config.eval_data_path) if config.eval_data_path else None,
        "template": job.plan.template.name,
        "template_sha256": job.plan.template.sha256,
        "model_max_length": config.model_max_length,
        "overlength": config.overlength,
        "rope_factor": job.plan.rope_factor,
        "use_full_attn": config.use_full_attn,
        "s2_group_size": config.s2_group_size,
        "low_rank_training": config.low_rank_training,
        "trainable_params": config.trainable_params if config.low_rank_training else None,
        "lora_r": config.lora_r if config.low_rank_training else None,
        "lora_alpha": config.lora_alpha if config.low_rank_training else None,
        "training": dict(sorted(job.flags.items())),
        "deepspeed": job.deepspeed.config if job.deepspeed else None,
        "run_name": config.run_name,
    }


def finished(job: Job, run: Run) -> dict[str, Any] | None:
    """The manifest if this very fine-tuning is finished already."""
    stored = run.identity.read_json() or {}
    manifest: dict[str, Any] | None = run.manifest.read_json()
    return manifest if stored.get("hash") == identity_hash(identity(job)) else None


def model_folder(run: Run) -> Location:
    return run.root / "model"


def local_cpus(config: FineTuneConfig) -> int:
    """Logical CPUs that a local cluster needs: the workers' and some for the examples."""
    cores = os.cpu_count() or 1
    return max(4, cores, math.ceil(config.num_workers * config.cpus_per_worker) + 1)


def uses_gpus(config: FineTuneConfig) -> bool:
    return runtime.cluster_gpus() > 0 if config.use_gpu is None else config.use_gpu


def check_checkpoint(job: Job) -> None:
    """A run goes on from checkpoints of its own only, sharded ones with as many workers as wrote them.

    Raises ConfigError for another run's, or another number.
    """
    from qaray.finetune.checkpoints import last_checkpoint

    try:
        place = last_checkpoint(job.checkpoints)
    except ConfigError:
        return
    note = (place / TRAINING).read_json() or {}
    if note.get("identity") != identity_hash(identity(job)):
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
    """Examples and, if there are any, those kept out; rejected.jsonl."""
    for note in job.deepspeed.notes if job.deepspeed else ():
        notify(note)
    _warn_of_precision(job, notify)
    factory = ex.EncoderFactory(job.config, job.plan.template)
    known_as = json.dumps([ex.identity_of(job.config.data_path), job.plan.template.sha256, job.config.model_max_length])
    prepared = {"train": ex.prepare(job.config.data_path, run.root / "examples", factory, known_as)}
    if job.config.eval_data_path:
        known_as = json.dumps([ex.identity_of(job.config.eval_data_path), known_as])
        prepared["eval"] = ex.prepare(job.config.eval_data_path, run.root / "eval_examples", factory, known_as)
    with rejected_file(run.root) as reject:
        for each in prepared.values():
            for row in ex.rejected(each.folder):
                reject(row)
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
    """Runs the training processes to their end; returns the training log. Raises RunError if they fail for good."""
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
        identity=identity_hash(identity(job)),
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
    """Ray Train puts a handler of SIGINT in and leaves it there."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _environment(run: Run, gpus: bool) -> dict[str, str]:
    """Of the training processes."""
    own = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if run.root.is_local:
        own["TENSORBOARD_LOGGING_DIR"] = f"{run.root.path}/tensorboard"  # for --report_to tensorboard
    return own if gpus else {**own, "DS_ACCELERATOR": "cpu"}


def _reason(error: TrainingFailedError) -> str:
    """The first thing that went wrong in a worker, in one line."""
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
    """Hands the training log on as it grows."""
    end = threading.Event()

    def look() -> None:
        with contextlib.suppress(OSError, ValueError):  # the store is away for a moment: the next look comes
            if content := log.read_json():
                progress(content)

    def follow() -> None:
        while not end.wait(LOOK_EVERY):
            look()

    thread = threading.Thread(target=follow, name="qaray-training-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        look()


def write_model(job: Job, run: Run, notify: Callable[[str], None]) -> None:
    """The last checkpoint as a model folder; in a task, since the driver may have little memory."""
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
