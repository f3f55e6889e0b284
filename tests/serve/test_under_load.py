"""Batches under load: each answer is that of its request alone; what is late, gone or broken harms nobody else."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

from foveate.measure.loading import load_model
from foveate.serve.batch import _Steps
from tests.measure.folders import picture, save_llava
from tests.serve.conftest import running, turn, until, uri

SHARES = (0.3, 0.5, 1.0, 0.3)


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A random model whose answers end at their longest only."""
    loaded = load_model(str(save_llava(tmp_path_factory.mktemp("model"))), "cpu")
    loaded.model.generation_config.eos_token_id = 10_000  # no token of the model
    loaded.model.config.text_config.max_position_embeddings = 1_000_000
    return loaded


@pytest.fixture(scope="module", params=["by window", "joined"])
def server(request, endless):
    options = {"keep": 0.3, "least_keep": 0.1, "most_keep": 1.0, "window": 0.05, "max_new_tokens": 1000}
    with running(endless, **options, join=request.param == "joined") as one:
        yield one


def asked(number: int, **more) -> dict:
    """Request `number`: images, words, budget and length of its own."""
    images = [uri(picture(10 * number + at)) for at in range(number % 3)]
    words = " ".join(f"word{(number + at) % 80}" for at in range(1 + number % 5))
    body = {"foveate": {"keep": SHARES[number % 4]}}
    request = {"model": "tiny", "temperature": 0, "max_tokens": 4 + number % 7, "extra_body": body}
    if number % 5 == 4:
        request |= {"temperature": 1.0, "seed": number}
    return {**request, "messages": [turn(words, *images)], **more}


def text(server, request) -> str:
    return server.client().chat.completions.create(**request).choices[0].message.content


def test_each_answer_is_that_of_the_request_alone(server):
    requests = [asked(number) for number in range(16)]
    alone = [text(server, request) for request in requests]
    assert len(set(alone)) > 8
    sizes = batch_sizes(server)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda request: text(server, request), requests))
    assert together == alone
    assert batch_sizes(server)[0] - sizes[0] < 13  # batches for 16 requests: they were not run one by one


def batch_sizes(server) -> tuple[int, int]:
    metric = server.service.metrics.batch
    found = {sample.name: sample.value for sample in metric.collect()[0].samples}
    return int(found["foveate_batch_size_count"]), int(found["foveate_batch_size_sum"])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), ValueError("/secret/path")])
def test_a_batch_that_fails_is_halved_and_no_request_is_lost(server, error, monkeypatch):
    """Where more than two rows do not fit; in the second step, when tokens are out already."""
    requests = [asked(3 * number, stream=True, extra_body={}, temperature=0, max_tokens=6) for number in range(6)]
    alone = [streamed(server, request) for request in requests]
    stop, sizes = _Steps.stop, []

    def narrow(steps):
        found = stop(steps)
        sizes.append(len(found))
        if len(found) > 2 and len(steps.times) == 2:
            raise error
        return found

    monkeypatch.setattr(_Steps, "stop", narrow)
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda request: streamed(server, request), requests))
    assert together == alone
    assert min(sizes) <= 2 < max(sizes)


def test_a_short_answer_does_not_wait_for_a_long_one(endless):
    """Those that come while others decode join them, unless one before them waits for another pruning."""
    with running(endless, keep=0.3, least_keep=0.1, most_keep=1.0, max_new_tokens=4000, join=True) as server:
        short = asked(1, max_tokens=3, extra_body={})
        alone = text(server, short)
        long = raw(server, asked(0, max_tokens=4000, stream=True))
        assert long.recv(100).startswith(b"HTTP/1.1 200")
        assert text(server, short) == alone
        other = threading.Thread(target=text, args=(server, asked(1, max_tokens=3)))  # a budget of its own
        other.start()
        until(lambda: server.service.worker.queue == 1)
        with ThreadPoolExecutor(1) as pool:
            behind = pool.submit(text, server, short)
            until(lambda: server.service.worker.queue == 2)
            assert server.service.running  # the long one
            long.close()
            assert behind.result(30) == alone
        other.join(30)
        assert not other.is_alive()


