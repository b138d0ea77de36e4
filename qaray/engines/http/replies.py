"""What an endpoint's response is: an answer, or a problem that the status code decides.

Every response is validated: a body of any shape becomes an answer or a problem, and never an exception.
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qaray.engines.http.client import Response, as_json

MOST_WORDS = 300  # characters of an endpoint's message that are kept
MOST_TOKENS = 1 << 40  # of a plausible usage


class Kind(Enum):
    """What a problem means for the request."""

    LATER = "later"  # 429: the same request later; says nothing about the request or the endpoint's health
    OVERLOADED = "overloaded"  # 503 or a time-out: again, and fewer at once
    AGAIN = "again"  # 5xx, a lost connection, a body that is no answer: again
    REFUSED = "refused"  # 4xx: the endpoint will not take this request
    TOO_LONG = "too_long"  # the prompt and its answer exceed the model's context
    PARAMETER = "parameter"  # the endpoint does not know a parameter
    FATAL = "fatal"  # no request will be answered: the key, the model, the address or the account


class Problem(NamedTuple):
    """A response without an answer."""

    kind: Kind
    words: str  # what the endpoint says
    retry_after: float | None = None  # seconds
    parameter: str = ""  # the parameter that the endpoint does not know
    excess: int | None = None  # tokens beyond the model's context, where the endpoint says so


class Reply(NamedTuple):
    """An answer of the model."""

    text: str
    reasoning: str = ""  # what a reasoning model has thought, where the endpoint keeps it apart
    finish_reason: str = ""  # the endpoint's word: stop, length, content_filter, …
    prompt_tokens: int | None = None  # None: not reported
    output_tokens: int | None = None


def clean(text: str) -> str:
    """Text without lone surrogates and NUL, which no file takes."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=False)


