"""Which flags a command reads: its configuration notes each field that is read, here and in Ray's workers."""

from __future__ import annotations

import contextlib
import functools
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qaray.config import Config, Settings


@contextlib.contextmanager
def recorded_reads(folder: Path) -> Iterator[None]:
    """Notes reads in ``folder`` while it lasts. Those of validators do not count: they see every value."""
    made = Config.__init__
    depth = 0

    def construct(self: Config, **values: Any) -> None:
        nonlocal depth
        depth += 1
        try:
            made(self, **values)
        finally:
            depth -= 1

    def read(self: Settings, name: str) -> Any:
        if not depth:
            note(folder, type(self), name)
        return object.__getattribute__(self, name)

    def reduce(self: Settings) -> Any:
        return rebuild, (type(self), object.__getattribute__(self, "__dict__"), folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, "__init__", construct)
        patch.setattr(Settings, "__getattribute__", read, raising=False)
        patch.setattr(Settings, "__reduce__", reduce)
        yield


def reads(folder: Path) -> set[str]:
    """The flags that were read."""
    return {line for file in folder.glob("*.reads") for line in file.read_text().split()}


def note(folder: Path, kind: type[Settings], name: str) -> None:
    if name in kind.__pydantic_fields__:
        _write(folder, name)


@functools.cache
def _write(folder: Path, name: str) -> None:
    with (folder / f"{_process()}.reads").open("a") as file:
        file.write(f"{name}\n")


@functools.cache
def _process() -> str:
    return f"{os.getpid()}-{uuid.uuid4().hex}"


def rebuild(kind: type[Settings], values: dict[str, Any], folder: Path) -> Settings:
    """A configuration in a worker, which notes there what is read."""
    return _recording(kind, folder).model_construct(**values)


@functools.cache
def _recording(kind: type[Settings], folder: Path) -> type[Settings]:
    def read(self: Settings, name: str) -> Any:
        note(folder, kind, name)
        return object.__getattribute__(self, name)

    def reduce(self: Settings) -> Any:
        return rebuild, (kind, object.__getattribute__(self, "__dict__"), folder)

    return type(kind.__name__, (kind,), {"__module__": __name__, "__getattribute__": read, "__reduce__": reduce})
