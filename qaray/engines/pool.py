"""Actor pools of Ray Data: how many blocks an actor holds, what it takes of a node, what it is called."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True)
class Share:
    """What an actor of a pool holds of the prompts."""

    rows: int  # of a block
    calls: int  # blocks that it works on at once
    in_flight: int  # blocks that it holds

    @classmethod
    def of(cls, slots: int, ahead: float, actors: int, expected: int | None, most_rows: int = 64) -> Share:
        """Of an actor with ``slots`` prompts in work: ``ahead`` times as many, in blocks of a quarter of the slots.

        Of ``expected`` prompts no actor holds more at a time than an even share among ``actors``: few would all go to
        the one that happens to be ready first.
        """
        rows = max(1, min(most_rows, slots // 4))
        calls = max(2, math.ceil(ahead * slots / rows))
        if expected is None:
            return cls(rows, calls, calls + 1)
        own = max(1, math.ceil(expected / actors))
        blocks = math.ceil(own / rows)
        return cls(min(rows, math.ceil(own / blocks)), min(calls, blocks), min(calls + 1, blocks))

    def blocks(self, prompts: Dataset) -> Dataset:
        """The prompts in blocks of ``rows``."""
        return prompts.repartition(target_num_rows_per_block=self.rows, strict=True)


def pool(minimum: int, maximum: int, concurrent_calls: int = 1, in_flight: int | None = None) -> Any:
    """An autoscaling actor pool; each actor holds ``in_flight`` blocks, by default one more than the
    ``concurrent_calls`` that it works on at a time."""
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(
        min_size=minimum,
        max_size=maximum,
        max_tasks_in_flight_per_actor=in_flight or concurrent_calls + 1,
        max_concurrent_calls_per_actor=concurrent_calls,
        enable_true_multi_threading=concurrent_calls > 1,
    )


# Threads would have memory of their own, which goes back to the system when it is freed: see engines/local/cpu.py.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}


def actor_resources(cpus: float, gpus: float, labels: Mapping[str, str]) -> dict[str, Any]:
    """What an actor with a model takes, and the labels of its node. Ray Data restarts actors that die and runs their
    blocks again."""
    options: dict[str, Any] = {"num_cpus": cpus, "runtime_env": {"env_vars": ONE_ARENA}}
    if gpus:
        options["num_gpus"] = gpus
    if labels:
        options["label_selector"] = dict(labels)
    return options


def actors_in_words(sizes: tuple[int, int]) -> str:
    """A pool's size for the user."""
    low, high = sizes
    return f"{low} to {high} actors" if high > low else f"{low} actor" + "s" * (low > 1)


def actor_name() -> str:
    """Names this actor, the same after Ray has started it anew; elsewhere the process."""
    import ray

    return (ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None) or worker_name()


def worker_name() -> str:
    """Names this process in the rows that it writes."""
    return f"{socket.gethostname()}:{os.getpid()}"
