"""Fine-tuning: examples → training processes → a model."""

from importlib.util import find_spec

from qaray.config import ConfigError

EXTRA = ("accelerate", "deepspeed", "peft")  # modules of the extra ``train``


def require_extra() -> None:
    """Raises ConfigError unless the extra ``train`` is installed."""
    if missing := [name for name in EXTRA if find_spec(name) is None]:
        raise ConfigError(f"fine-tuning requires {missing[0]}: pip install 'qaray[train]'")
