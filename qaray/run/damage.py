"""Damaged and missing files of a run: named, set aside, and made again where the run can make them."""

from __future__ import annotations

from qaray.run.directory import Run
from qaray.run.errors import Damaged
from qaray.run.storage import Location


def set_aside(run: Run, file: Location, damage: Damaged) -> str:
    """Moves a damaged file to OUT/damaged/, where no reader looks; returns a line about it. Raises Superseded."""
    run.view.check()
    target = run.root / "damaged" / file.within(run.root).replace("/", "-")
    line = f"{file} {damage.what}: set aside as {target}"
    file.move_to(target)
    return line
