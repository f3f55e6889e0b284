"""`foveate eval` on own data: killed and resumed, on two processes, and its memory at two sizes of the data.

Writes questions about rendered scenes as anybody would have them, a JSONL and images beside it, and runs the command
line in processes of its own. *Resumed*: 50 questions, killed (SIGKILL) once half of the answers are on disk, half a
line cut off by hand, and the same command again; its result must be that of a run that nobody killed. *Processes*: the
same by two processes of `accelerate launch`, with one thread each as the run they are compared with; the result must
be the same, to the last digit. *Memory*: the largest resident set of the whole process at each number of questions,
everything else equal, with the small random LLaVA of the tests: what is asked is what grows with the data, which no
model changes. Next words are scored (`--mode score`), which is the mode that holds most in memory.

    python benchmarks/own_data.py --out benchmarks/results/own_data.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from foveate.measure import environment
from foveate.measure.eval.evaluate import JOURNAL, RESULT
from foveate.measure.eval.suites import load_suite

QUESTIONS, IMAGES = 50, 50
ARMS = ["--methods", "fastv", "--keep", "0.22", "--device", "cpu"]
METRICS = ["--metric", "exact,f1,kl"]
LAUNCH = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m"]
ROOT = Path(__file__).resolve().parent.parent


def write_data(folder: Path) -> list[dict[str, Any]]:
    """Rows with a path, a question, an answer and a task."""
    rows = []
    for example in load_suite("scenes", IMAGES, seed=5):
        example.image.save(folder / f"{example.index}.png")
        row = {"image": f"{example.index}.png", "question": example.question, "answer": example.answer}
        rows.append({**row, "task": example.task})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def start(data: Path, out: Path, *more: str, launch: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """The command line in a process of its own, or in several by a launcher."""
    words = [sys.executable, "-m", *launch, "foveate", "eval", "--data", str(data), "--out", str(out), *ARMS, *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> resource.struct_rusage:
    """What a process used, once it is over."""
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{process.args} ended with {status}")
    return used


def answered(out: Path) -> int:
    """Answers on disk."""
    path = out / JOURNAL
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def figures(out: Path) -> dict[str, Any]:
    """A result without the time at which it was made, the command, and how many processes there were."""
    result = json.loads((out / RESULT).read_text())
    result["machine"].pop("processes")
    return {key: value for key, value in result.items() if key not in ("created", "command")}


def killed_and_resumed(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Kill a run in the middle, go on, and compare with a run that was left alone."""
    data = write_jsonl(folder / "own.jsonl", rows[:QUESTIONS])
    before = time.perf_counter()
    finish(start(data, folder / "whole", *METRICS))
    whole = time.perf_counter() - before
    total = answered(folder / "whole")
    process = start(data, folder / "parts", *METRICS)
    while answered(folder / "parts") < total / 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = answered(folder / "parts")
    journal = folder / "parts" / JOURNAL
    os.truncate(journal, journal.stat().st_size - 20)
    before = time.perf_counter()
    finish(start(data, folder / "parts", *METRICS))
    found = {
        "questions": QUESTIONS,
        "answers": total,
        "answers_when_killed": kept,
        "seconds_whole": round(whole, 1),
        "seconds_resumed": round(time.perf_counter() - before, 1),
        "same_result": figures(folder / "whole") == figures(folder / "parts"),
    }
    if not found["same_result"]:
        raise SystemExit(f"the resumed run gave another result: {found}")
    return found


def two_processes(folder: Path) -> dict[str, Any]:
    """The run that nobody killed once more, by two processes."""
    before = time.perf_counter()
    finish(start(folder / "own.jsonl", folder / "two", *METRICS, launch=LAUNCH))
    second = (folder / "two" / JOURNAL).with_name("answers-1.jsonl")
    found = {
        "questions": QUESTIONS,
        "answers_of_the_second": second.read_bytes().count(b"\n") - 1,
        "seconds": round(time.perf_counter() - before, 1),
        "same_result": figures(folder / "whole") == figures(folder / "two"),
    }
    if not found["same_result"]:
        raise SystemExit(f"two processes gave another result: {found}")
    return found


def memory(folder: Path, rows: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """Largest resident set of an evaluation of so many questions."""
    many = [rows[at % len(rows)] for at in range(number)]
    data = write_jsonl(folder / f"{number}.jsonl", many)
    out = folder / str(number)
    words = ["--mode", "score", "--batch-size", "32", "--max-new-tokens", "2", "--model", str(folder / "model")]
    used = finish(start(data, out, *words))
    size = sum(path.stat().st_size for path in (data, out / JOURNAL))
    return {
        "questions": number,
        "peak_mib": round(used.ru_maxrss / 1024, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime),
        "data_and_answers_mib": round(size / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--memory", default="500,5000", help="Numbers of questions.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = write_data(folder)
        sys.path.insert(0, str(ROOT))
        from tests.measure.folders import save_llava

        (folder / "model").mkdir()
        save_llava(folder / "model")
        result = {
            "format": "foveate-own-data-1",
            "command": environment.command(),
            "machine": environment.machine(torch.device("cpu")),
            "versions": environment.versions(),
            "resumed": killed_and_resumed(folder, rows),
            "two_processes": two_processes(folder),
            "memory": [memory(folder, rows, int(number)) for number in options.memory.split(",")],
        }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("resumed", "two_processes", "memory")}, indent=2))


if __name__ == "__main__":
    main()
