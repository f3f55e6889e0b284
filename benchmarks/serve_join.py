"""What waiting for a running batch costs, and what joining it gives: short answers beside long ones, and throughput.

Three ways to batch, in turn, block by block: batches by arrival window; requests that join what runs (`--join`); two
workers, each with a copy of the model and batches by window. The embedded model, made to answer at the length that is
asked for. First two clients ask for long answers without a pause, and two for short ones with a pause after each: how
long do the short ones take? Then eight clients without a pause, of mixed lengths: how many tokens a second? Every
answer is held against the one that its request got alone.

    python benchmarks/serve_join.py --rounds 3 --seconds 20

Writes benchmarks/results/serve_join.json and serve_join.md.
"""

from __future__ import annotations

import argparse
import base64
import copy
import dataclasses
import datetime
import io
import json
import queue
import random
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from foveate import tiny
from foveate.measure import environment
from foveate.measure.loading import LoadedModel, load_model
from foveate.serve.jobs import Done, Job
from foveate.serve.sampling import Sampling
from foveate.serve.schema import ChatRequest
from foveate.serve.service import Service
from foveate.serve.settings import Settings

RESULTS = Path(__file__).parent / "results"
KEEP, QUESTIONS, SHORT, LONG, MIXED = 0.22, 8, 4, 96, (4, 8, 16, 32)
LONG_CLIENTS, SHORT_CLIENTS, BUSY_CLIENTS, PAUSE = 2, 2, 8, 0.2  # seconds after a short answer
LENGTHS = {"short": (SHORT,), "long": (LONG,), "mixed": MIXED}
ARMS = {"window": {}, "join": {"join": True}, "two workers": {}}


class Server:
    """One or more services; a request goes to the one with the fewest that wait or run."""

    def __init__(self, loaded: LoadedModel, number: int, **options: Any) -> None:
        settings = Settings(served_name="tiny", keep=KEEP, min_visual=0, max_batch=8, **options)
        copies = [dataclasses.replace(loaded, model=copy.deepcopy(loaded.model)) for _ in range(number)]
        self.services = [Service(one, settings) for one in copies]
        self.busy = [0] * number
        self.lock = threading.Lock()
        self.prompts = [[one.prompts.read(ask) for ask in questions()] for one in self.services]

    def ask(self, number: int, length: int) -> tuple[float, list[int]]:
        """Seconds, and the tokens of the answer."""
        with self.lock:
            at = self.busy.index(min(self.busy))
            self.busy[at] += 1
        got: queue.Queue[Any] = queue.Queue()
        service, begin = self.services[at], time.monotonic()
        pruner = service.choices.choose(None, 1)
        prompt = self.prompts[at][number]
        job = Job(prompt, pruner, Sampling(0.0), (), length, None, False, begin + 600, got.put)
        service.worker.submit(job)
        done = got.get()
        with self.lock:
            self.busy[at] -= 1
        if not isinstance(done, Done) or done.tokens != length:
            raise SystemExit(f"a request was not answered: {done}")
        return time.monotonic() - begin, job.tokens

    def close(self) -> None:
        for service in self.services:
            service.close(60)


def questions() -> list[ChatRequest]:
    found = []
    for scene, question in tiny.held_out(QUESTIONS):
        file = io.BytesIO()
        Image.fromarray(scene.image).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.text}]
        found.append(ChatRequest(model="tiny", messages=[{"role": "user", "content": parts}]))
    return found