class _Message(_Lenient):
    content: str | None = None
    reasoning_content: str | None = None  # vLLM, SGLang, DeepSeek
    reasoning: str | None = None  # OpenRouter, Ollama
    refusal: str | None = None

    @field_validator("content", "reasoning_content", "reasoning", "refusal", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        """Some services send a list of parts: the text of those that are no reasoning."""
        if isinstance(value, list):
            texts = [part.get("text") for part in value if isinstance(part, dict)]
            return "".join(text for text in texts if isinstance(text, str))
        return value


class _Choice(_Lenient):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(_Lenient):
    prompt_tokens: Any = None
    completion_tokens: Any = None


class _Answer(_Lenient):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None

    @field_validator("usage", mode="before")
    @classmethod
    def _usable(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else None


def read_reply(response: Response) -> Reply | Problem:
    """The answer in a response, or its problem."""
    if response.status != 200:
        return _problem(response)
    body = as_json(response.body)
    if isinstance(body, dict) and body.get("error"):
        return _hidden_error(response, body)
    try:
        answer = _Answer.model_validate(body)
        choice = answer.choices[0]
        if choice.message is None and choice.text is None:
            raise ValueError("a choice without a message")
    except (ValidationError, ValueError) as error:
        return Problem(Kind.AGAIN, f"a response that is no completion: {_first_mistake(error)}")
    message = choice.message or _Message(content=choice.text)
    usage = answer.usage or _Usage()
    return Reply(
        text=clean(message.content or message.refusal or ""),
        reasoning=clean(message.reasoning_content or message.reasoning or ""),
        finish_reason=clean(choice.finish_reason or "")[:40],
        prompt_tokens=_tokens(usage.prompt_tokens),
        output_tokens=_tokens(usage.completion_tokens),
    )


def _tokens(value: Any) -> int | None:
    """A plausible number of tokens; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if 0 <= value <= MOST_TOKENS else None


def _first_mistake(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"[:MOST_WORDS]
    return str(error)[:MOST_WORDS]


# Problems

_TOO_LONG = re.compile(
    r"context.{0,20}(length|window|size|limit)|maximum.{0,20}(context|model.{0,5}len|input).{0,10}length"
    r"|prompt is too long|too many tokens|exceeds? .{0,40}(context|n_ctx|max_model_len|token limit)"
    r"|input.{0,20}(is )?too long|string_above_max_length|reduce the length|`inputs` tokens \+",
    re.I,
)
_UNKNOWN = re.compile(
    r"unsupported|not supported|unrecognized|unknown|unexpected|not permitted|not allowed|extra (input|field)"
    r"|does not support|not available|not implemented|deprecated|no chat template|system role",
    re.I,
)
# What a request can do without, or say in another way. The sampling itself is not among them.
OPTIONAL = ("response_format", "max_tokens", "max_completion_tokens", "seed", "stop", "min_tokens", "system")
_ACCOUNT = re.compile(
    r"insufficient_quota|exceeded your current quota|billing|insufficient (balance|credits|funds)", re.I
)
_LIMIT = re.compile(
    r"(?:maximum context length(?: of)?(?: is)?|max_model_len[^\d]{0,12}|context (?:window|size|length)[^\d]{0,24}"
    r"|n_ctx[^\d]{0,6})\s*\(?(\d[\d,]*)",
    re.I,
)
_ASKED = re.compile(
    r"(?:requested(?: about)?|resulted in|n_prompt_tokens[^\d]{0,6}|has|have|contains?|with|at least|got|\()"
    r"\s*(\d[\d,]*)\s*(?:input |output |prompt )?tokens?",
    re.I,
)


def _problem(response: Response) -> Problem:
    status, words, code = response.status, _words(response), _code(response)
    told = f"{status}: {words}" if words else str(status)
    if 300 <= status < 400:
        to = clean(response.headers.get("location", ""))[:MOST_WORDS]
        return Problem(Kind.FATAL, f"{status}: it redirects to {to}, which is not followed: give that as --base_url")
    if status == 429:
        if _ACCOUNT.search(f"{code} {words}"):
            return Problem(Kind.FATAL, told)
        return Problem(Kind.LATER, told, _retry_after(response.headers))
    if status == 503:
        return Problem(Kind.OVERLOADED, told, _retry_after(response.headers))
    if status >= 500 or status in (408, 409, 425):
        return Problem(Kind.AGAIN, told, _retry_after(response.headers))
    if status in (401, 402, 404, 405, 407, 410):
        return Problem(Kind.FATAL, told)
    if status == 403:
        return Problem(Kind.AGAIN, told)  # of a key that has expired, or of a filter before the endpoint
    if status in (400, 413, 422):
        if parameter := _parameter(response, words):
            return Problem(Kind.PARAMETER, told, parameter=parameter)
        if code == "context_length_exceeded" or status == 413 or _TOO_LONG.search(words):
            return Problem(Kind.TOO_LONG, told, excess=_excess(words))
    return Problem(Kind.REFUSED, told)


def _hidden_error(response: Response, body: dict[str, Any]) -> Problem:
    """An error in a response with status 200: that of the status which it names, if it names one."""
    error = body["error"]
    named = [error.get(name) for name in ("code", "status", "status_code")] if isinstance(error, dict) else []
    for value in [*named, body.get("code"), body.get("status")]:
        if str(value).isdigit() and 400 <= int(str(value)) < 600:
            return _problem(Response(int(str(value)), response.headers, response.body))
    return Problem(Kind.AGAIN, f"200 with an error: {_words(response)}")


def _error(response: Response) -> dict[str, Any]:
    """The object that describes an error; empty if there is none."""
    body = as_json(response.body)
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        return {}
    return body["error"] if isinstance(body.get("error"), dict) else body


def _words(response: Response) -> str:
    """The endpoint's message, one line."""
    error = _error(response)
    for name in ("message", "detail", "error", "error_description", "title"):
        if error.get(name):
            return clean(" ".join(str(error[name]).split()))[:MOST_WORDS]
    text = response.body[: 4 * MOST_WORDS].decode("utf-8", "replace")
    if "<html" in text.lower() or "<!doctype" in text.lower():
        text = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", text, flags=re.S)
    return clean(" ".join(text.split()))[:MOST_WORDS]


def _code(response: Response) -> str:
    error = _error(response)
    return " ".join(str(error.get(name) or "") for name in ("code", "type")).strip().partition(" ")[0]


def _parameter(response: Response, words: str) -> str:
    """The optional parameter that a refusal is about; '' if it is about something else."""
    error = _error(response)
    places: list[str] = [str(error.get("param") or "")]
    for mistake in error["detail"] if isinstance(error.get("detail"), list) else []:
        if isinstance(mistake, dict) and isinstance(mistake.get("loc"), list):
            places += [str(part) for part in mistake["loc"]]
            words += f" {mistake.get('msg')}"
    if not _UNKNOWN.search(words):
        return ""
    for name in OPTIONAL:
        if name in places or re.search(rf"\b{name}\b", words, re.I):
            return name
    return "response_format" if re.search(r"json_schema|structured|guided|grammar", words, re.I) else ""


def _excess(words: str) -> int | None:
    limit, asked = _LIMIT.search(words), [_number(found) for found in _ASKED.findall(words)]
    if not limit or not asked:
        return None
    beyond = max(asked) - _number(limit[1])
    return beyond if beyond > 0 else None


def _number(text: str) -> int:
    return int(text.replace(",", "")[:12])


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait; None if it does not say."""
    with_unit = {"retry-after-ms": 0.001, "retry-after": 1.0}
    for name, unit in with_unit.items():
        value = headers.get(name, "")
        try:
            seconds = float(value) * unit
        except ValueError:
            parsed = email.utils.parsedate_tz(value)
            seconds = email.utils.mktime_tz(parsed) - time.time() if parsed else math.nan
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None
