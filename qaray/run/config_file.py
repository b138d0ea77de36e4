"""Reads a --config file: flags as keys, values as on the command line.

Scalars stay text, to be validated like the command line's, so that ``actors: 1:8``, ``language: no`` and ``limit: 010``
mean what is written. YAML 1.1, which PyYAML implements, reads 68, False and 8.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from qaray.config import ConfigError

MOST_BYTES = 1 << 20
DEEPEST = 4  # nested lists and mappings


class _Loader(yaml.BaseLoader):
    """Every scalar is text, except null. Refuses repeated keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value[:100]} occurs twice", key.start_mark
                    )
                seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_constructor("tag:yaml.org,2002:null", lambda loader, node: None)


def read_config(path: str) -> dict[str, Any]:
    """Flag → text, None, list or mapping. Raises ConfigError, naming the file and the line."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"--config {path}: more than {MOST_BYTES:,} bytes")
        text = content.decode("utf-8-sig")
        _check(text)
        values = yaml.load(text, _Loader)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"--config {path}{line}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: {' '.join(str(error).split())[:200]}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"--config {path}: must contain keys and values")
    return values


def _refused(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _check(text: str) -> None:
    """Refuses, before anything is built, what grows beyond its text: aliases, and deep nesting."""
    depth = 0
    for event in yaml.parse(text, yaml.BaseLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _refused("aliases (*name) are not supported", event)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise _refused(f"more than {DEEPEST} levels", event)
