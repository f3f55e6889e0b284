"""The model of lmms-eval: with a stand-in of that package, and with itself where it is installed."""

import importlib
import importlib.util
import json
import subprocess
import sys
import tomllib
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import foveate
from foveate.errors import FoveateError
from foveate.measure.eval.answers import run_batch
from foveate.measure.loading import load_model
from tests.measure.folders import picture, save_llava

THERE = importlib.util.find_spec("lmms_eval") is not None
TEMPLATE = (
    "{% for message in messages %}{{ message.role | upper }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}ASSISTANT:"
)


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


class Part(types.SimpleNamespace):
    """One part of a message."""


@dataclass
class ChatMessages:
    """As lmms-eval's, of plain data."""

    messages: list

    def __post_init__(self):
        parts = [[Part(**part) for part in message["content"]] for message in self.messages]
        self.messages = [
            types.SimpleNamespace(role=message["role"], content=own)
            for message, own in zip(self.messages, parts, strict=True)
        ]

    def extract_media(self):
        parts = [part for message in self.messages for part in message.content]
        return [part.url for part in parts if part.type == "image"], [], []

    def to_hf_messages(self):
        def plain(part):
            return {"type": "text", "text": part.text} if part.type == "text" else {"type": "image", "image": part.url}

        return [{"role": one.role, "content": [plain(part) for part in one.content]} for one in self.messages]


class Lmms:
    """What the class derives from."""

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *_: None)

    def _resolve_system_prompt(self, text):
        return text

    def _apply_system_prompt(self, messages, text):
        return [{"role": "system", "content": [{"type": "text", "text": text}]}, *messages]


@dataclass
class Manifest:
    model_id: str
    chat_class_path: str


@dataclass
class Request:
    args: tuple = field(default_factory=tuple)


@pytest.fixture
def lmms(monkeypatch):
    """The module, and what it logs."""
    logged = []
    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {"GenerationResult": GenerationResult, "TokenCounts": TokenCounts},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.model_utils": {},
        "lmms_eval.models.model_utils.gen_metrics": {"log_metrics": lambda *all: logged.append(all)},
        "lmms_eval.models.registry_v2": {"ModelManifest": Manifest},
        "lmms_eval.protocol": {"ChatMessages": ChatMessages},
        "loguru": {"logger": types.SimpleNamespace(warning=lambda text: logged.append(text))},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "foveate.measure.lmms.model", raising=False)
    yield importlib.import_module("foveate.measure.lmms.model"), logged
    sys.modules.pop("foveate.measure.lmms.model", None)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def templated(tmp_path_factory):
    folder = save_llava(tmp_path_factory.mktemp("templated"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


QUESTIONS = ["what is this ?", "where is this colour ?", "how many red ?", "what is blue ?", "how is this ?"]


def ask(model, settings=None, images=1):
    """Requests as lmms-eval makes them."""
    docs = [{"question": text, "images": [picture(at)] * images} for at, text in enumerate(QUESTIONS)]

    def messages(doc):
        parts = [{"type": "image", "url": image} for image in doc["images"]]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": doc["question"]}]}]

    model.task_dict = {"task": {"test": docs}}
    own = settings or [{"max_new_tokens": 3}] * len(docs)
    return [Request((doc["question"], messages, own[at], at, "task", "test")) for at, doc in enumerate(docs)]


def expected(folder, pruner):
    """The answers of foveate itself, each question alone."""
    loaded = load_model(str(folder), device="cpu")
    return [run_batch(loaded, [text], [[picture(at)]], pruner, 3).texts[0] for at, text in enumerate(QUESTIONS)]


@pytest.mark.parametrize("place", ["plain", "templated"])
@pytest.mark.parametrize("arguments", [{}, {"method": "fastv", "keep": 0.5, "layer": 1}], ids=["dense", "fastv"])
def test_a_batch_answers_as_foveate_does(lmms, request, place, arguments):
    module, logged = lmms
    folder = request.getfixturevalue(place)
    model = module.Foveate(str(folder), batch_size=2, device="cpu", **arguments)
    found = model.generate_until(ask(model))
    pruner = foveate.FastV(keep=0.5, layer=1) if arguments else None
    assert [one.text for one in found] == expected(folder, pruner)
    loaded = load_model(str(folder), device="cpu")
    for at, one in enumerate(found):
        prompt = loaded.process([QUESTIONS[at]], [[picture(at)]])["input_ids"].shape[1]
        assert (one.token_counts.input_tokens, one.token_counts.output_tokens) == (prompt, 3)
    ((seconds, tokens, speed, more),) = logged
    assert tokens == 15
    assert speed == pytest.approx(tokens / seconds)
    assert 0 < more["ttft"] < seconds
    if arguments:
        assert (more["visual_tokens"], more["visual_tokens_kept"]) == (16, 8)
        assert 0 < more["kv_share"] < 1
    else:
        assert set(more) == {"ttft"}


def test_requests_of_other_settings_are_not_mixed_and_keep_their_place(lmms, plain):
    module, _ = lmms
    model = module.Foveate(str(plain), batch_size=4, device="cpu")
    lengths = [1, 3, 2, 3, 1]
    found = model.generate_until(ask(model, [{"max_new_tokens": number} for number in lengths]))
    assert [one.token_counts.output_tokens for one in found] == lengths
    long = expected(plain, None)
    assert all(text.startswith(one.text) for text, one in zip(long, found, strict=True))


def test_an_answer_ends_where_the_task_says(lmms, plain):
    module, _ = lmms
    model = module.Foveate(str(plain), device="cpu")
    (whole, *_) = model.generate_until(ask(model))
    stop = whole.text.split()[1]
    (cut, *_) = model.generate_until(ask(model, [{"max_new_tokens": 3, "until": [stop]}] * 5))
    assert cut.text == whole.text.split(stop)[0]


def test_what_is_not_pruned_is_said(lmms, plain):
    module, logged = lmms
    model = module.Foveate(str(plain), method="fastv", device="cpu")
    model.generate_until(ask(model, images=0))
    assert any("5 requests were NOT PRUNED" in line for line in logged if isinstance(line, str))
    assert logged[-1][3]["not_pruned"] == 5


def test_a_saved_pruner_and_a_count(lmms, plain, tmp_path):
    module, logged = lmms
    foveate.FastV(keep=0.25, layer=1).save_pretrained(tmp_path / "mine")
    for arguments, kept in (({"method": str(tmp_path / "mine")}, 4), ({"method": "fastv", "keep": 6, "layer": 1}, 6)):
        model = module.Foveate(str(plain), device="cpu", **arguments)
        model.generate_until(ask(model))
        assert logged[-1][3]["visual_tokens_kept"] == kept


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "nope"},
        {"method": "fastv", "nope": 1},
        {"method": "fastv", "keep": 0.0},
        {"keep": 0.5},
        {"layer": 2},
    ],
)
def test_what_does_not_exist_is_refused(lmms, plain, wrong):
    with pytest.raises(FoveateError):
        lmms[0].Foveate(str(plain), device="cpu", **wrong)


