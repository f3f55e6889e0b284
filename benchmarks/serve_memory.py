"""Does the server's memory grow? Resident bytes after each block of requests, when all that is free was given back.

Clients ask the embedded model in a server of this process: questions with budgets of their own, streamed or not, and
broken images. After each block nothing runs; then the garbage is collected and the C library returns its free pages.

    python benchmarks/serve_memory.py --blocks 8 --seconds 30

Writes benchmarks/results/serve_memory.json. Linux with glibc only.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import datetime
import gc
import http.client
import io
import json
import random
import socket
import statistics
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import uvicorn
from PIL import Image

from foveate import tiny
from foveate.measure import environment
from foveate.measure.loading import load_model
from foveate.serve.app import build_app
from foveate.serve.service import Service
from foveate.serve.settings import Settings

OUT = Path(__file__).parent / "results" / "serve_memory.json"
CLIENTS, QUESTIONS, SHARES, FIRST = 8, 32, (0.22, 0.5, 1.0), 2  # blocks before the memory is looked at


def bodies() -> list[bytes]:
    found = []
    for scene, question in tiny.held_out(QUESTIONS):
        file = io.BytesIO()
        Image.fromarray(scene.image).save(file, "PNG")
        for broken in (False, False, False, True):
            data = file.getvalue()[:400] if broken else file.getvalue()
            url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.text}]
            asked = {"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": parts}]}
            asked |= {"stream": len(found) % 3 == 0, "foveate": {"keep": SHARES[len(found) % 3]}}
            found.append(json.dumps(asked).encode())
    return found


def ask(port: int, body: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status not in (200, 400):
        raise SystemExit(f"status {answer.status}")


def block(port: int, asked: list[bytes], seconds: float) -> int:
    end = time.monotonic() + seconds

    def client(seed: int) -> int:
        rng, number = random.Random(seed), 0
        while time.monotonic() < end:
            ask(port, rng.choice(asked))
            number += 1
        return number

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(client, range(CLIENTS)))


def memory() -> dict[str, float]:
    """MiB: resident, and of Python's own objects."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    resident = int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024
    return {"resident": resident, "python": tracemalloc.get_traced_memory()[0] / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each block")
    parser.add_argument("--join", action="store_true", help="requests join a batch that is decoding")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    limits: dict[str, Any] = {"least_keep": 0.1, "most_keep": 1.0, "min_visual": 0, "join": args.join}
    service = Service(load_model("tiny", "cpu"), Settings(served_name="tiny", keep=0.22, **limits))
    server = uvicorn.Server(uvicorn.Config(build_app(service), log_level="error", access_log=False))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    asked, total = bodies(), 0
    tracemalloc.start()
    series: list[dict[str, float]] = []
    for _ in range(args.blocks):
        total += block(listening.getsockname()[1], asked, args.seconds)
        series.append({"requests": total, **memory()})
        print(series[-1], flush=True)
    server.should_exit = True
    thread.join(60)
    late = series[FIRST:]
    slopes = {
        kind: statistics.linear_regression([one["requests"] for one in late], [one[kind] for one in late]).slope * 1000
        for kind in ("resident", "python")
    }
    result = {
        "format": "foveate-serve-memory-1",
        "command": environment.command(),
        "date": datetime.date.today().isoformat(),
        "machine": environment.machine(torch.device("cpu")),
        "versions": environment.versions(),
        "mib_per_thousand_requests": slopes,
        "blocks": series,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(slopes)


if __name__ == "__main__":
    main()
