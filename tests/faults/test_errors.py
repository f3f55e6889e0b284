"""Every error that a public docstring promises is raised; every public object compares, prints, copies or refuses."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

import foveate
from foveate import BTP, BTPStage, FastV, GlimpsePrune, GreedyPrune, PyramidDrop
from foveate.engine import attach
from foveate.engine.attach import Handle
from foveate.errors import (
    AlreadyAttachedError,
    BudgetError,
    FoveateError,
    IncompatibleWeightsError,
    ModelNotReachable,
    UnknownMethodError,
    UnsupportedModelError,
)
from foveate.families import family_of
from foveate.measure.stage_errors import Only
from foveate.pruners import METHODS
from foveate.testing import check_laws
from tests.laws.methods import glimpse
from tests.models.build import build, inputs

DEPTH_12 = LlamaConfig(num_hidden_layers=12)


def saved(folder: Path, text: str) -> Path:
    (folder / "config.json").write_text(text)
    return folder


def attach_twice() -> None:
    with attach(build("llava"), FastV()):
        attach(build("llava"), FastV())


def damaged(folder: Path) -> None:
    GlimpsePrune(weights=glimpse()).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"no such thing")
    foveate.load(folder)


def other_method(folder: Path) -> None:
    FastV().save_pretrained(folder)
    BTP.from_pretrained(folder)


def wrong_option(method: str, option: str, value: float, folder: Path) -> None:
    getattr(foveate, method)(**{option: value})


SELECT = "tests/select/test_errors.py"
# (what promises it, the error) -> what raises it, given an empty folder; or the test that does
RAISED = {
    ("attach", "UnsupportedModelError"): lambda folder: attach(torch.nn.Linear(1, 1), FastV()),
    ("attach", "AlreadyAttachedError"): lambda folder: attach_twice(),
    ("attach", "BudgetError"): lambda folder: attach(build("llava"), FastV(layer=40)),
    ("Handle.detach", "ModelInUseError"): "tests/faults/test_threads.py::test_detaching_while_another_thread_runs",
    ("make", "UnknownMethodError"): lambda folder: foveate.make("nosuch"),
    ("make", "BudgetError"): lambda folder: foveate.make("fastv", keep=2.0),
    ("load", "ModelNotReachable"): lambda folder: foveate.load("nosuch"),
    ("load", "BudgetError"): lambda folder: foveate.load(saved(folder, "[]")),
    ("load", "IncompatibleWeightsError"): damaged,
    ("load", "UnknownMethodError"): lambda folder: foveate.load(saved(folder, '{"method": "nosuch", "options": {}}')),
    ("load_processor", "ModelNotReachable"): lambda folder: foveate.load_processor("nosuch"),
    ("load_processor", "ImportError"): "tests/families/test_processing.py::test_",
    ("family_of", "UnsupportedModelError"): lambda folder: family_of(torch.nn.Linear(1, 1)),
    ("check_laws", "FoveateError"): lambda folder: check_laws(
        build("llava"), inputs("llava", "one image"), FastV(layer=40)
    ),
    ("GreedyPrune", "BudgetError"): lambda folder: GreedyPrune(objective="threshold", floor=0.5),
    ("SingleStagePruner", "BudgetError"): lambda folder: FastV(per="nosuch"),
    ("Pruner.with_mean", "BudgetError"): lambda folder: FastV(layer=6).with_mean(0.2, DEPTH_12),
    ("Pruner.from_pretrained", "BudgetError"): other_method,
    ("Pruner.from_authors", "IncompatibleWeightsError"): "tests/pruners/test_glimpse_authors.py::test_",
    ("Pruner.scaled", "BudgetError"): lambda folder: FastV(keep=49).scaled(0.5, DEPTH_12),
    ("Pruner.set_to", "BudgetError"): lambda folder: Only(method=FastV()).set_to(0.5, DEPTH_12),
    ("Chain", "BudgetError"): lambda folder: foveate.Chain(FastV(), foveate.GreedyPrune()),
    ("Chain.resolved", "BudgetError"): lambda folder: foveate.Chain(FastV(layer=40)).resolved(DEPTH_12),
    ("BTP", "BudgetError"): lambda folder: BTP(stages=5),
    ("BTP.resolved", "BudgetError"): lambda folder: BTP(depth=28, stages=[(3, 0.5)]).resolved(DEPTH_12),
    ("BTP.schedule", "BudgetError"): lambda folder: BTP(stages=[(30, 0.5)]).schedule(12),
    ("GlimpsePrune", "BudgetError"): lambda folder: GlimpsePrune(threshold=1.0),
    ("GlimpsePrune", "IncompatibleWeightsError"): lambda folder: attach(
        build("llava"), GlimpsePrune(weights=glimpse(hidden_size=32))
    ),
    ("OCVTP", "IncompatibleWeightsError"): "tests/pruners/test_ocvtp.py::test_",
    ("GlimpsePrune.logits", "IncompatibleWeightsError"): "tests/pruners/test_glimpse_modules.py::test_",
    ("PyramidDrop", "BudgetError"): lambda folder: PyramidDrop(keep=3),
    ("SparseVLM.stages", "BudgetError"): lambda folder: foveate.SparseVLM(keep=0.01).stages(12),
    ("V2Drop.schedule", "BudgetError"): lambda folder: foveate.V2Drop(keep=0.01).schedule(12),
    **{
        (method, "BudgetError"): partial(wrong_option, method, option, value)
        for method, option, value in (
            ("AgilePruner", "average", 0.0),
            ("AnchorPrune", "novelty", 3.0),
            ("ApET", "basis", 0),
            ("CDPruner", "theta", 1.0),
            ("DART", "visual_pivots", 0),
            ("EVS", "keep", 64),
            ("HiPrune", "alpha", 1.5),
            ("HoloV", "parts", 0),
            ("IVCPrune", "coordinates", 0.6),
            ("MMTok", "alpha", -1.0),
            ("OCVTP", "block", 0.5),
            ("PruneSID", "group", 0),
            ("SCOPE", "alpha", -1.0),
            ("SparseVLM", "heads", 0),
            ("V2Drop", "keep", 64),
            ("VLMPruner", "pivots", 0),
            ("VTW", "layer", -1),
            ("VidCom2", "keep", 64),
            ("VisPruner", "important", 1.5),
            ("VisionZip", "contextual", 1.0),
        )
    },
    **{
        (f"select.{name}", error): f"{SELECT}::test_"
        for name in foveate.select.__all__
        for error in ("TypeError", "ValueError")
    },
}


def promises() -> set[tuple[str, str]]:
    """(name, error) of what the docstrings of all public objects say under "Raises"."""
    public = {name: getattr(foveate, name) for name in foveate.__all__}
    public |= {"Handle": Handle, "family_of": family_of, "check_laws": check_laws}
    public |= {one.__name__: one for one in (foveate.pruners.Pruner, foveate.pruners.SingleStagePruner)}
    public |= {f"select.{name}": getattr(foveate.select, name) for name in foveate.select.__all__}
    for name, one in list(public.items()):
        if inspect.isclass(one):
            public |= {f"{name}.{part}": value for part, value in vars(one).items() if not part.startswith("_")}
    found = set()
    for name, one in public.items():
        one = getattr(one, "__func__", one)
        doc = (one.__doc__ or "") if inspect.isroutine(one) or inspect.isclass(one) else ""
        section = re.search(r"Raises\n-+\n(.*?)(\n\n[A-Z]\w+\n-|\Z)", inspect.cleandoc(doc), re.DOTALL)
        for line in re.findall(r"^(\w[\w, ]*)$", section.group(1), re.MULTILINE) if section else ():
            found |= {(name, error) for error in line.split(", ")}
    return found


def test_every_promise_is_known():
    missing = promises() - set(RAISED)
    assert not missing
    assert len(promises()) > 25


@pytest.mark.parametrize("promise", sorted(RAISED), ids=" ".join)
def test_every_promise_is_kept(promise, tmp_path):
    raises = RAISED[promise]
    if isinstance(raises, str):
        file, _, name = raises.partition("::")
        text = (Path(__file__).parents[2] / file).read_text()
        assert f"def {name}" in text
        assert promise[1] in text
        return
    error = getattr(foveate.errors, promise[1])
    with pytest.raises(error) as caught:
        raises(tmp_path)
    assert isinstance(caught.value, FoveateError)
    assert str(caught.value)
    assert "\n" not in str(caught.value).strip()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))


# -- the examples that were found


def test_weights_of_a_deeper_model():
    deeper = GlimpsePrune(weights=glimpse(depth=32, layer=22))
    with pytest.raises(IncompatibleWeightsError, match="before layer 22 of 32, the model has 6 layers"):
        attach(build("llava"), deeper)
    with pytest.raises(BudgetError, match="1 to 5"):  # the user's own layer
        attach(build("llava"), GlimpsePrune(layer=22))


def test_what_to_do_about_a_name_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(ModelNotReachable, match=r"check the name .*'me/my-btp'.*foveate\.make"):
        foveate.load("nosuch")
    with pytest.raises(ModelNotReachable):
        foveate.load("a/b/c")
    # the Hub is not asked for a local name, which takes half a minute where it cannot be reached
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **kwargs: pytest.fail("the Hub was asked"))
    (tmp_path / "mine" / "saved").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("n" * 300, "", "nosuch\x00", "mine", "mine/saved", str(tmp_path / "mine")):
        with pytest.raises(ModelNotReachable):
            foveate.load(name)


def test_labels_of_a_call_that_failed_are_nothing_to_the_next():
    model, batch = build("llava"), inputs("llava", "one image")
    ids = batch["input_ids"]
    labels = torch.where(torch.arange(ids.shape[1]) >= ids.shape[1] - 2, ids, -100)
    with torch.no_grad(), attach(model, FastV(layer=3, keep=0.3)) as handle:
        model.model(**batch)
        with pytest.raises(TypeError):
            model(ids, **batch, labels=labels)
        model.model(**batch)
    first, second = handle.report.prefills
    assert torch.equal(first.stages[0].kept[0], second.stages[0].kept[0])
    assert handle.report.prefills[0].notes == handle.report.prefills[1].notes


# -- every public object


@pytest.fixture(scope="module")
def seen():
    """A handle, detached, and two reports of the same."""
    model, batch = build("llava"), inputs("llava", "two images")
    with torch.no_grad(), attach(model, FastV(layer=3, keep=0.3)) as handle:
        model(**batch)
        attached = repr(handle)
    return handle, attached


def test_reports_compare_print_and_copy(seen):
    report = seen[0].report
    parts = [report, report.prefills[0], report.stages[0]]
    for one in parts:
        assert one == one
        assert one != object()
        for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert other == one
            assert repr(other) == repr(one)
            assert str(other) == str(one)
        with pytest.raises(TypeError, match="unhashable"):
            hash(one)
    stage = report.stages[0]
    assert dataclasses.replace(stage, kept=[kept[1:] for kept in stage.kept]) != stage
    assert dataclasses.replace(report.prefills[0], stages=[]) != report.prefills[0]
    json.dumps(report.to_dict())


def test_a_handle_prints_and_refuses_to_be_copied(seen):
    handle, attached = seen
    assert attached.endswith(", attached>")
    assert "FastV(" in repr(handle)
    assert repr(handle).endswith(", detached>")
    assert handle == handle
    for copying in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="take its report"):
            copying(handle)


@pytest.mark.parametrize(
    "one",
    [*(method() for method in METHODS.values()), GlimpsePrune(weights=glimpse()), BTPStage(3, 0.5)],
    ids=lambda one: repr(one)[:24],
)
def test_methods_compare_print_and_copy(one):
    for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one)), dataclasses.replace(one)):
        assert other == one
        assert hash(other) == hash(one)
        assert repr(other) == repr(one)
    assert one != object()
    assert repr(one).startswith(type(one).__name__)


def test_selections_and_tokens_do_not_compare_by_chance():
    keep = torch.tensor([[True, False]])
    one = foveate.pruners.Selection(keep)
    assert torch.equal(copy.deepcopy(one).keep, keep)
    assert torch.equal(pickle.loads(pickle.dumps(one)).keep, keep)
    assert one == one
    assert one != foveate.pruners.Selection(keep.clone())  # they are what a method returned, and no values
    assert "keep" in repr(one)
    assert {one: 1}[one] == 1


def test_a_model_that_is_attached():
    model, batch = build("llava"), inputs("llava", "one image")
    with torch.no_grad():
        dense = model(**batch).logits
        with attach(model, FastV(layer=3, keep=0.3)):
            pruned = model(**batch).logits
            for copying in (copy.deepcopy, pickle.dumps):
                with pytest.raises(UnsupportedModelError, match="detach first"):
                    copying(model)
            shallow = copy.copy(model)  # shares all modules, and so what hangs on them
            with pytest.raises(UnsupportedModelError, match="a copy of the model"):
                shallow(**batch)
            with pytest.raises(UnsupportedModelError, match="a copy of the model"):
                copy.copy(model.model)(**batch)
            assert torch.equal(model(**batch).logits, pruned)
        assert torch.equal(shallow(**batch).logits, dense)


def test_errors_are_what_a_caller_would_expect():
    for error in (BudgetError, IncompatibleWeightsError, UnknownMethodError):
        assert issubclass(error, ValueError)
    assert issubclass(ModelNotReachable, OSError)
    assert not issubclass(AlreadyAttachedError, ValueError)
