"""Renders the report's pages. A page includes its style and one script, which its CSP allows by hash."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

# Characters that HTML does not allow, even escaped.
_UNPRINTABLE = dict.fromkeys([*range(9), 11, *range(14, 32), *range(127, 160), *range(0xD800, 0xE000)], "\ufffd")


class Pages:
    """Renders templates into files that open from disk."""

    def __init__(self) -> None:
        self.environment = jinja2.Environment(
            loader=jinja2.PackageLoader("qaray", "report/templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self.environment.filters["number"] = lambda value: f"{value:,}"
        self.environment.filters["figure"] = figure
        static = resources.files("qaray") / "report" / "static"
        self.static = {name: (static / name).read_text() for name in ("style.css", "table.js", "paper.js")}

    def write(self, place: Any, template: str, script: str, **context: Any) -> None:
        """Renders ``template`` with ``context`` and the static file ``script`` to the file ``place``."""
        code = self.static[script]
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        page = self.environment.get_template(template).render(
            **context, style=Markup(self.static["style.css"]), script=Markup(code), script_hash=f"'sha256-{digest}'"
        )
        place.write_bytes(page.translate(_UNPRINTABLE).encode("utf-8", "replace"))


def figure(value: float | int | None) -> str:
    """A number for display: integers with separators, floats with three decimals, None as a dash."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
