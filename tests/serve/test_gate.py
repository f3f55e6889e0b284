"""What passes before anything is read: keys, sizes; and what is said of errors, to clients, in logs and counters."""

from __future__ import annotations

import hmac
import http.client
import json
import logging

import openai
import pytest

from tests.serve.conftest import running, turn, until

BODY = {"model": "tiny", "temperature": 0, "max_tokens": 2, "messages": [turn("how many stars ?")]}


@pytest.fixture(scope="module")
def guarded(loaded):
    with running(loaded, keys=("first-key", "second-key"), max_body=10_000, keep=0.3) as server:
        yield server


def post(server, body: bytes, chunked: bool = False, **headers) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named = {"Content-Type": "application/json", "Authorization": "Bearer first-key", **named}
    content = (body[at : at + 1000] for at in range(0, len(body), 1000)) if chunked else body
    connection.request("POST", "/v1/chat/completions", content, named, encode_chunked=chunked)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def test_keys(guarded, monkeypatch):
    for key in ("first-key", "second-key"):
        assert guarded.client(key).chat.completions.create(**BODY).choices
    compared = []
    same = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, two: compared.append(len(one)) or same(one, two))
    guarded.client("first-key").models.list()
    assert compared == [32, 32]  # digests of one length, and all of them, also after one that fits
    for header in ("Bearer first-ke", "Bearer first-keyy", "first-key", "Basic first-key", "Bearer", "Bearer \xff"):
        status, body = post(guarded, json.dumps(BODY).encode(), Authorization=header)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError):
        guarded.client("third").models.list()


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies(guarded, chunked):
    large = json.dumps({**BODY, "user": "x" * 20_000}).encode()
    headers = {"Transfer_Encoding": "chunked"} if chunked else {}
    status, body = post(guarded, large, chunked, **headers)
    assert (status, body["error"]["code"]) == (413, "request_too_large")
    assert post(guarded, json.dumps(BODY).encode(), chunked, **headers)[0] == 200


WRONG = [
    b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 9000, b'{"model": "tiny", "messages": 1e999}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "\\udcff"}]}',
    b'{"model": "tiny", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "tiny", "seed": 1' + b"0" * 400 + b', "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "tiny", "foveate": {"keep": NaN}, "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": [{"type": "text"}]}]}',
]  # fmt: skip


@pytest.mark.parametrize("body", WRONG, ids=range(len(WRONG)))
def test_bodies_that_mean_nothing(guarded, body):
    status, answer = post(guarded, body)
    assert status in (400, 403)
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]


def test_other_paths_and_methods(guarded):
    connection = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=30)
    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/v1/chat/completions", 401),
        ("DELETE", "/health", 405),
        ("GET", "/health", 200),
        ("GET", "/ready", 200),
        ("GET", "/../../etc/passwd", 404),
    ):
        connection.request(method, path)
        answer = connection.getresponse()
        body = json.loads(answer.read())
        assert answer.status == status, (method, path)
        assert "error" in body or status == 200
        assert answer.getheader("x-request-id")
        assert answer.getheader("server") is None or "foveate" not in answer.getheader("server")


def test_an_error_of_the_servers_own_says_nothing(guarded, monkeypatch, caplog):
    monkeypatch.setattr(guarded.service, "jobs", lambda *a: (_ for _ in ()).throw(KeyError("secret of /a/path")))
    with pytest.raises(openai.InternalServerError) as error:
        guarded.client("first-key").chat.completions.create(**BODY)
    assert error.value.body["message"] == "the server made an error"
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text


def test_logs_have_no_contents(guarded, caplog):
    caplog.set_level(logging.DEBUG, "foveate")
    asked = {**BODY, "messages": [turn("a secret word")], "user": "someone"}
    said = guarded.client("first-key").chat.completions.create(**asked)
    assert "POST '/v1/chat/completions' 200" in caplog.text
    for word in ("secret", "someone", "first-key", said.choices[0].message.content or "\0"):
        assert word not in caplog.text


def test_counters(guarded):
    from urllib.request import urlopen

    def read() -> dict[str, float]:
        lines = urlopen(f"{guarded.url}/metrics").read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    before = read()
    assert post(guarded, json.dumps(BODY).encode())[0] == 200
    until(lambda: read()["foveate_batch_size_count"] > before["foveate_batch_size_count"])
    after = read()
    assert after['foveate_requests_total{status="200"}'] == before.get('foveate_requests_total{status="200"}', 0) + 1
    assert after["foveate_batch_size_count"] == before["foveate_batch_size_count"] + 1
    assert after["foveate_time_to_first_token_seconds_count"] > before["foveate_time_to_first_token_seconds_count"]
    assert after["foveate_kv_bytes"] > 0
    assert after["foveate_queue"] == after["foveate_requests_running"] == 0
    assert any(name.startswith("foveate_skipped_total") for name in after)
