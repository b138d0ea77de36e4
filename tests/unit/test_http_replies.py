"""What responses of endpoints are: answers, or problems by their status."""

import json
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qaray.config import ConfigError
from qaray.engines.http.client import Response
from qaray.engines.http.keys import find_key, without_key
from qaray.engines.http.replies import Kind, Problem, Reply, read_reply


def response(status, body, **headers):
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw)


def error(message, **more):
    return {"error": {"message": message, **more}}


TOO_LONG = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."
PARTS = (
    "maximum context length is 4,096 tokens. You requested 6000 tokens (3952 in the messages, 2048 in the completion)."
)
TGI = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 9000 `inputs` tokens"
NO_MAX_TOKENS = "Unsupported parameter: 'max_tokens' is not supported with this model. Use another instead."
NO_TEMPERATURE = "Unsupported value: 'temperature' does not support 0.6 with this model"
# The words are those of OpenAI, vLLM, SGLang, TGI, llama.cpp, Ollama, Anthropic's and Google's compatible endpoints.
PROBLEMS = [
    (400, error("Invalid value for 'messages'"), Kind.REFUSED),
    (400, error("temperature must be in [0, 2], got 3", param="temperature"), Kind.REFUSED),
    (400, error(NO_TEMPERATURE, param="temperature"), Kind.REFUSED),
    (400, error(TOO_LONG), Kind.TOO_LONG),
    (400, error("too much", code="context_length_exceeded"), Kind.TOO_LONG),
    (400, error("the request exceeds the available context size, try increasing it", n_ctx=4096), Kind.TOO_LONG),
    (400, error("prompt is too long: 210000 tokens > 200000 maximum"), Kind.TOO_LONG),
    (413, "Payload Too Large", Kind.TOO_LONG),
    (422, {"error": TGI}, Kind.TOO_LONG),
    (400, error(NO_MAX_TOKENS, param="max_tokens"), Kind.PARAMETER),
    (400, error("'response_format' of type 'json_schema' is not supported with this model."), Kind.PARAMETER),
    (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, Kind.PARAMETER),
    (400, {"object": "error", "message": "System role not supported", "code": 400}, Kind.PARAMETER),
    (401, error("Incorrect API key provided"), Kind.FATAL),
    (402, error("Insufficient Balance"), Kind.FATAL),
    (403, error("not in your country"), Kind.AGAIN),
    (404, error("The model `x` does not exist", code="model_not_found"), Kind.FATAL),
    (405, "Method Not Allowed", Kind.FATAL),
    (307, "", Kind.FATAL),
    (408, "", Kind.AGAIN),
    (429, error("Rate limit reached", code="rate_limit_exceeded"), Kind.LATER),
    (429, error("You exceeded your current quota", code="insufficient_quota"), Kind.FATAL),
    (500, error("The server had an error", code=None), Kind.AGAIN),
    (502, "<html><body>Bad Gateway</body></html>", Kind.AGAIN),
    (503, error("Engine is not currently available"), Kind.OVERLOADED),
    (529, error("Overloaded", type="overloaded_error"), Kind.AGAIN),
    (200, error("slow down", code=429), Kind.LATER),
    (200, error("bad key", code="401"), Kind.FATAL),
    (200, error("something"), Kind.AGAIN),
    (200, {"error": "model is loading"}, Kind.AGAIN),
    (200, "", Kind.AGAIN),
    (204, "", Kind.REFUSED),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind"), PROBLEMS)
def test_the_status_decides(status, body, kind):
    found = read_reply(response(status, body))
    assert isinstance(found, Problem)
    assert found.kind is kind
    assert len(found.words) < 500
    assert "<html" not in found.words


def test_what_a_refusal_is_about():
    names = {
        "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model.",
        "stop": "Unsupported parameter: 'stop' is not supported",
        "response_format": "guided decoding is not supported",
        "system": "System role not supported",
    }
    for name, words in names.items():
        assert read_reply(response(400, error(words))).parameter == name


@pytest.mark.parametrize(
    ("words", "excess"),
    [
        (TOO_LONG, 808),
        (PARTS, 1904),
        ("maximum context length is 2048", None),
        ("too long", None),
    ],
)  # fmt: skip
def test_how_much_is_too_much(words, excess):
    assert read_reply(response(400, error(words, code="context_length_exceeded"))).excess == excess


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7),
        ({"retry_after": "1.5"}, 1.5),
        ({"retry_after_ms": "250", "retry_after": "1"}, 0.25),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "-3"}, 0),
        ({"retry_after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert read_reply(response(429, "", **headers)).retry_after == seconds


def test_retry_after_may_be_a_date():
    told = read_reply(response(429, "", retry_after=formatdate(time.time() + 3600))).retry_after
    assert 3000 < told <= 3601


def test_an_answer():
    usage = {"prompt_tokens": 11, "completion_tokens": 5.0}
    body = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}], "usage": usage}
    assert read_reply(response(200, body)) == Reply("Yes.", "", "stop", 11, 5)
    body = {"choices": [{"text": "Yes.", "finish_reason": None}]}
    assert read_reply(response(200, body)) == Reply("Yes.")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "error", "code", "usage", "prompt_tokens", "text", "detail"]
            ),
            inner,
            max_size=4,
        )
    ),
)


@given(st.sampled_from([200, 204, 302, 400, 401, 403, 404, 422, 429, 500, 503, 599]), JSON, st.booleans())
def test_no_body_is_an_exception(status, body, wrapped):
    if wrapped:
        body = {"choices": [body], "usage": body}
    found = read_reply(response(status, json.dumps(body)))
    assert isinstance(found, Reply | Problem)
    if isinstance(found, Reply):
        assert found.text.encode()
        assert found.prompt_tokens is None or found.prompt_tokens >= 0


@given(st.binary(max_size=60))
def test_no_bytes_are_an_exception(body):
    for status in (200, 400, 429, 500):
        assert isinstance(read_reply(Response(status, {}, body)), Problem)


def test_keys(monkeypatch, tmp_path):
    for name in ("QARAY_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert find_key(None) is None
    monkeypatch.setenv("OPENAI_API_KEY", "two")
    assert find_key(None) == "two"
    monkeypatch.setenv("QARAY_API_KEY", "one\r\n")
    assert find_key(None) == "one"
    file = tmp_path / "key"
    file.write_text(" three\n")
    assert find_key(str(file)) == "three"
    for bad in ("a b", "a\nb", "ключ", "a\x00b", "x" * 20_000):
        file.write_text(bad, encoding="utf-8")
        with pytest.raises(ConfigError) as raised:
            find_key(str(file))
        assert bad not in str(raised.value)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        find_key(str(file))
    with pytest.raises(ConfigError, match="No such file"):
        find_key(str(tmp_path / "none"))
    assert without_key("the key sk-1 is bad", "sk-1") == "the key [key] is bad"