class Clients:
    """Ask, time, and compare."""

    def __init__(self, server: Server, expected: dict[int, list[int]], seconds: float) -> None:
        self.server, self.expected, self.end = server, expected, time.monotonic() + seconds
        self.times: dict[str, list[float]] = {"short": [], "long": [], "mixed": []}
        self.tokens, self.other, self.lock = 0, 0, threading.Lock()

    def one(self, kind: str, number: int, length: int) -> None:
        took, tokens = self.server.ask(number, length)
        with self.lock:
            self.times[kind].append(took)
            self.tokens += length
            self.other += tokens != self.expected[number][:length]

    def ask_on(self, kind: str, seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < self.end:
            self.one(kind, rng.randrange(QUESTIONS), rng.choice(LENGTHS[kind]))
            time.sleep(rng.random() * 2 * PAUSE if kind == "short" else 0)


def run(clients: Clients, **numbers: int) -> None:
    """So many clients of each kind."""
    with ThreadPoolExecutor(16) as pool:
        kinds = [kind for kind, number in numbers.items() for _ in range(number)]
        for done in [pool.submit(clients.ask_on, kind, seed) for seed, kind in enumerate(kinds)]:
            done.result()


def measure(server: Server, expected: dict[int, list[int]], seconds: float) -> dict[str, Any]:
    clients = Clients(server, expected, seconds)
    run(clients, long=LONG_CLIENTS, short=SHORT_CLIENTS)
    both = Clients(server, expected, seconds)
    begin = time.monotonic()
    run(both, mixed=BUSY_CLIENTS)
    return {
        "short": clients.times["short"],
        "long": clients.times["long"],
        "mixed": both.times["mixed"],
        "tokens_per_s": both.tokens / (time.monotonic() - begin),
        "other_answers": clients.other + both.other,
    }


def summary(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in ("short", "long", "mixed"):
        times = [took for block in blocks for took in block[kind]]
        sliced = statistics.quantiles(times, n=20)
        found[kind] = {
            "number": len(times),
            "mean_s": statistics.fmean(times),
            "p50_s": sliced[9],
            "p95_s": sliced[18],
        }
    found["tokens_per_s"] = statistics.fmean(block["tokens_per_s"] for block in blocks)
    found["other_answers"] = sum(block["other_answers"] for block in blocks)
    return found


def table(result: dict[str, Any]) -> str:
    machine, arms = result["machine"], result["arms"]
    lines = [
        "# Joining a batch that runs",
        "",
        f"`{result['command']}`, {result['date']}, {machine.get('cpu')}, {machine.get('threads')} thread(s) of torch; "
        "the embedded model on a machine that other work used at the same time: read the ratios.",
        "",
        f"Short answers have {SHORT} tokens, long ones {LONG}; the last column is of {BUSY_CLIENTS} clients without a "
        f"pause, of answers of {', '.join(map(str, MIXED))} tokens. Answers that differed from those alone: "
        f"{sum(one['other_answers'] for one in arms.values())} of "
        f"{sum(one[kind]['number'] for one in arms.values() for kind in ('short', 'long', 'mixed'))}.",
        "",
        "| batches | short beside long: mean, s | p50, s | p95, s | long: mean, s | tokens/s | against window |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in arms.items():
        short = " | ".join(f"{one['short'][key]:.3f}" for key in ("mean_s", "p50_s", "p95_s"))
        ratio = one["tokens_per_s"] / arms["window"]["tokens_per_s"]
        lines.append(f"| {name} | {short} | {one['long']['mean_s']:.2f} | {one['tokens_per_s']:.0f} | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each block")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_join.json")
    args = parser.parse_args()
    loaded = load_model("tiny", "cpu")
    loaded.model.generation_config.eos_token_id = loaded.model.config.text_config.vocab_size  # no token: see above
    servers = {name: Server(loaded, 1 + (name == "two workers"), **options) for name, options in ARMS.items()}
    expected = {number: servers["window"].ask(number, LONG)[1] for number in range(QUESTIONS)}
    blocks: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for turn in range(args.rounds):
        for name in list(ARMS)[turn % len(ARMS) :] + list(ARMS)[: turn % len(ARMS)]:
            blocks[name].append(measure(servers[name], expected, args.seconds))
            print(turn, name, json.dumps(summary(blocks[name][-1:])), flush=True)
    for server in servers.values():
        server.close()
    result = {
        "format": "foveate-serve-join-1",
        "command": environment.command(),
        "date": datetime.date.today().isoformat(),
        "machine": environment.machine(torch.device("cpu")),
        "versions": environment.versions(),
        "lengths": {"short": SHORT, "long": LONG, "mixed": MIXED},
        "arms": {name: summary(each) for name, each in blocks.items()},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    args.out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
