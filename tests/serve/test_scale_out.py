"""Ray Serve on two simulated nodes: a second replica starts as requests wait; one that is killed is replaced."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.serve.conftest import turn

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray's own
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster():
    """Two nodes, each with room for one replica."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    nodes = Cluster()
    try:
        _add_node(nodes, include_dashboard=False)
        _add_node(nodes)
        ray.init(address=nodes.address, log_to_driver=False)
        nodes.wait_for_nodes(120)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()
        os.environ.clear()
        os.environ.update(before)


def _add_node(nodes, **options) -> None:
    """Add a node; Ray gives one 30 seconds to start, which a busy machine may miss."""
    for attempt in range(4):
        try:
            nodes.add_node(num_cpus=1, **options)
            return
        except Exception as error:  # Ray has no class for it
            if "timed out during startup" not in str(error) or attempt == 3:
                raise


class Load:
    """Clients that ask without a pause."""

    def __init__(self, ask, clients: int) -> None:
        self.ask, self.clients, self.found, self.stop = ask, clients, [], threading.Event()

    def __enter__(self):
        self.pool = ThreadPoolExecutor(self.clients)
        for number in range(self.clients):
            self.pool.submit(self._client, number)
        return self

    def __exit__(self, *error) -> None:
        self.stop.set()
        self.pool.shutdown()

    def _client(self, number: int) -> None:
        while not self.stop.is_set():
            self.found.append((number, *self.ask(number)))


def replicas() -> dict[str, str]:
    """The node of each replica that runs, by the name of its actor."""
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()
    found = details["applications"]["foveate"]["deployments"]["foveate"]["replicas"]
    return {one["actor_name"]: one["node_id"] for one in found if one["state"] == "RUNNING"}


def wait_for(number: int, besides: str = "") -> dict[str, str]:
    end = time.monotonic() + 400
    while len(found := {name: node for name, node in replicas().items() if name != besides}) != number:
        assert time.monotonic() < end, f"{len(found)} replicas run"
        time.sleep(0.5)
    return found


def test_a_replica_starts_as_requests_wait_and_another_is_replaced(cluster, scenes):
    from ray import serve

    from foveate.serve.scale_out import from_yaml

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    described = {"keep": 0.3, "min_visual": 0, "max_batch": 2, "replicas": [1, 2], "cpus": 1}
    serve.run(from_yaml(described), name="foveate")

    def ask(number: int) -> tuple[int, str]:
        image, question = scenes[number % 3]
        body = {"model": "tiny", "temperature": 0, "messages": [turn(question, image)]}
        request = Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        try:
            with urlopen(request, timeout=300) as answer:
                found = json.loads(answer.read())
                return answer.status, found["choices"][0]["message"]["content"]
        except HTTPError as error:
            return error.code, error.read().decode()[:100]

    expected = [ask(number)[1] for number in range(3)]
    assert len(wait_for(1)) == 1
    begin = time.monotonic()
    with Load(ask, 8) as load:  # four times what a replica is to have at once
        both = wait_for(2)
        started = time.monotonic() - begin
        assert len(set(both.values())) == 2, "both replicas are on one node"
        # kill one under load: each request gets its answer, or one clean error
        killed = next(iter(both))
        ray.kill(ray.get_actor(killed, namespace="serve"), no_restart=True)
        begin = time.monotonic()
        again = wait_for(2, besides=killed)
        replaced = time.monotonic() - begin
        assert set(again) - set(both)
        assert len(set(again.values())) == 2
    failed = [text for _, status, text in load.found if status != 200]
    assert all(status in (200, 500) for _, status, _ in load.found)
    assert all(text == expected[number % 3] for number, status, text in load.found if status == 200)
    assert len(failed) < len(load.found) / 2
    assert [ask(number)[1] for number in range(3)] == expected
    print(
        f"{len(load.found)} requests, {len(failed)} failed; second replica after {started:.0f} s, "
        f"replaced after {replaced:.0f} s"
    )
