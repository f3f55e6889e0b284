"""Small faults put into engine, select and pruners one at a time: do the tests see them? Started by hand, not in CI.

    pip install -c constraints.txt cosmic-ray
    python .ci/mutants.py --sample 200 --log mutants.jsonl --out mutants.json

cosmic-ray says what can be changed and changes it: an operator, a comparison, a number, `and`, a branch of a loop. Its
own runner starts Python for every change, and importing torch takes longer than most tests here; this one works on a
copy of the repository, loads torch once and forks. A place is drawn with equal chance, then one change to it. Each
change meets the tests that TESTS names for its module, then those of ALL, up to the first that fails or takes too
long, which is counted in processor time. At the end the tests that failed run without any change: they must pass.

No place is what nothing runs or tells apart: type annotations, f-strings and `.format` in a `raise`, `==` for `is`
with None, the decorator of a cache, a number of AT_A_TIME. A drawn change that EQUIVALENT holds is not run and counts
neither as seen nor as unseen.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import importlib.metadata
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import FrameType
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
LIMIT = 40  # seconds of the processor that one test may take
TOO_LONG = 72  # exit status
EQUIVALENT = Path(__file__).with_name("equivalent.json")  # path, line before and after, and why nothing differs
ANY = "…"  # in EQUIVALENT, as the line after: whatever becomes of it

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
CACHES = "engine/refused_caches engine/chunked engine/sliding engine/static faults/refusals"
METHODS = {  # by the file with their tests, where these say what is chosen
    "merging_methods": "apet pool tome uniform",
    "encoder_methods": "encoder fastervlm hiprune holov visionzip vispruner",
    "video_methods": "evs vidcom2",
}
OWN = (  # those with such a file of their own
    "agilepruner anchorprune cdpruner chain dart greedyprune ivcprune mmtok prunesid scope sparsevlm v2drop vlmpruner "
    "vtw"
)
TESTS = {
    "engine/vision_features.py": "engine/vision_attention engine/vision engine/vision_calls",
    "engine/prompt.py": f"engine/prompt {RUNS} engine/static | engine/chunked engine/extra_tokens | laws",
    "engine/layout.py": "engine/layout engine/report_view families/families families/grids",
    "engine/flops.py": "engine/layout pruners/btp engine/report_view",
    "engine/attention_rows.py": f"{RUNS} | engine/attention engine/fused_rows engine/vision_attention | laws",
    "engine/tap_hooks.py": f"{RUNS} | engine/attention engine/fused_rows engine/vision_attention | laws",
    "engine/cache_rows.py": "engine/cache_layers serve/joining engine/cache",
    "engine/cache*.py": f"engine/cache engine/cache_layers {RUNS} | {CACHES} | laws",
    "engine/compat.py": f"engine/checkpoints {RUNS} | engine/refused_caches engine/continuous engine/flash | laws",
    "engine/layer_hooks.py": f"{RUNS} | engine/chunked engine/continuous engine/extra_tokens engine/states | laws",
    "engine/forward_pass.py": f"engine/layer_inputs {RUNS} | engine/chunked engine/extra_tokens engine/states | laws",
    "engine/arguments.py": f"engine/layer_inputs engine/arguments {RUNS} | laws",
    "engine/layer_inputs.py": f"engine/layer_inputs {RUNS} | laws | engine/states engine/chunked engine/sliding",
    "engine/masks.py": f"engine/masks {RUNS} | laws | engine/states engine/chunked engine/sliding",
    "engine/shared_kv.py": f"engine/layout {RUNS} | laws | engine/states engine/chunked engine/sliding",
    "engine/report*.py": f"engine/summary {RUNS} faults/errors | engine/stopwatches engine/chunked engine/continuous",
    "engine/*": f"{RUNS} | engine/chunked engine/extra_tokens engine/holding engine/states faults/threads | laws",
    "select/top_k.py": "select/top_k select/rebalance select/errors",
    "select/spatial.py": "select/spatial select/errors",
    "select/nms.py": "select/suppression select/errors",
    "select/dpp.py": "select/dpp select/errors",
    "select/diversity.py": "select/diversity select/errors | pruners/choice",
    "select/checks.py": "select/errors select/top_k select/suppression select/diversity select/dpp",
    "select/likest.py": "select/likest | pruners/merging_methods pruners/vlmpruner",
    "select/density.py": "pruners/sparsevlm",
    "select/*": "select/diversity select/dpp select/suppression select/errors",
    "pruners/btp/*": "pruners/btp pruners/options | pruners/choice",
    "pruners/glimpseprune/*": "pruners/glimpseprune pruners/glimpse_modules pruners/glimpse_authors | pruners/choice",
    "pruners/by_image.py": "families/grids engine/vision engine/merging engine/keys pruners/choice",
    "pruners/spec.py": "pruners/spec | pruners/choice",
    **{
        f"pruners/{name}.py": f"pruners/{tests} pruners/options"
        for tests, names in METHODS.items()
        for name in names.split()
    },
    **{f"pruners/{name}.py": f"pruners/{name} pruners/options" for name in OWN.split()},
    "pruners/*": "pruners/options pruners/base pruners/not_given pruners/btp pruners/pyramiddrop engine/merging "
    "engine/min_visual | pruners/choice",
}
ALL = {  # what the others have not seen meets the tests of whole rooms
    "engine": ("tests/engine",),
    "select": ("tests/select", "tests/pruners"),
    "pruners": ("tests/pruners",),
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
    spans = untold(source, path.stem, at_a_time())
    operators = {}
    for name in cosmic_ray.plugins.operator_names():
        if not name.endswith(("NoOp", "VariableReplacer", "VariableInserter")):
            operators[name] = cosmic_ray.plugins.get_operator(name)()
    seen: Counter[str] = Counter()
    for node in nodes(get_ast(source)):
        for name, operator in operators.items():
            for begin, end in operator.mutation_positions(node):
                number, seen[name] = seen[name], seen[name] + 1
                nothing = name.endswith(("Is_Eq", "IsNot_NotEq")) and is_none(node)
                if not nothing and not any(first <= begin and end <= last for first, last in spans):
                    yield (*begin, *end), Change(str(path.relative_to(ROOT)), begin[0], name, number)


def nodes(tree: Any) -> Iterator[Any]:
    """In the order in which cosmic-ray counts them."""
    yield tree
    for child in getattr(tree, "children", ()):
        yield from nodes(child)


def is_none(node: Any) -> bool:
    """Whether an `is` is one with None, with which no tensor is equal."""
    return node.parent is not None and node.parent.children[-1].get_code().strip() == "None"


@functools.cache
def at_a_time() -> frozenset[str]:
    """The constants that say how much is worked on at once, as the tests name them."""
    for node in ast.parse((ROOT / "tests/test_declared.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "AT_A_TIME":
            return frozenset(ast.literal_eval(node.value))
    raise LookupError("tests/test_declared.py has no AT_A_TIME")


def untold(source: str, module: str, at_a_time: frozenset[str]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Begin and end of what the module's docstring says is no place."""
    found: list[Any] = []
    for node in ast.walk(ast.parse(source)):
        found += [getattr(node, name, None) for name in ("annotation", "returns")]
        if isinstance(node, ast.Raise):
            found += [inner for inner in ast.walk(node) if isinstance(inner, ast.JoinedStr) or is_format(inner)]
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = {one.id for one in node.targets if isinstance(one, ast.Name)}
            found += [node.value] if at_a_time & (names | {f"{module}.{name}" for name in names}) else []
        if isinstance(node, ast.FunctionDef):
            found += [one for one in node.decorator_list if "cache" in ast.unparse(one)]
    return [((one.lineno, one.col_offset), (one.end_lineno, one.end_col_offset)) for one in found if one is not None]


