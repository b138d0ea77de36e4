"""The desk: a small Ray actor through which the driver and the actor that sends requests tell each other things."""

from __future__ import annotations

from typing import Any


class _Desk:
    def __init__(self) -> None:
        self._key: str | None = None
        self._ended = ""
        self._spent = 0.0

    def keep(self, key: str | None) -> None:
        self._key = key

    def key(self) -> str | None:
        return self._key

    def end(self, words: str) -> None:
        """Notes why no more requests are sent; the first reason counts."""
        self._ended = self._ended or words

    def ended(self) -> str:
        return self._ended

    def pay(self, cost: float) -> None:
        self._spent += cost

    def spent(self) -> float:
        return self._spent


class Desk:
    """A handle of the desk, which can be sent to other processes. The key goes from memory to memory."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @classmethod
    def opened(cls, key: str | None) -> Desk:
        """A new desk on the driver's node. Ray must be connected."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(num_cpus=0, scheduling_strategy=here)(_Desk).remote()
        ray.get(actor.keep.remote(key))
        return cls(actor)

    def key(self) -> str | None:
        return self._ask("key")

    def ended(self) -> str:
        """Why no more requests are sent; '' while they are."""
        return self._ask("ended") or ""

    def spent(self) -> float:
        """What all requests have cost."""
        return float(self._ask("spent"))

    def pay(self, cost: float) -> None:
        """Adds the cost of a request. Does not wait."""
        self._actor.pay.remote(cost)

    def open_account(self, cost: float) -> None:
        """Adds the cost of requests of earlier starts, before an actor asks for it."""
        import ray

        ray.get(self._actor.pay.remote(cost))

    async def end(self, words: str) -> None:
        await self._actor.end.remote(words)

    def _ask(self, method: str) -> Any:
        import ray

        return ray.get(getattr(self._actor, method).remote())
