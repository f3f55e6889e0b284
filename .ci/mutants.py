"""Small faults put into engine, select and pruners one at a time: do the tests see them? Started by hand, not in CI.

    pip install -c constraints.txt cosmic-ray
    python .ci/mutants.py --sample 200 --log mutants.jsonl

cosmic-ray says what can be changed and changes it: an operator, a comparison, a number, `and`, a branch of a loop. Its
own runner starts Python for every change, and importing torch takes longer than most tests here; this one works on a
copy of the repository, loads torch once and forks. A place is drawn with equal chance, then one change to it. Each
change meets the tests that TESTS names for its module, in that order, up to the first that fails; a time limit counts
as seen. Type annotations are left out, as nothing runs them.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")

import cosmic_ray.plugins
import hypothesis.strategies
import pytest
import torch
import transformers
from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]
SOURCE = "src/foveate"
FOLDERS = ("engine", "select", "pruners")
# of tests that run on every family, these: plain images, rotary positions of several axes, windows and two-way images,
# layers that read the keys of others and go on with the last tokens only
FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "gemma4_e2b")
MEMORY = 12 * 2**30  # bytes that a change may take

# The tests of a module, most telling first; the first pattern that fits counts. "engine/x" is tests/engine/test_x.py.
LAWS = tuple(
    f"tests/laws/test_laws.py::test_laws[{case}]"
    for case in (
        "llava-sdpa-ragged-fastv",
        "llava-sdpa-ragged-ladder from 0 compacted",
        "llava-eager-ragged-merging",
        "qwen2_5_vl-sdpa-video-glimpseprune two tokens",
        "gemma3-sdpa-ragged-ladder",
        "llava-sdpa-ragged with text only-btp from 0 to nothing",
    )
)
RUNS = (
    "engine/keys engine/report_view engine/removal engine/scoring engine/merging engine/text_rows engine/names "
    "engine/min_visual engine/paused engine/answers engine/arguments engine/fast_path engine/stopwatches"
)
METHODS = {  # by the file with their tests
    "merging_methods": "apet pool tome uniform",
    "encoder_methods": "encoder fastervlm hiprune holov visionzip vispruner",
    "video_methods": "evs vidcom2",
    **{name: name for name in ("anchorprune", "cdpruner", "chain", "dart", "scope", "sparsevlm", "v2drop", "vtw")},
}
TESTS = {
    "engine/vision_features.py": "engine/vision_attention engine/vision engine/vision_calls",
    "engine/layout.py": "engine/report_view families/families families/grids",
    "engine/flops.py": "pruners/btp engine/report_view",
    "engine/attention_rows.py": f"{RUNS} | engine/attention engine/fused_rows engine/vision_attention | laws",
    "engine/tap_hooks.py": f"{RUNS} | engine/attention engine/fused_rows engine/vision_attention | laws",
    "engine/cache*.py": f"{RUNS} | engine/refused_caches engine/chunked engine/sliding engine/static | laws",
    "engine/compat.py": f"{RUNS} | engine/refused_caches engine/continuous engine/flash | laws",
    "engine/layer_inputs.py": f"{RUNS} | laws | engine/states engine/chunked engine/sliding",
    "engine/masks.py": f"{RUNS} | laws | engine/states engine/chunked engine/sliding",
    "engine/shared_kv.py": f"{RUNS} | laws | engine/states engine/chunked engine/sliding",
    "engine/report*.py": f"{RUNS} | engine/stopwatches engine/chunked engine/continuous",
    "engine/*": f"{RUNS} | engine/chunked engine/extra_tokens engine/holding engine/states faults/threads | laws",
    "select/top_k.py": "select/top_k select/rebalance select/errors",
    "select/spatial.py": "select/spatial select/errors",
    "select/nms.py": "select/suppression select/errors",
    "select/dpp.py": "select/dpp select/errors",
    "select/diversity.py": "select/diversity select/errors | pruners/choice",
    "select/*": "select/errors select/top_k select/rebalance select/suppression select/diversity select/dpp",
    "pruners/btp/*": "pruners/btp pruners/options | pruners/choice",
    "pruners/glimpseprune/*": "pruners/glimpseprune pruners/glimpse_modules pruners/glimpse_authors | pruners/choice",
    "pruners/spec.py": "pruners/spec | pruners/choice",
    **{
        f"pruners/{name}.py": f"pruners/{tests} pruners/options | pruners/choice"
        for tests, names in METHODS.items()
        for name in names.split()
    },
    "pruners/*": "pruners/options pruners/btp pruners/pyramiddrop engine/merging engine/min_visual | pruners/choice",
}


@dataclass(frozen=True)
class Change:
    """One change: the `occurrence`-th that an operator of cosmic-ray can make in a file."""

    path: str
    line: int
    operator: str
    occurrence: int


def changes(path: Path) -> Iterator[tuple[tuple[int, ...], Change]]:
    """Every change to a file, with its place."""
    source = path.read_text(encoding="utf-8")
    spans = annotations(source)
    operators = {}
    for name in cosmic_ray.plugins.operator_names():
        if not name.endswith(("NoOp", "VariableReplacer", "VariableInserter")):
            operators[name] = cosmic_ray.plugins.get_operator(name)()
    seen: Counter[str] = Counter()
    for node in nodes(get_ast(source)):
        for name, operator in operators.items():
            for begin, end in operator.mutation_positions(node):
                number, seen[name] = seen[name], seen[name] + 1
                if not any(first <= begin and end <= last for first, last in spans):
                    yield (*begin, *end), Change(str(path.relative_to(ROOT)), begin[0], name, number)


def nodes(tree: Any) -> Iterator[Any]:
    """In the order in which cosmic-ray counts them."""
    yield tree
    for child in getattr(tree, "children", ()):
        yield from nodes(child)


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Begin and end of every type annotation."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            one = getattr(node, name, None)
            if one is not None:
                found.append(((one.lineno, one.col_offset), (one.end_lineno, one.end_col_offset)))
    return found


def draw(number: int, seed: int, only: str) -> list[Change]:
    """A sample over the folders, each by its share of the places that can be changed."""
    places: dict[str, dict[tuple, list[Change]]] = {folder: {} for folder in FOLDERS}
    for folder in FOLDERS:
        for path in sorted((ROOT / SOURCE / folder).rglob("*.py")):
            if only in str(path.relative_to(ROOT)):
                for place, change in changes(path):
                    places[folder].setdefault((change.path, place), []).append(change)
    every = sum(map(len, places.values()))
    chance, drawn = random.Random(seed), []
    for folder in FOLDERS:
        wanted = min(round(number * len(places[folder]) / every), len(places[folder]))
        print(f"{folder}: {wanted} of {len(places[folder])} places", flush=True)
        for place in chance.sample(sorted(places[folder]), wanted):
            drawn.append(chance.choice(places[folder][place]))
    chance.shuffle(drawn)  # so that a run that is cut short is a smaller sample
    return drawn


def tests_of(path: str) -> list[tuple[str, ...]]:
    """The tests that a module's changes meet, fork by fork: pytest collects all of a fork before it runs any."""
    local = str(Path(path).relative_to(SOURCE))
    names = next(tests for pattern, tests in TESTS.items() if fnmatch(local, pattern))
    return [LAWS if one.strip() == "laws" else tuple(map(file_of, one.split())) for one in names.split("|")]


