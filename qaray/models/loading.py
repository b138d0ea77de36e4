"""Loading from transformers, without its output and with one-line errors."""

from __future__ import annotations

import contextlib
from typing import Any

from qaray.config import ConfigError


@contextlib.contextmanager
def quiet_transformers() -> Any:
    """Disables progress bars and warnings of transformers inside the block."""
    import logging as python_logging

    from transformers.utils import logging

    # transformers imports deepspeed if it is installed, and deepspeed warns if there is no GPU.
    python_logging.getLogger("DeepSpeed").addFilter(_errors_only)
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _errors_only(record: Any) -> bool:
    return bool(record.levelno >= 40)


def load_config(folder: str, cache_dir: str, trust_remote_code: bool, name: str = "") -> Any:
    """The model's transformers config. Raises ConfigError if it cannot be loaded."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(folder, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model {name or folder}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
