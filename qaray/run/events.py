"""Structured logs of single papers: one JSON line per event, in the log of the worker where it happened.

Ray keeps these logs (`ray logs`, the dashboard, /tmp/ray/session_latest/logs/worker-*.err) for log collectors:

    {"time": "2026-05-01T12:00:00.123Z", "level": "WARNING", "event": "rejected", "run": "/data/runs/first",
     "stage": "generate", "doi": "10.0/x", "reason": "over_length", "detail": "…", "process": 4711}

QARAY_LOG_LEVEL sets what is logged: INFO (papers that were rejected or not scored; the default), DEBUG (also one line
per paper that succeeded), or OFF.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import sys
from functools import cache
from typing import Any

from qaray.run.directory import Run

MAX_DOI_CHARS = 500  # a longer doi is truncated


def log_event(event: str, run: Run, stage: str, doi: str | None, level: int = logging.WARNING, **more: Any) -> None:
    """Logs the event. ``more`` are additional fields."""
    fields = {"event": event, "run": run.root.path, "stage": stage, "doi": doi and doi[:MAX_DOI_CHARS], **more}
    _logger().log(level, event, extra={"fields": fields})


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        head = {"time": time.replace("+00:00", "Z"), "level": record.levelname}
        return json.dumps({**head, **record.__dict__["fields"], "process": record.process})


@cache
def _logger() -> logging.Logger:
    logger = logging.getLogger("qaray.events")
    wanted = os.environ.get("QARAY_LOG_LEVEL", "INFO").upper()
    logger.setLevel(logging.CRITICAL + 1 if wanted == "OFF" else wanted)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    logger.addHandler(handler)
    logger.propagate = False
    return logger
