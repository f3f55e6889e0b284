"""A server on a free port, with the embedded model or a random one, and the official client."""

from __future__ import annotations

import base64
import contextlib
import copy
import dataclasses
import io
import socket
import threading
import time

import pytest
from PIL import Image

from foveate.measure.loading import load_model

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

import uvicorn  # noqa: E402

from foveate import tiny  # noqa: E402
from foveate.serve.app import build_app  # noqa: E402
from foveate.serve.service import Service  # noqa: E402
from foveate.serve.settings import Settings  # noqa: E402


class Running:
    """A server in a thread of this process."""

    def __init__(self, service: Service, listening: socket.socket) -> None:
        self.service, self.socket, self.port = service, listening, listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.clients: dict[str, openai.OpenAI] = {}

    def client(self, key: str = "none") -> openai.OpenAI:
        if key not in self.clients:
            self.clients[key] = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)
        return self.clients[key]


@contextlib.contextmanager
def running(loaded, **options):
    # a model of its own: a pruner is attached to it at any time
    loaded = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model))
    settings = Settings(**{"served_name": "tiny", "min_visual": 0, "seconds": 60.0, **options})
    service = Service(loaded, settings)
    server = uvicorn.Server(uvicorn.Config(build_app(service), log_level="warning", access_log=False))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Running(service, listening)
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def loaded():
    return load_model("tiny", "cpu")


@pytest.fixture(scope="session")
def server(loaded):
    with running(loaded, keep=0.3, least_keep=0.1, most_keep=1.0, other_methods=("random",), window=0.02) as one:
        yield one


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture(scope="session")
def scenes():
    """(data URI, question) of scenes that the model was not trained on."""
    return [(uri(Image.fromarray(scene.image)), question.text) for scene, question in tiny.held_out(12)]


def uri(image: Image.Image, kind: str = "PNG", **options) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return data_uri(file.getvalue(), kind.lower())


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def turn(text: str, *images: str, role: str = "user") -> dict:
    if not images:
        return {"role": role, "content": text}
    parts = [{"type": "image_url", "image_url": {"url": one}} for one in images]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
