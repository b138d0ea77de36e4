"""The key of an endpoint: found by the driver, handed to actors from memory to memory.

It is no argument of a constructor, no environment variable of a worker and no part of a configuration, all of which Ray
stores or shows.
"""

from __future__ import annotations

import os
from pathlib import Path

from qaray.config import ConfigError

VARIABLES = ("QARAY_API_KEY", "OPENAI_API_KEY")  # environment variables, the first that is set
HIDDEN = "[key]"  # what stands for the key in a message
MOST_CHARACTERS = 16_384  # of a key; some are signed tokens


def find_key(key_file: str | None) -> str | None:
    """The endpoint's key, None without one. Raises ConfigError, which never shows it, if it cannot be a header."""
    if key_file:
        source = f"--api_key_file {key_file}"
        try:
            key = Path(key_file).read_text(encoding="ascii")
        except OSError as error:
            raise ConfigError(f"{source}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{source} holds characters that a key cannot have") from None
    else:
        source = next((name for name in VARIABLES if os.environ.get(name)), "")
        key = os.environ.get(source, "")
    key = key.strip()
    if key_file and not key:
        raise ConfigError(f"{source} is empty")
    if not (key.isascii() and key.isprintable()) or " " in key or len(key) > MOST_CHARACTERS:
        raise ConfigError(f"{source} holds characters that a key cannot have")
    return key or None


def without_key(text: str, key: str | None) -> str:
    """The text with the key left out: an endpoint may repeat it in an error message."""
    return text.replace(key, HIDDEN) if key else text