def file_of(name: str) -> str:
    room, file = name.split("/")
    return f"tests/{room}/test_{file}.py"


class Few:
    """Leaves out the other families, and the search for smaller examples of what fails."""

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile("mutants", hypothesis.settings.default, phases=phases)
        hypothesis.settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        def wanted(item: pytest.Item) -> bool:
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            return parameters.get("family", FAMILIES[0]) in FAMILIES

        items[:] = [item for item in items if wanted(item)]


def run(copy: Path, tests: tuple[str, ...], limit: float, said: Path) -> tuple[str, float]:
    """ "passed", "failed" or "too long", and seconds, of tests in a fork of this process."""
    begin = time.monotonic()
    child = os.fork()
    if not child:
        code = 70
        try:
            os.setpgid(0, 0)  # no session of its own, which Linux would schedule as if it were not nice
            out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.chdir(copy)
            os.environ["PYTHONPATH"] = f"{copy / 'src'}:{copy}"
            sys.path[:0] = [str(copy / "src"), str(copy)]
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
            code = int(pytest.main([*options, *tests], plugins=[Few()]))
            import foveate

            if not str(foveate.__file__).startswith(str(copy)):
                code = 71  # another foveate than the copy was tested
        finally:
            os._exit(code)
    while time.monotonic() - begin < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code in (5, 71):
                raise RuntimeError(f"no test was run on the copy: {said.read_text()[-2000:]}")
            return ("passed" if code == 0 else "failed"), time.monotonic() - begin
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "too long", limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200, help="changes in all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="part of the path of the modules to change")
    parser.add_argument("--log", type=Path, default=Path("mutants.jsonl"), help="one line of JSON a change")
    parser.add_argument("--again", type=Path, help="the changes that this log calls unseen, instead of a draw")
    given = parser.parse_args()

    torch.set_num_threads(1)
    for name in ("Llava", "Qwen2_5_VL", "Gemma3", "LlavaNext", "Qwen3VL"):  # what the tests would load each time
        getattr(transformers, f"{name}ForConditionalGeneration")
    if given.again:
        logged = map(json.loads, given.again.read_text(encoding="utf-8").splitlines())
        drawn = [Change(**one["change"]) for one in logged if one["outcome"] == "unseen"]
    else:
        drawn = draw(given.sample, given.seed, given.only)
    with tempfile.TemporaryDirectory() as folder:
        copy, said = Path(folder) / "copy", Path(folder) / "said"
        ignored = shutil.ignore_patterns(".git", "__pycache__", ".venv", ".hypothesis", "*.jsonl")
        shutil.copytree(ROOT, copy, ignore=ignored)
        usual: dict[tuple[str, ...], float] = {}
        outcomes: Counter[tuple[str, str]] = Counter()
        with given.log.open("w", encoding="utf-8") as log:
            for change in drawn:
                outcomes[folder_of(change), one(change, copy, usual, said, log)] += 1
    for folder in FOLDERS:
        seen, unseen = outcomes[folder, "seen"], outcomes[folder, "unseen"]
        if seen + unseen:
            print(f"{folder}: {seen} of {seen + unseen} seen, {seen / (seen + unseen):.1%}")
    seen = sum(number for (_, outcome), number in outcomes.items() if outcome == "seen")
    print(f"in all: {seen} of {outcomes.total()} seen, {seen / outcomes.total():.1%}")


