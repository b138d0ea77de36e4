"""What an endpoint serves, asked once by the driver: the model, its context, and whether it has the chat API."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

from qaray.config import ConfigError, GenerateConfig
from qaray.engines.http.client import Client, NoResponse, Response, as_json
from qaray.engines.http.keys import VARIABLES, find_key
from qaray.engines.http.replies import Kind, Problem, read_reply
from qaray.engines.http.requests import PATHS
from qaray.models.catalogue import resolve
from qaray.models.contract import Contract
from qaray.run.errors import RunError

SECONDS = 30.0  # of a question
MOST_NAMES = 10  # served models that an error message names
# Names under which servers list the length of a model's context, in tokens.
CONTEXT = ("max_model_len", "context_length", "context_window", "max_context_length", "max_input_tokens")
T = TypeVar("T")


class _Served(NamedTuple):
    name: str
    context: int | None  # tokens, where the endpoint says so


def reached(config: GenerateConfig) -> GenerateConfig:
    """The configuration with the model, the API and the context of its endpoint.

    Raises ConfigError if the endpoint is none, refuses the key or does not serve the model, RunError if it has an
    error of its own.
    """
    return _wait(_reached(config))


async def _reached(config: GenerateConfig) -> GenerateConfig:
    endpoint = config.endpoint
    client = Client(str(endpoint.base_url), find_key(endpoint.api_key_file), SECONDS)
    try:
        served = await _served(client, config)
        model = _chosen(config, served)
        api = await _api(client, config, model.name) if endpoint.api == "auto" else endpoint.api
    finally:
        await client.close()
    changes: dict[str, Any] = {"served_model": model.name, "api": api}
    if model.context and not config.base_model:
        wanted = config.model.context_size or config.model.seq_len or model.context
        if wanted > model.context:
            raise ConfigError(
                f"--{'context_size' if config.model.context_size else 'seq_len'} {wanted}: {endpoint.base_url} serves "
                f"{model.name} with a context of {model.context} tokens"
            )
        changes["context_size"] = model.context
    return config.replace(**changes)


async def _served(client: Client, config: GenerateConfig) -> list[_Served] | None:
    """The models that the endpoint lists, None if it has no list."""
    where = f"--base_url {config.endpoint.base_url}"
    try:
        response = await client.get("/models")
    except NoResponse as error:
        raise ConfigError(f"{where}: not an OpenAI-compatible endpoint ({error})") from None
    if response.status in (404, 405, 501) and config.endpoint.served_model:
        return None
    _check(response, where)
    body = as_json(response.body)
    models = body.get("data", body.get("models")) if isinstance(body, dict) else body
    if not isinstance(models, list):
        raise ConfigError(f"{where}: not an OpenAI-compatible endpoint (its /models is no list)")
    return [served for model in models if isinstance(model, dict) and (served := _model(model))]


def _model(listed: dict[str, Any]) -> _Served | None:
    """A model of the list, None if it has no usable name."""
    name = listed.get("id", listed.get("name"))
    lengths = (length for key in CONTEXT if type(length := listed.get(key)) is int and length > 0)
    return _Served(name, next(lengths, None)) if isinstance(name, str) and name.isprintable() else None


def _check(response: Response, where: str) -> None:
    """Raises the error of a list of models that the endpoint does not give."""
    if response.status == 200:
        return
    problem = read_reply(response)
    assert isinstance(problem, Problem)
    hint = f": set {VARIABLES[0]}" if response.status in (401, 403) else ""
    if problem.kind in (Kind.LATER, Kind.OVERLOADED, Kind.AGAIN) and response.status != 403:
        raise RunError(f"{where}: /models answers {problem.words}")
    if response.status in (404, 405, 501):
        hint = ": a base URL usually ends with /v1; name the model with --served_model if the endpoint has no list"
    raise ConfigError(f"{where}: /models answers {problem.words}{hint}")


def _chosen(config: GenerateConfig, served: list[_Served] | None) -> _Served:
    """The served model that the configuration names, else the first one."""
    wanted = config.endpoint.served_model
    if served is None:
        return _Served(str(wanted), None)
    names = {wanted, f"{wanted}:latest"}  # Ollama's default tag
    for model in served:
        if wanted is None or model.name in names:
            return model
    some = ", ".join(model.name for model in served[:MOST_NAMES]) or "no model"
    more = f" and {len(served) - MOST_NAMES} more" if len(served) > MOST_NAMES else ""
    raise ConfigError(f"--served_model {wanted or ''}: {config.endpoint.base_url} serves {some}{more}")


async def _api(client: Client, config: GenerateConfig, model: str) -> str:
    """The API to use: chat where the endpoint has it, completions for a model that qaray fine-tuned with a template."""
    if config.base_model and Contract.load(resolve(config.base_model, config.model.cache_dir)):
        return "completions"
    try:
        # Without a message the request is refused by all that know it, and costs nothing.
        response = await client.post(PATHS["chat"], {"model": model, "messages": [], "max_tokens": 1})
    except NoResponse:
        return "chat"
    return "completions" if response.status in (404, 405, 501) else "chat"


def _wait(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, for a caller that may be in an event loop itself."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(asyncio.run(work))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="qaray-endpoint")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
