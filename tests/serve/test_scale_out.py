"""Ray Serve on one machine: two replicas share the requests; one that is killed is replaced."""

from __future__ import annotations

import json
import os
import socket
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


@pytest.fixture(scope="module")
def cluster():
    before = dict(os.environ)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


def test_two_replicas_share_and_one_is_replaced(cluster, scenes):
    from ray import serve

    from foveate.serve.scale_out import from_yaml

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(from_yaml({"keep": 0.3, "min_visual": 0, "replicas": [2, 2], "cpus": 0.5}), name="foveate")

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
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))
        assert [text for _, text in together] == [expected[number % 3] for number in range(8)]
        # kill one replica while requests run: each of them gets its answer, or one clean error
        running = [pool.submit(ask, number) for number in range(8)]
        time.sleep(0.5)
        replicas = ray.util.list_named_actors(all_namespaces=True)
        one = next(actor for actor in replicas if "ReplicaActor" in actor["name"] or "foveate#" in actor["name"])
        ray.kill(ray.get_actor(one["name"], namespace=one["namespace"]), no_restart=True)
        found = [each.result() for each in running]
    assert all(status == 500 or text == expected[number % 3] for number, (status, text) in enumerate(found))
    assert sum(status == 200 for status, _ in found) >= 1
    end = time.monotonic() + 300
    while serve.status().applications["foveate"].deployments["foveate"].replica_states.get("RUNNING") != 2:
        assert time.monotonic() < end
        time.sleep(0.5)
    assert [ask(number)[1] for number in range(3)] == expected
