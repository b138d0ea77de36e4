"""Errors of a run. Each message is one line for the user."""

from __future__ import annotations


class RunError(RuntimeError):
    """The run cannot start or continue."""


class RunRefused(RunError):
    """The run belongs to another driver, has other settings, or cannot be used as it is: a rerun ends the same way."""


class Superseded(RunError):
    """A later driver has taken over the run. What this one has not finished is the later driver's."""


class Damaged(RunRefused):
    """A file of the run is damaged or missing."""

    def __init__(self, file: object, what: str, cure: str = "") -> None:
        self.file, self.what, self.cure = file, what, cure
        super().__init__(f"{file} {what}{f': {cure}' if cure else ''}")

    def __reduce__(self) -> tuple[type[Damaged], tuple[object, str, str]]:
        return Damaged, (self.file, self.what, self.cure)
