"""Loading from transformers, without its output and with one-line errors."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

from qaray.config import ConfigError
from qaray.run.errors import RunError

# Error numbers of the machine, rather than of the model's files.
OF_THE_MACHINE = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.EROFS])
MESSAGE = 300  # characters of a library's error


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

    with loading(f"model {name or folder}"):
        return AutoConfig.from_pretrained(folder, cache_dir=cache_dir, trust_remote_code=trust_remote_code)


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Turns any error of the libraries that read a model's files into one line: the files may make them raise anything.

    Raises RunError if the machine lacks memory or its disk fails, else ConfigError.
    """
    try:
        with quiet_transformers():
            yield
    except (ConfigError, RunError):
        raise
    except Exception as error:
        machine = isinstance(error, OSError) and error.errno in OF_THE_MACHINE
        kind = RunError if machine or is_out_of_memory(error) else ConfigError
        raise kind(f"{what}: {one_line(error)}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host ran out of memory. PyTorch's CPU allocator raises a plain RuntimeError."""
    by_type = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's
    return by_type or any(words in str(error) for words in ("allocate memory", "out of memory"))


def one_line(error: BaseException) -> str:
    """An error's message in one line, with the type's name where the message is only a value."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError | AttributeError | ArithmeticError | TypeError) or not text:
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= MESSAGE else f"{text[:MESSAGE]}…"


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