def is_format(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format"


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


def tests_of(path: str, quick: bool) -> list[tuple[str, ...]]:
    """The tests that a module's changes meet, fork by fork: pytest collects all of a fork before it runs any."""
    local = str(Path(path).relative_to(SOURCE))
    names = next(tests for pattern, tests in TESTS.items() if fnmatch(local, pattern))
    groups = [LAWS if one.strip() == "laws" else tuple(map(file_of, one.split())) for one in names.split("|")]
    return [("tests/test_declared.py", *groups[0]), *groups[1:], *([] if quick else [ALL[local.partition("/")[0]]])]


def file_of(name: str) -> str:
    room, file = name.split("/")
    return f"tests/{room}/test_{file}.py"


class Few:
    """Leaves out the other families, and the search for smaller examples of what fails; ends a test that goes on."""

    def __init__(self, failed: Path) -> None:
        self.failed, self.running, self.late = failed, "", False

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile("mutants", hypothesis.settings.default, phases=phases)
        hypothesis.settings.load_profile("mutants")
        signal.signal(signal.SIGPROF, self.end)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        def wanted(item: pytest.Item) -> bool:
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            return parameters.get("family", FAMILIES[0]) in FAMILIES

        items[:] = [item for item in items if wanted(item)]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.running = nodeid
        signal.setitimer(signal.ITIMER_PROF, LIMIT)

    def pytest_runtest_logfinish(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.write_text(report.nodeid)
            self.late = "Failed: Timeout" in report.longreprtext  # of pytest-timeout: one that waits

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.write_text(report.nodeid)

    def end(self, number: int, frame: FrameType | None) -> None:
        self.failed.write_text(self.running)
        os._exit(TOO_LONG)


def run(copy: Path, tests: Sequence[str], said: Path, *options: str) -> tuple[str, str]:
    """ "passed", "failed" or "too long", and the test that did not pass, of tests in a fork of this process."""
    failed = said.with_name("failed")
    failed.write_text("")
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
            fixed = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
            few = Few(failed)
            code = int(pytest.main([*fixed, *options, *tests], plugins=[few]))
            if few.late:
                code = TOO_LONG
            if "--collect-only" in options:
                others = [name for name in sys.modules if not name.startswith(("foveate", "tests", "conftest"))]
                said.write_text("\n".join(others))
            import foveate

            if not str(foveate.__file__).startswith(str(copy)):
                code = 71  # another foveate than the copy was tested
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (5, 71):
        raise RuntimeError(f"no test was run on the copy: {said.read_text()[-2000:]}")
    return {0: "passed", TOO_LONG: "too long"}.get(code, "failed"), failed.read_text()


def load_ahead(copy: Path, said: Path) -> None:
    """What most tests import, but for foveate: a fork finds it loaded."""
    run(
        copy, [*map(file_of, ("engine/keys", "engine/vision", "pruners/choice", "select/dpp"))], said, "--collect-only"
    )
    for name in said.read_text().splitlines():
        with contextlib.suppress(ImportError, AttributeError):  # of parts that cannot be imported by themselves
            importlib.import_module(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200, help="changes in all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="part of the path of the modules to change")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after these no change is begun")
    parser.add_argument("--quick", action="store_true", help="without the tests of ALL: what TESTS may lack")
    parser.add_argument("--log", type=Path, default=Path("mutants.jsonl"), help="one line of JSON a change")
    parser.add_argument("--again", type=Path, help="the changes that this log calls unseen, instead of a draw")
    parser.add_argument("--sum", type=Path, help="runs nothing: the result of what this log has, of one run or more")
    parser.add_argument("--out", type=Path, help="the result, in JSON")
    given = parser.parse_args()

    end = time.monotonic() + 60 * given.minutes
    torch.set_num_threads(1)
    for name in ("Llava", "Qwen2_5_VL", "Gemma3", "LlavaNext", "Qwen3VL"):  # what the tests would load each time
        getattr(transformers, f"{name}ForConditionalGeneration")
    equivalent = {
        (one["path"], one["before"], one["after"]): one["why"] for one in json.loads(EQUIVALENT.read_text("utf-8"))
    }
    if given.sum:
        logged = map(json.loads, given.sum.read_text(encoding="utf-8").splitlines())
        tell([known_now(one, equivalent) for one in logged], given)
        return
    if given.again:
        logged = map(json.loads, given.again.read_text(encoding="utf-8").splitlines())
        drawn = [Change(**one["change"]) for one in logged if one["outcome"] == "unseen"]
    else:
        drawn = draw(given.sample, given.seed, given.only)
    done = []
    with tempfile.TemporaryDirectory() as folder:
        copy, said = Path(folder) / "copy", Path(folder) / "said"
        ignored = shutil.ignore_patterns(".git", "__pycache__", ".venv", ".hypothesis", "*.jsonl")
        shutil.copytree(ROOT, copy, ignore=ignored)
        load_ahead(copy, said)
        with given.log.open("w", encoding="utf-8") as log:
            for change in drawn:
                if time.monotonic() > end:
                    break
                done.append(one(change, copy, said, equivalent, given.quick))
                log.write(json.dumps(done[-1]) + "\n")
                log.flush()
        killers = sorted({one["by"] for one in done if one["outcome"] == "seen"})
        for options, tests in (((), [by for by in killers if "::" in by]), (("--collect-only",), killers)):
            if tests and run(copy, [*tests], said, *options)[0] != "passed":
                raise SystemExit(f"without a change, one of the tests that failed does, too:\n{said.read_text()}")
    tell(done, given)


def known_now(done: dict[str, Any], equivalent: dict[tuple[str, str, str], str]) -> dict[str, Any]:
    """A line of a log; as equivalent, if it is known by now that nothing differs."""
    place = done["change"]["path"], done["before"]
    why = equivalent.get((*place, done["after"])) or equivalent.get((*place, ANY))
    if done["outcome"] != "unseen" or not why:
        return done
    return {name: done[name] for name in ("change", "before", "after")} | {"outcome": "equivalent", "why": why}


def tell(done: list[dict[str, Any]], given: argparse.Namespace) -> None:
    result = told(done, given)
    print(json.dumps(result["share"], indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def one(
    change: Change, copy: Path, said: Path, equivalent: dict[tuple[str, str, str], str], quick: bool
) -> dict[str, Any]:
    """Make one change in the copy, run its tests, undo it; what came of it, in words for the log."""
    local = Path(change.path)
    source = (ROOT / local).read_text(encoding="utf-8")
    changed = mutate_code(source, cosmic_ray.plugins.get_operator(change.operator)(), change.occurrence)
    before, after = difference(source, changed)
    told = {"change": asdict(change), "before": before, "after": after}
    if why := equivalent.get((change.path, before, after)) or equivalent.get((change.path, before, ANY)):
        return told | {"outcome": "equivalent", "why": why}
    begin, how, by = time.monotonic(), "passed", ""
    write(copy / local, changed)
    for tests in tests_of(change.path, quick):
        how, by = run(copy, tests, said)
        if how != "passed":
            break
    write(copy / local, source)
    outcome, seconds = "unseen" if how == "passed" else "seen", round(time.monotonic() - begin)
    print(f"{outcome} {seconds} s {local}:{change.line}\n  - {before}\n  + {after}\n  {by}", flush=True)
    return told | {"outcome": outcome, "how": how, "seconds": seconds, "by": by}


def told(done: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    """The result of a run, with what repeats it."""
    sys.path.insert(0, str(ROOT / "src"))
    from foveate.measure import environment

    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    kept = {
        outcome: [
            {name: one[name] for name in ("before", "after", "why") if name in one} | {"path": where(one)}
            for one in done
            if one["outcome"] == outcome
        ]
        for outcome in ("unseen", "equivalent")
    }
    return {
        "command": environment.command(),
        "commit": git.stdout.strip(),
        "code": environment.code_fingerprint(),
        "versions": environment.versions() | {"cosmic-ray": importlib.metadata.version("cosmic-ray")},
        **({} if given.sum else {"seed": given.seed, "drawn": given.sample}),
        "run": len(done),
        "share": {folder: share(done, folder) for folder in (*FOLDERS, "")},
        **kept,
    }


def where(one: dict[str, Any]) -> str:
    return f"{one['change']['path']}:{one['change']['line']}"


def share(done: list[dict[str, Any]], folder: str) -> dict[str, Any]:
    """Changes seen by a test that failed or took too long, and the share of those seen with Wilson's 95 % interval."""
    told = [one for one in done if one["change"]["path"].startswith(f"{SOURCE}/{folder}")]
    count = Counter(one.get("how", "equivalent") for one in told)
    seen, number = count["failed"] + count["too long"], len(told) - count["equivalent"]
    if not number:
        return {"changes": 0}
    z, p = 1.959964, seen / number
    middle, half = p + z * z / (2 * number), z * math.sqrt(p * (1 - p) / number + (z / (2 * number)) ** 2)
    scale = 1 + z * z / number
    return {
        "changes": number,
        "failed": count["failed"],
        "too long": count["too long"],
        "unseen": count["passed"],
        "equivalent, not run": count["equivalent"],
        "seen": round(p, 4),
        "interval": [round((middle - half) / scale, 4), round((middle + half) / scale, 4)],
    }


def write(path: Path, source: str) -> None:
    """Text and no bytecode, which Python would take for a file of the same size and second."""
    path.write_text(source, encoding="utf-8")
    for old in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        old.unlink()


def difference(source: str, changed: str) -> tuple[str, str]:
    """The first line that differs, before and after."""
    pairs = zip(source.splitlines(), changed.splitlines(), strict=False)
    return next(((old.strip(), new.strip()) for old, new in pairs if old != new), ("", ""))


if __name__ == "__main__":
    main()
