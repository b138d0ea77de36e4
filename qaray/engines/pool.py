"""Actor pools of Ray Data: blocks per actor, resources per actor, actor names."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qaray.config import ConfigError
from qaray.run.errors import RunError
from qaray.run.tries import Tries

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True)
class Share:
    """Share of the prompts that one actor of a pool holds at a time."""

    rows: int  # per block
    calls: int  # blocks processed concurrently
    in_flight: int  # blocks assigned to the actor

    @classmethod
    def of(cls, slots: int, ahead: float, actors: int, expected: int | None, most_rows: int = 64) -> Share:
        """The share of an actor that decodes ``slots`` prompts concurrently.

        The actor works on ``ahead`` × ``slots`` prompts, in blocks of a quarter of the slots and at most ``most_rows``
        rows. If the number of prompts is known (``expected``), an actor holds at most an even share among ``actors``;
        otherwise the first actor to start would take all prompts of a small run.
        """
        rows = max(1, min(most_rows, slots // 4))
        calls = max(2, math.ceil(ahead * slots / rows))
        if expected is None:
            return cls(rows, calls, calls + 1)
        per_actor = max(1, math.ceil(expected / actors))
        blocks = math.ceil(per_actor / rows)
        return cls(min(rows, math.ceil(per_actor / blocks)), min(calls, blocks), min(calls + 1, blocks))

    def blocks(self, prompts: Dataset) -> Dataset:
        """Repartitions the prompts into blocks of ``rows`` rows."""
        return prompts.repartition(target_num_rows_per_block=self.rows, strict=True)


def pool(minimum: int, maximum: int, concurrent_calls: int = 1, in_flight: int | None = None) -> Any:
    """An autoscaling pool of ``minimum`` to ``maximum`` actors.

    Each actor processes ``concurrent_calls`` blocks concurrently and holds ``in_flight``, by default one more.
    """
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(
        min_size=minimum,
        max_size=maximum,
        max_tasks_in_flight_per_actor=in_flight or concurrent_calls + 1,
        max_concurrent_calls_per_actor=concurrent_calls,
        enable_true_multi_threading=concurrent_calls > 1,
    )


# With a malloc arena per thread, freed memory would return to the system: see engines/local/cpu.py.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}


def actor_resources(cpus: float, gpus: float, labels: Mapping[str, str]) -> dict[str, Any]:
    """Ray options of an actor with a model: CPUs, GPUs, environment variables and node labels.

    Ray Data restarts actors that die and reruns their blocks.
    """
    options: dict[str, Any] = {"num_cpus": cpus, "runtime_env": {"env_vars": ONE_ARENA}}
    if gpus:
        options["num_gpus"] = gpus
    if labels:
        options["label_selector"] = dict(labels)
    return options


def describe_pool(sizes: tuple[int, int]) -> str:
    """The pool size as text, e.g. ``2 to 4 actors``."""
    low, high = sizes
    return f"{low} to {high} actors" if high > low else f"{low} actor" + "s" * (low > 1)


class Startup:
    """The start of an actor with a model, whose failure the actor's first call raises.

    Ray reports what a call raises as that exception, but what a constructor raises as the text of its traceback.
    """

    def __init__(self, tries: Tries) -> None:
        self.tries = tries
        self.problem: ConfigError | RunError | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Wraps the constructor's work. Keeps a ConfigError or RunError."""
        try:
            with self.tries.starting(actor_name(), "loading the model"):
                yield
        except (ConfigError, RunError) as error:
            self.problem = error

    def check(self) -> None:
        """Raises the error of the start."""
        if self.problem:
            raise self.problem


def actor_name() -> str:
    """Id of this actor, unchanged when Ray restarts it; outside of actors, ``worker_name()``."""
    import ray

    return (ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None) or worker_name()


def worker_name() -> str:
    """``host:pid`` of this process, recorded in the rows that it writes."""
    return f"{socket.gethostname()}:{os.getpid()}"
