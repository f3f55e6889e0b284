"""A server of the embedded model under load: each request gets its own answer; requests/s dense beside pruned.

64 clients mix questions (greedy, with a budget of their own; streamed or not) with clients that go away, broken
images, slow readers and over-long prompts. What each question must be answered is asked one by one before. Then
questions alone, by 1 to 32 clients at once, dense and pruned in turn.

    python benchmarks/serve_load.py --seconds 300

Writes benchmarks/results/serve_load.json and serve_load.md. Linux only: memory is read in /proc.
"""

from __future__ import annotations

import argparse
import base64
import collections
import datetime
import http.client
import io
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from foveate import tiny
from foveate.measure import environment

RESULTS = Path(__file__).parent / "results"
CLIENTS, QUESTIONS, AT_ONCE = 64, 48, (1, 2, 4, 8, 16, 32)
KEEP, SHARES = 0.22, (0.22, 0.5, 1.0)
LIMITS = {"--max-requests": 48, "--max-batch": 16, "--max-prompt": 2000, "--seconds": 60}
SLOW = 0.05  # seconds between two reads of a slow reader


class Server:
    """`foveate serve` in a process of its own."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        limits = [str(word) for pair in LIMITS.items() for word in pair]
        command = [sys.executable, "-m", "foveate", "serve", "tiny", "--keep", str(KEEP), "--keep-range", "0.1,1.0"]
        command += ["--min-visual", "0", "--port", str(self.port), *limits]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 180
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit("the server did not start")
            time.sleep(0.5)

    def ready(self) -> bool:
        try:
            return self.get("/ready")[0] == 200
        except OSError:
            return False

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        found = answer.status, answer.read().decode()
        connection.close()
        return found

    def gauge(self, name: str) -> float:
        return next(
            float(line.split()[1]) for line in self.get("/metrics")[1].splitlines() if line.startswith(f"{name} ")
        )

    def memory(self) -> float:
        """Resident MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(90)


def body(question: dict[str, Any], share: float, **more: Any) -> bytes:
    parts = [
        {"type": "image_url", "image_url": {"url": question["image"]}},
        {"type": "text", "text": question["text"]},
    ]
    asked = {"model": "tiny", "temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": parts}]}
    return json.dumps({**asked, "foveate": {"keep": share}, **more}).encode()


def post(server: Server, data: bytes, slow: bool = False) -> tuple[int, Any]:
    """Status and answer: the text of a good one (of a stream, its pieces together), the code of an error."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    streams = "event-stream" in (answer.getheader("Content-Type") or "")
    if slow:
        pieces = []
        while piece := answer.read(64):
            pieces.append(piece)
            time.sleep(SLOW)
        found = b"".join(pieces)
    else:
        found = answer.read()
    connection.close()
    if streams:
        events = [json.loads(line[6:]) for line in found.decode().split("\n\n") if line.startswith("data: {")]
        return answer.status, "".join(
            one["choices"][0]["delta"].get("content") or "" for one in events if one["choices"]
        )
    read = json.loads(found)
    return answer.status, read["choices"][0]["message"]["content"] if answer.status == 200 else read["error"]["code"]


def leave(server: Server, data: bytes, after: float) -> None:
    """Ask, and go away."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
        time.sleep(after)


