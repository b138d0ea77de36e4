"""Loads the prompt template and the request named by flags, and a model's own chat format."""

from __future__ import annotations

from qaray.asking.request import Request, default_text
from qaray.asking.templates import LLAMA2, Template, chat_template
from qaray.config import ConfigError
from qaray.models.loading import first_line, loading
from qaray.models.tokenizer import HFTokenizer
from qaray.run.storage import Location


def named_template(name: str | None, tokenizer: HFTokenizer | None) -> Template | None:
    """The template named by --prompt_template; None without the flag. Raises ConfigError if it cannot be loaded."""
    if name is None:
        return None
    if name == "llama2":
        return Template("llama2", LLAMA2)
    if name == "chat":
        if tokenizer is None or not tokenizer.hf.chat_template:
            raise ConfigError("--prompt_template chat: the model's tokenizer has no chat template")
        return _chat(tokenizer)
    return Template("file", _text("--prompt_template", name))


def named_request(name: str | None, language: str | None) -> Request:
    """The request named by --request; the default without the flag. Raises ConfigError if it is not usable."""
    if name is None:
        return Request(default_text(), language)
    return Request(_text("--request", name).rstrip("\n"), language, f"--request {name}")


def _text(flag: str, name: str) -> str:
    try:
        with Location.of(name).open() as stream:
            return stream.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag} {name}: {first_line(error)}") from None


def default_template(tokenizer: HFTokenizer) -> Template:
    """The template ``chat`` if the tokenizer has a chat template, else ``llama2``."""
    return _chat(tokenizer) if tokenizer.hf.chat_template else Template("llama2", LLAMA2)


def _chat(tokenizer: HFTokenizer) -> Template:
    turn = [{"role": "user", "content": "{instruction}\n{input}"}]
    with loading("--prompt_template chat: the tokenizer's chat template"):
        rendered = tokenizer.hf.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return chat_template(rendered, source=str(tokenizer.hf.chat_template))