def test_the_entry_point_names_the_class(lmms):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    module, name = project["project"]["entry-points"]["lmms_eval.models"]["foveate"].split(":")
    (manifest,) = getattr(importlib.import_module(module), name)()
    place, _, name = manifest.chat_class_path.rpartition(".")
    assert getattr(importlib.import_module(place), name) is lmms[0].Foveate
    assert manifest.model_id == "foveate"
    assert lmms[0].Foveate.is_simple is False


UTILS = """
def doc_to_visual(doc): return [doc["image"].convert("RGB")]
def doc_to_text(doc, lmms_eval_specific_kwargs=None): return doc["question"]
def doc_to_messages(doc, lmms_eval_specific_kwargs=None):
    parts = [{"type": "image", "url": doc_to_visual(doc)[0]}, {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": parts}]
"""
TASK = """
task: foveate_words
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_messages: !function utils.doc_to_messages
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 3, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.skipif(not THERE, reason="needs lmms-eval, and foveate installed beside it")
def test_lmms_eval_itself(templated, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"image": picture(at), "question": text, "answer": answer}
        for at, (text, answer) in enumerate(
            zip(QUESTIONS, expected(templated, foveate.FastV(keep=0.5, layer=1)), strict=True)
        )
    ]
    kinds = {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    datasets.Dataset.from_list(rows, features=datasets.Features(kinds)).to_parquet(str(tmp_path / "test.parquet"))
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "utils.py").write_text(UTILS)
    (tmp_path / "task" / "words.yaml").write_text(TASK.format(file=tmp_path / "test.parquet"))
    arguments = f"pretrained={templated},method=fastv,keep=0.5,layer=1"
    command = [
        sys.executable,
        "-m",
        "lmms_eval",
        "--model",
        "foveate",
        "--model_args",
        arguments,
        "--tasks",
        "foveate_words",
    ]
    command += [
        "--include_path",
        "task",
        "--batch_size",
        "2",
        "--device",
        "cpu",
        "--output_path",
        "out",
        "--log_samples",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=280)
    (file,) = (tmp_path / "out").rglob("*results.json")
    result = json.loads(file.read_text())
    assert result["results"]["foveate_words"]["exact_match,none"] == 1.0  # the answers are those of foveate itself
    assert result["throughput"]["avg_ttft"] > 0
    assert result["throughput"]["avg_visual_tokens_kept"] == 8