def questions() -> list[dict[str, Any]]:
    found = []
    for scene, question in tiny.held_out(QUESTIONS):
        file = io.BytesIO()
        Image.fromarray(scene.image).save(file, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        found.append({"image": uri, "text": question.text})
    return found


def mixed(server: Server, asked: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """All kinds of clients at once."""
    expected = {(at, share): post(server, body(one, share)) for at, one in enumerate(asked) for share in SHARES}
    if any(status != 200 for status, _ in expected.values()):
        raise SystemExit("a question alone was not answered")
    counts: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    lock, begin = threading.Lock(), time.monotonic()
    end = begin + seconds

    def until_answered(data: bytes, slow: bool = False) -> tuple[int, Any]:
        while True:
            found = post(server, data, slow)
            if found[0] != 429:
                return found
            with lock:
                counts["429, asked again"] += 1
            time.sleep(1)

    def client(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < end:
            at, share = rng.randrange(len(asked)), rng.choice(SHARES)
            kind = rng.choices(KINDS, (10, 4, 2, 2, 1, 1))[0]
            should: tuple[int, Any] = expected[at, share]
            found: tuple[int, Any] | None = None
            try:
                if kind == "disconnect":
                    leave(server, body(asked[at], share, stream=rng.random() < 0.5), rng.random() * 0.3)
                elif kind == "broken image":
                    data = base64.b64encode(rng.randbytes(400)).decode()
                    one = {**asked[at], "image": f"data:image/png;base64,{data}"}
                    found, should = until_answered(body(one, share)), (400, "invalid_image")
                elif kind == "over-long prompt":
                    one = {**asked[at], "text": "red " * 3000}
                    found, should = until_answered(body(one, share)), (400, "context_length_exceeded")
                else:
                    found = until_answered(body(asked[at], share, stream=kind != "question"), kind == "slow reader")
            except (OSError, http.client.HTTPException, ValueError) as error:
                found, should = (0, type(error).__name__), (200, "an answer")
            with lock:
                counts[kind] += 1
                if found is not None and found != should:
                    wrong.append(f"{kind}: {found} in place of {should}")

    series, queues = [], []

    def watch() -> None:
        while time.monotonic() < end:
            series.append((time.monotonic() - begin, server.memory()))
            queues.append(server.gauge("foveate_queue"))
            time.sleep(min(2.0, seconds / 20))

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        watching = pool.submit(watch)
        for done in [pool.submit(client, number) for number in range(CLIENTS)]:
            done.result()
        watching.result()
    time.sleep(2)
    late = [point for point in series if point[0] > seconds / 3]
    slope = statistics.linear_regression([at for at, _ in late], [size for _, size in late]).slope * 60
    return {
        "clients": CLIENTS,
        "seconds": round(time.monotonic() - begin, 1),
        "requests": dict(counts),
        "wrong": wrong[:20],
        "wrong_number": len(wrong),
        "memory_mib": [round(series[0][1], 1), round(late[0][1], 1), round(series[-1][1], 1)],
        "memory_slope_mib_per_minute": round(slope, 2),
        "longest_queue": max(queues),
        "left_running": server.gauge("foveate_requests_running"),
    }


KINDS = ("question", "streamed", "slow reader", "disconnect", "broken image", "over-long prompt")


def speed(server: Server, asked: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """Questions alone, dense and pruned in turn."""
    rows = []
    for clients in AT_ONCE:
        times: dict[float, list[float]] = {KEEP: [], 1.0: []}
        spent = dict.fromkeys(times, 0.0)
        for turn in range(4):
            share = (1.0, KEEP)[turn % 2]
            begin = time.monotonic()
            end = begin + seconds

            def client(number: int, share: float = share, end: float = end) -> list[float]:
                took, at = [], number
                while time.monotonic() < end:
                    start = time.monotonic()
                    post(server, body(asked[at % len(asked)], share))
                    took.append(time.monotonic() - start)
                    at += 7
                return took

            with ThreadPoolExecutor(clients) as pool:
                for took in pool.map(client, range(clients)):
                    times[share] += took
            spent[share] += time.monotonic() - begin
        row: dict[str, Any] = {"clients": clients}
        for name, share in (("dense", 1.0), ("pruned", KEEP)):
            sliced = statistics.quantiles(times[share], n=20)
            row[name] = {"requests_per_s": len(times[share]) / spent[share], "p50_s": sliced[9], "p95_s": sliced[18]}
        row["ratio"] = row["pruned"]["requests_per_s"] / row["dense"]["requests_per_s"]
        rows.append(row)
    return rows


def table(result: dict[str, Any]) -> str:
    load, machine = result["load"], result["machine"]
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(load["requests"].items()))
    sizes = ", ".join(f"{size:.0f}" for size in load["memory_mib"])
    threads = f"{machine.get('cpu')}, {machine.get('threads')} thread(s)"
    lines = [
        "# The server under load",
        "",
        f"`python benchmarks/serve_load.py`, {result['date']}, {threads}; "
        "the embedded model, on a machine that other work used at the same time.",
        "",
        f"{load['clients']} clients for {load['seconds']:.0f} s. Requests by kind: {kinds}.",
        "",
        f"* Answers that were not the request's own: {load['wrong_number']}.",
        f"* Longest queue: {load['longest_queue']:.0f}; requests left at the end: {load['left_running']:.0f}.",
        f"* Memory of the server at the start, after a third of the time and at the end: {sizes} MiB; slope over the "
        f"last two thirds: {load['memory_slope_mib_per_minute']:+.1f} MiB a minute.",
        "",
        f"| clients | dense, requests/s | p50, s | p95, s | keep {KEEP}, requests/s | p50, s | p95, s | ratio |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["speed"]:
        cells = [f"{row[arm][key]:.2f}" for arm in ("dense", "pruned") for key in ("requests_per_s", "p50_s", "p95_s")]
        lines.append(f"| {row['clients']} | {' | '.join(cells)} | {row['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="of the mixed load")
    parser.add_argument("--speed-seconds", type=float, default=10.0, help="of each block of the comparison")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_load.json")
    args = parser.parse_args()
    asked, server = questions(), Server()
    try:
        load = mixed(server, asked, args.seconds)
        print(json.dumps(load, indent=1))
        found = speed(server, asked, args.speed_seconds)
    finally:
        code = server.stop()
    result = {
        "format": "foveate-serve-load-1",
        "command": environment.command(),
        "date": datetime.date.today().isoformat(),
        "machine": environment.machine(torch.device("cpu")),
        "versions": environment.versions(),
        "limits": LIMITS,
        "load": load,
        "speed": found,
        "exit_code": code,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    args.out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
