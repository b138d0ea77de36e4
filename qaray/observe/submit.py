"""`qaray submit`: submits a command as a Ray job, follows it to its end and resubmits it if it fails.

A job that was stopped, or that failed by a mistake of the user (exit code 2), is not resubmitted. Any other resumes
where it stopped, since a run knows what is left to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaray.config import ConfigError, FineTuneConfig, SubmitConfig
from qaray.finetune.flags import supported
from qaray.run.addresses import check_address, check_job_server
from qaray.run.errors import RunError
from qaray.run.waiting import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.job_submission import JobInfo, JobSubmissionClient

JOBS = {"generate": "generate.py", "evaluate": "evaluate.py", "fine-tune": "fine_tune.py", "run": "pipeline.py"}
USER_MISTAKE = 2  # exit code of a command that would fail again if rerun
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"  # read by Ray's client before RAY_ADDRESS and before its own argument
AGENT_WAIT = 60.0  # seconds to wait for a cluster's agents to start
SILENCE = 600.0  # seconds without a response of the job server before following ends
POLL = 2.0  # seconds between two requests for a job's status
STOP_WAIT = "600"  # seconds that `ray job stop` gives a job to finish work in progress; Ray's default is 3
EXCLUDES = [".git", ".venv", ".venv-vllm", "runs", "cache", "build"]  # not uploaded with the working directory


def submit(config: SubmitConfig) -> int:
    """Submits the job, follows it, and resubmits it if it fails; returns the command's exit code.

    Raises ConfigError if it cannot be submitted, RunError if it failed at every attempt.
    """
    script = JOBS.get(config.command)
    if script is None:
        raise ConfigError(f"{config.command!r} cannot be submitted: choose from {', '.join(JOBS)}")
    if config.command == "fine-tune":
        own, given = FineTuneConfig.flags(), config.command_flags
        supported({name: given[name] for name in given if name not in own}, given.get("output_dir", "OUT"))
    entrypoint = shlex.join(["python", f"jobs/{script}", *flags_of(config)])
    environment = environment_of(config)
    client = connect(config)
    name = config.submission_id or f"qaray-{config.command}-{time.strftime('%Y%m%d-%H%M%S')}"
    for attempt in range(1, config.resubmit + 2):
        job = name if attempt == 1 else f"{name}-{attempt}"
        metadata = {
            "qaray_command": config.command,
            "output_dir": config.command_flags.get("output_dir", ""),
            "run": name,
        }
        submit_job(client, job, entrypoint=entrypoint, runtime_env=environment, metadata=metadata)
        notify(f"submitted {job}; stop it with: ray job stop {job}")
        if not config.wait:
            return 0
        info = follow(client, job)
        code = info.driver_exit_code
        if info.status.name == "SUCCEEDED":
            return 0
        notify(f"{job}: {info.status.name.lower()}{'' if code is None else f', exit code {code}'}")
        if info.status.name == "STOPPED" or code == USER_MISTAKE:
            return code or 1
        if code is None and info.message:
            notify(" ".join(info.message.split())[:500])
    raise RunError(f"{config.command} failed {config.resubmit + 1} times: see ray job logs {job}")


def flags_of(config: SubmitConfig) -> list[str]:
    """The command's flags as arguments of a command line."""
    return [word for name, value in config.command_flags.items() for word in (f"--{name}", value)]


def environment_of(config: SubmitConfig) -> dict[str, Any]:
    """The job's runtime environment. Raises ConfigError for a folder without jobs/, or an unset variable."""
    is_folder = "://" not in config.working_dir
    if is_folder and not (Path(config.working_dir) / "jobs").is_dir():
        raise ConfigError(
            f"--working_dir {config.working_dir}: not a checkout of qaray (jobs/ is missing): pass the path of a clone"
        )
    environment: dict[str, Any] = {"working_dir": config.working_dir}
    if is_folder:
        environment["excludes"] = EXCLUDES
    if config.pip:
        if not Path(config.pip).is_file():
            raise ConfigError(f"--pip {config.pip}: no such file")
        environment["pip"] = config.pip
    names = [name.strip() for name in (config.env or "").split(",") if name.strip()]
    if missing := [name for name in names if name not in os.environ]:
        raise ConfigError(f"--env {missing[0]}: not set in this environment")
    environment["env_vars"] = {"RAY_JOB_STOP_WAIT_TIME_S": STOP_WAIT, **{name: os.environ[name] for name in names}}
    return environment


