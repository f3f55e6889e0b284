"""What is in deploy/ names options, settings, paths and counters that there are."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.test_figures import cannot_run

pytest.importorskip("prometheus_client")

from foveate.serve.metrics import Metrics
from foveate.serve.pruning import pruners
from foveate.serve.settings import Settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def counters() -> set[str]:
    metrics = Metrics(lambda: 0, lambda: 0)
    for counter in (metrics.requests, metrics.skipped, metrics.failures):
        counter.labels("x")
    return {sample.name for family in metrics.registry.collect() for sample in family.samples}


@pytest.mark.parametrize("name", ["grafana/foveate.json", "../docs/serve.md"])
def test_counters_are_those_of_the_server(name):
    there = counters()
    named = set(re.findall(r"foveate_\w+", read(name))) - {"foveate_bench"}
    assert len(named) > 8
    unknown = {one for one in named if one not in there and not any(each.startswith(f"{one}_") for each in there)}
    assert not unknown


def test_the_dashboard_is_whole():
    board = json.loads(read("grafana/foveate.json"))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    sources = yaml.safe_load(read("grafana/sources.yml"))["datasources"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {one["uid"] for one in sources}


def test_commands_run():
    unit = re.search(r"^ExecStart=/opt/foveate/bin/(.*)$", read("foveate.service"), re.MULTILINE)
    assert cannot_run(unit[1]) is None
    composed = yaml.safe_load(read("compose.yaml"))
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", read("Dockerfile"), re.MULTILINE)[1])
    words = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in composed["services"]["foveate"]["command"]]
    assert cannot_run(shlex.join([*entry, *words])) is None
    for service in composed["services"].values():
        for volume in service.get("volumes", []):
            assert not volume.startswith("./") or (DEPLOY / volume.split(":")[0]).is_file()


def test_the_container_has_what_it_copies():
    for line in re.findall(r"^COPY (.*) \S+$", read("Dockerfile"), re.MULTILINE):
        assert all((DEPLOY.parent / name).exists() for name in line.split())
    pinned = re.search(r"torch==([\d.]+)", read("Dockerfile"))[1]
    assert f"\ntorch=={pinned}\n" in (DEPLOY.parent / "constraints.txt").read_text()


def test_the_settings_for_ray():
    (application,) = yaml.safe_load(read("ray.yaml"))["applications"]
    given = {
        name: value for name, value in application["args"].items() if name not in ("model", "replicas", "gpus", "cpus")
    }
    assert pruners(Settings(served_name="x", **given))
    module, _, name = application["import_path"].partition(":")
    assert name in (DEPLOY.parent / "src" / f"{module.replace('.', '/')}.py").read_text()