def one(change: Change, copy: Path, usual: dict[tuple[str, ...], float], said: Path, log: Any) -> str:
    """Make one change in the copy, run its tests, undo it; "seen" or "unseen".

    `usual`: seconds that the tests take without a change.
    """
    local = Path(change.path)
    source = (ROOT / local).read_text(encoding="utf-8")
    changed = mutate_code(source, cosmic_ray.plugins.get_operator(change.operator)(), change.occurrence)
    before, after = difference(source, changed)
    write(copy / local, changed)
    how, seconds = "passed", 0.0
    for tests in tests_of(change.path):
        if tests not in usual:
            write(copy / local, source)
            how, usual[tests] = run(copy, tests, 600, said)
            if how != "passed":
                raise SystemExit(f"without a change, {' '.join(tests)}: {how}\n{said.read_text()}")
            print(f"   {usual[tests]:.0f} s: {' '.join(tests)}", flush=True)
            write(copy / local, changed)
        how, more = run(copy, tests, 30 + 4 * usual[tests], said)
        seconds += more
        if how != "passed":
            break
    write(copy / local, source)
    outcome = "unseen" if how == "passed" else "seen"
    by = next(
        (line for line in said.read_text(errors="replace").splitlines() if line.startswith(("FAILED", "ERROR"))), ""
    )
    written = {"change": asdict(change), "outcome": outcome, "how": how, "seconds": round(seconds, 1), "by": by}
    log.write(json.dumps(written | {"before": before, "after": after}) + "\n")
    log.flush()
    if outcome == "unseen":
        print(f"UNSEEN {local}:{change.line}\n  - {before}\n  + {after}", flush=True)
    return outcome


def write(path: Path, source: str) -> None:
    """Text and no bytecode, which Python would take for a file of the same size and second."""
    path.write_text(source, encoding="utf-8")
    for old in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        old.unlink()


def difference(source: str, changed: str) -> tuple[str, str]:
    """The first line that differs, before and after."""
    pairs = zip(source.splitlines(), changed.splitlines(), strict=False)
    return next(((old.strip(), new.strip()) for old, new in pairs if old != new), ("", ""))


def folder_of(change: Change) -> str:
    return Path(change.path).relative_to(SOURCE).parts[0]


if __name__ == "__main__":
    main()