def connect(config: SubmitConfig) -> JobSubmissionClient:
    """A client of the job server. Raises ConfigError if the server does not respond or rejects the token."""
    if config.token_file:
        if not Path(config.token_file).is_file():
            raise ConfigError(f"--token_file {config.token_file}: no such file")
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=config.token_file)
        os.environ.pop("RAY_AUTH_TOKEN", None)
    elif has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.job_submission import JobSubmissionClient

    address, source = address_of(config)
    if re.match(r"https?://", address):
        check_job_server(address, source)
    elif address and re.match(r"ray://|(?!.*://)", address):
        try:
            check_address(address, source, or_else=", the job server's URL (http://HOST:8265)")
        except RunError as error:
            raise ConfigError(str(error)) from None
    try:
        with waiting(f"the job server at {address or 'http://localhost:8265'}"), addressed(config.address):
            return JobSubmissionClient(config.address)
    except Exception as error:  # Ray raises many unrelated types of errors here
        words = " ".join(str(error).split())
        raise ConfigError(f"{source or '--address'} {address or '(default)'}: {words[:300]}") from None


def address_of(config: SubmitConfig) -> tuple[str, str]:
    """(address of the job server, the flag or variable that it is from); ("", "") if it is Ray's default."""
    if config.address:
        return config.address, "--address"
    named = next((name for name in (ADDRESS_VARIABLE, "RAY_ADDRESS") if os.environ.get(name)), "")
    return os.environ.get(named, ""), named


@contextlib.contextmanager
def addressed(address: str | None) -> Iterator[None]:
    """Makes a typed address win: Ray's client takes its variables before its argument (ray 2.60)."""
    before = os.environ.get(ADDRESS_VARIABLE)
    if address:
        os.environ[ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ADDRESS_VARIABLE, None)
        else:
            os.environ[ADDRESS_VARIABLE] = before


def has_token() -> bool:
    """Whether a Ray token is set in the environment or in ~/.ray/auth_token."""
    places = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return any(os.environ.get(name) for name in places) or (Path.home() / ".ray" / "auth_token").is_file()


def submit_job(client: JobSubmissionClient, job: str, **options: Any) -> None:
    """Submits the job, retrying while the cluster is starting. Raises RunError if it is not accepted."""
    end = time.monotonic() + AGENT_WAIT
    while True:
        try:
            client.submit_job(submission_id=job, **options)
        except RuntimeError as error:
            words = " ".join(str(error).split())
            if "No available agent" not in words or time.monotonic() > end:
                raise RunError(f"the cluster did not accept the job {job}: {words[:300]}") from None
            time.sleep(POLL)
        else:
            return


def follow(client: JobSubmissionClient, job: str) -> JobInfo:
    """Prints the job's log until the job has ended; returns its details.

    Raises RunError after SILENCE seconds without a response.
    """

    import aiohttp

    printed = 0  # characters; a log that is reopened starts from its beginning

    async def print_log() -> None:
        nonlocal printed
        passed = 0
        async for lines in client.tail_job_logs(job):
            print(lines[max(0, printed - passed) :], end="", flush=True)
            passed += len(lines)
            printed = max(printed, passed)

    silent_since: float | None = None
    while True:
        with contextlib.suppress(aiohttp.ClientError, RuntimeError, OSError):  # the job survives a lost connection
            asyncio.run(print_log())
        try:
            info = client.get_job_info(job)
        except (RuntimeError, OSError) as error:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > SILENCE:
                words = " ".join(str(error).split())
                raise RunError(
                    f"the cluster does not respond ({words[:200]}); {job} may still be running: ray job status {job}"
                ) from None
        else:
            silent_since = None
            if info.status.is_terminal():
                return info
        time.sleep(POLL)


def notify(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