def streamed(server, request) -> str:
    chunks = server.client().chat.completions.create(**request)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_what_fails_alone_fails_alone(server, monkeypatch, caplog):
    requests = [asked(number, extra_body={}) for number in range(6)]
    alone = [text(server, request) for request in requests]
    requests[3]["messages"] = [turn("word77 word78 word79")]
    batches = server.service.batches
    generate = batches.model.generate
    bad = server.service.prompts.loaded.processor.tokenizer.convert_tokens_to_ids("word78")

    def faulty(*args, input_ids, **kwargs):
        if (input_ids == bad).any():
            raise RuntimeError("word78 of a user in /secret/path")
        return generate(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(batches.model, "generate", faulty)

    def ask(request):
        try:
            return text(server, request)
        except openai.InternalServerError as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(ask, requests))
    failed = together.pop(3)
    assert isinstance(failed, openai.InternalServerError)
    assert failed.body["message"] == "this request could not be answered"
    assert together == alone[:3] + alone[4:]
    assert "RuntimeError" in caplog.text
    assert "word78" not in caplog.text
    assert "/secret" not in caplog.text


def raw(server, request, key: str = "", buffer: int | None = None):
    """A connection on which a request was sent."""
    body = json.dumps({name: value for name, value in request.items() if name != "extra_body"}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n\r\n"
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_slot_at_the_next_step(server, stream):
    steps = []
    metrics, before = server.service.metrics, server.service.metrics.cancelled._value.get()
    measured = server.service.worker.measured
    server.service.worker.measured = lambda what: (steps.append(len(what.steps) + 1), measured(what))
    try:
        connection = raw(server, asked(0, max_tokens=1000, stream=stream))
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        else:
            time.sleep(0.3)
        connection.close()
        until(lambda: steps)
    finally:
        server.service.worker.measured = measured
    assert steps[0] < 1000
    until(lambda: not server.service.running)
    assert metrics.cancelled._value.get() == before + 1


def test_the_queue_is_bounded(endless):
    with running(endless, max_requests=3, max_per_key=2, keys=("one", "two"), max_new_tokens=1000) as server:
        open_ = [raw(server, asked(0, max_tokens=1000), "one") for _ in range(2)]
        until(lambda: sum(server.service.running.values()) == 2)
        with pytest.raises(openai.RateLimitError, match="one client") as error:
            server.client("one").chat.completions.create(**asked(1))
        assert error.value.response.headers["retry-after"] == "1"
        open_.append(raw(server, asked(0, max_tokens=1000), "two"))
        until(lambda: sum(server.service.running.values()) == 3)
        with pytest.raises(openai.RateLimitError, match="too many requests wait"):
            server.client("two").chat.completions.create(**asked(1))
        for connection in open_:
            connection.close()
        until(lambda: not server.service.running)
        assert server.client("two").chat.completions.create(**asked(1, extra_body={})).choices


def test_a_request_has_its_time(endless):
    with running(endless, seconds=0.5, max_new_tokens=100_000) as server:
        with pytest.raises(openai.APIStatusError) as error:
            server.client().chat.completions.create(**asked(0, max_tokens=100_000, extra_body={}))
        assert (error.value.status_code, error.value.body["code"]) == (504, "time_limit")
        chunks = server.client().chat.completions.create(**asked(0, max_tokens=100_000, extra_body={}, stream=True))
        with pytest.raises(openai.APIError, match="time limit"):
            list(chunks)


def test_a_request_that_waits_for_a_long_batch_is_told_in_time(endless):
    with running(endless, seconds=60.0, max_batch=1, max_new_tokens=100_000) as server:
        first = raw(server, asked(0, max_tokens=100_000, stream=True))
        assert first.recv(100).startswith(b"HTTP/1.1 200")
        object.__setattr__(server.service.settings, "seconds", 0.5)
        begin = time.monotonic()
        with pytest.raises(openai.APIStatusError) as error:
            server.client().chat.completions.create(**asked(1, extra_body={}))
        assert error.value.status_code == 504
        assert time.monotonic() - begin < 10
        first.close()


def test_a_reader_that_does_not_read_harms_nobody(endless):
    with running(endless, seconds=5.0, max_new_tokens=1000) as server:
        long = asked(0, max_tokens=400, n=4, stream=True, logprobs=True, top_logprobs=20)  # more than buffers hold
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        slow = raw(server, long, buffer=4096)
        assert text(server, asked(1, extra_body={}))
        until(lambda: not server.service.running, 20)
        assert server.service.metrics.cancelled._value.get() == 1
        slow.close()


def test_shutdown_finishes_what_runs(endless):
    found: list[str] = []
    with running(endless, max_new_tokens=1000) as server:
        request = asked(2, max_tokens=60, extra_body={})
        alone = text(server, request)
        thread = threading.Thread(target=lambda: found.append(text(server, request)))
        thread.start()
        until(lambda: server.service.running)
    thread.join(30)
    assert found == [alone]
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), 1)
