"""Chains: methods at layers of their own, one after another; what cannot go together is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch

import foveate
from foveate import BTP, VTW, Chain, DivPrune, FastV, GlimpsePrune, GreedyPrune, PyramidDrop, Random
from foveate.engine import attach
from foveate.errors import BudgetError, UnknownMethodError
from foveate.measure.predict.predict import predict
from foveate.measure.stage_errors import stage_errors
from foveate.pruners import METHODS, saving
from foveate.pruners.base import Pruner
from foveate.pruners.spec import MethodSpec, brief, build, build_with, has_own_budget, is_saved, parse_methods
from tests.laws.methods import Ladder, Telling, glimpse
from tests.measure.test_predict import rates
from tests.models.build import build as model_of
from tests.models.build import inputs

STAGED = ("vtw", "v2drop", "pyramiddrop", "btp", "sparsevlm")  # the last begins before layer 0, so it comes first
TWO = Chain(DivPrune(keep=0.6), FastV(keep=0.3, layer=3))


def report_of(pruner, family="llava", layout="two images", **given):
    model, batch = model_of(family), given or inputs(family, layout)
    with attach(model, pruner) as pruned, torch.inference_mode():
        model(**batch)
    return pruned.report


# -- what a chain does


def test_each_stage_chooses_among_what_is_left_and_budgets_add_up():
    report = report_of(Chain(Random(keep=0.75), Random(keep=0.5, layer=2, seed=1), VTW(layer=4)))
    dense = report.stages[0].dense[0]
    first, second, third = (stage.kept[0] for stage in report.stages)
    assert [stage.layer for stage in report.stages] == [0, 2, 4]
    assert (len(first), len(second), len(third)) == (0.75 * dense, 0.5 * dense, 0)  # shares of the whole prompt
    assert set(second.tolist()) < set(first.tolist())
    assert report.tokens_per_layer == [0.75 * dense] * 2 + [0.5 * dense] * 2 + [0.0] * 2
    assert report.mean_tokens_per_layer == report.kv_share == pytest.approx((1.5 + 1) / 6)


@pytest.mark.parametrize("first", [name for name in METHODS if name not in STAGED])
def test_any_method_may_come_first_and_what_it_keeps_is_what_it_keeps_alone(first):
    layer = {} if first in ("evs", "vidcom2") else {"layer": 2}
    alone = foveate.make(first, keep=0.5, compact_cache=False, **layer)
    chained = Chain(alone, Random(keep=0.3, layer=4))
    one, both = report_of(alone, "qwen3_vl"), report_of(chained, "qwen3_vl")
    for ours, theirs in zip(one.stages[0].kept, both.stages[0].kept, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "second", [name for name in METHODS if not METHODS[name].needs_all_tokens and name != "sparsevlm"]
)
def test_any_method_may_come_second_and_keeps_its_budget_of_what_is_left(second):
    options = {"layer": 2} if "layer" in METHODS[second].__dataclass_fields__ and second != "vtw" else {}
    made = foveate.make(second, keep=0.25, **options) if options else foveate.make(second)
    chain = Chain(Random(keep=0.75), made)
    report = report_of(chain, "qwen3_vl")
    dense = torch.tensor(report.stages[0].dense)
    before, after = report.stages[0], report.stages[1]
    for ours, left in zip(after.kept, before.kept, strict=True):
        assert set(ours.tolist()) <= set(left.tolist())
    if options:
        assert [len(kept) for kept in after.kept] == (dense * 0.25).round().tolist()


def test_with_a_budget_for_each_image_it_is_a_share_of_the_whole_image():
    chain = Chain(Random(keep=0.5), DivPrune(keep=0.25, layer=2, per="image"))
    stage = report_of(chain).stages[1]
    assert all(kept == pytest.approx(dense / 4, abs=0.5) for row in stage.per_image for kept, dense in row)
    assert len(stage.per_image[0]) == 2


def test_each_method_is_shown_the_blocks_of_the_vision_encoder_that_it_asked_for():
    seen = {}

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Looking(Random):
        name = "looking"
        blocks: tuple[int, ...] = ()

        def vision_layers(self, depth):
            return self.blocks

        def vision_attention(self, depth):
            return self.blocks[:1]

        def choose(self, tokens, k):
            seen[self.layer] = tokens
            return super().choose(tokens, k)

    stages = {0: (2, 0), 1: (), 2: (0,), 3: (1, 2)}
    report_of(Chain(*(Looking(layer=layer, blocks=blocks, keep=0.9) for layer, blocks in stages.items())))
    for layer, blocks in stages.items():
        alone = seen[layer]
        assert (len(alone.vision), len(alone.received)) == (len(blocks), len(blocks[:1]))
    everything, some = seen[0], seen[3]
    report_of(Looking(layer=0, blocks=(1, 2), keep=0.9))
    place = torch.searchsorted(seen[0].position[0], some.position[0])
    for whole, left in zip(seen[0].vision, some.vision, strict=True):
        assert torch.equal(whole[0, place], left[0])
    assert torch.equal(
        everything.vision[1][0][torch.searchsorted(everything.position[0], seen[2].position[0])], seen[2].vision[0][0]
    )


def test_attention_in_another_form_for_each_method():
    logits, softmax = (BTP(stages=[(1, 0.5, 1.0)], score=score) for score in ("logits", "softmax"))
    report = report_of(Chain(logits, FastV(keep=0.3, layer=3)))
    kept = report_of(logits).stages[0].kept
    assert all(torch.equal(*pair) for pair in zip(report.stages[0].kept, kept, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(report_of(softmax).stages[0].kept, kept, strict=True))
    assert len(report.stages[1].kept[0]) == len(report_of(FastV(keep=0.3, layer=3)).stages[0].kept[0])


def test_variants_are_worked_out_for_the_model():
    config = model_of("llava").config
    made = Chain(DivPrune(keep=0.9), BTP(variant="released")).resolved(config)
    assert made.methods[1] == BTP(variant="released").resolved(config)
    assert made.layers(6) == (0, *made.methods[1].layers(6))
    assert made.resolved(config) == made


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_one_mean_for_all_methods_together(keep):
    report = report_of(dataclasses.replace(Chain(DivPrune(keep=0.5), BTP()), keep=keep), layout="one image")
    assert report.mean_tokens_per_layer == pytest.approx(keep, abs=1 / report.stages[0].dense[0])


def test_notes_of_all_and_of_a_method_that_has_nothing_to_do():
    report = report_of(Chain(Random(keep=0.3), FastV(keep=0.4, layer=2), VTW(layer=4)))
    (idle, dropped) = sorted(report.notes)
    assert idle.startswith("chain: fastv takes nothing out: no more tokens reach it than its budget")
    assert dropped.startswith("vtw: every visual token is dropped before layer 4")
    assert not report_of(TWO).notes
    assert len(report_of(Chain(GlimpsePrune(max_keep=0.9, layer=1), VTW(layer=4), compact_cache=False)).notes) == 2


def test_short_prompts_run_dense():
    assert report_of(dataclasses.replace(TWO, min_visual=1000)).skipped


def test_errors_of_each_cut_and_a_prediction():
    model, batch = model_of("llava"), dict(inputs("llava", "one image"))
    chain = Chain(foveate.VisionZip(keep=0.7, block=-1), foveate.DART(keep=0.4, layer=2), Telling(layer=4, keep=0.2))
    assert [one.layer for one in stage_errors(model, chain, batch)] == [0, 2, 4]
    report, text = report_of(chain, layout="one image"), model.config.get_text_config()
    visual = report.stages[0].dense[0]
    machine = rates(chain, config=text)
    guess = predict(model.config, chain, visual, machine, text=batch["input_ids"].shape[1] - visual)
    assert list(guess.tokens_per_layer) == report.tokens_per_layer
    assert guess.kv_share == pytest.approx(report.kv_share)


# -- plain data


def test_plain_data():
    assert foveate.Chain is Chain
    assert "chain" not in METHODS
    for other in (pickle.loads(pickle.dumps(TWO)), copy.deepcopy(TWO), eval(repr(TWO), vars(foveate))):
        assert other == TWO
        assert hash(other) == hash(TWO)
    assert Chain(*reversed(TWO.methods)) != TWO
    assert Chain(Chain(*TWO.methods), BTP()).methods == (*TWO.methods, BTP())
    assert dataclasses.replace(TWO, keep=0.5).methods == TWO.methods
    assert brief(dataclasses.replace(TWO, keep=0.5)) == "Chain(DivPrune(keep=0.6), FastV(keep=0.3, layer=3), keep=0.5)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        TWO.keep = 0.1


def test_the_cache_is_cut_as_the_last_method_does():
    chain = Chain(DivPrune(keep=0.5), GlimpsePrune(keep=0.2))
    assert chain.compact_cache
    assert all(one.compact_cache for one in chain.methods)
    assert not dataclasses.replace(chain, compact_cache=False).methods[1].compact_cache
    assert report_of(chain).kv_share == pytest.approx(0.2, abs=0.02)
    with pytest.raises(BudgetError, match="fastv has compact_cache and random, the last, has not"):
        Chain(FastV(compact_cache=True), Random(layer=4))


def test_saved_and_loaded(tmp_path):
    tuned = BTP(stages=[(1, 0.5), (3, 0.2, 1.0)], min_visual=5)
    chain = Chain(DivPrune(keep=0.6, min_visual=5), tuned, keep=0.4)
    chain.save_pretrained(tmp_path / "mine")
    assert foveate.load(tmp_path / "mine") == chain
    assert Chain.from_pretrained(tmp_path / "mine") == chain
    learned = Chain(Random(keep=0.6), GlimpsePrune(weights=glimpse()))
    learned.save_pretrained(tmp_path / "learned")
    weights = foveate.load(tmp_path / "learned").methods[1].weights
    assert torch.equal(weights.glimpse.rows, learned.methods[1].weights.glimpse.rows)


def test_loaded_from_the_hub(tmp_path, monkeypatch):
    TWO.save_pretrained(tmp_path)

    def download(repository, file):
        assert repository == "me/my-chain"
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert foveate.load("me/my-chain") == TWO
    assert saving.find("me/my-chain/2-fastv", "config.json") == tmp_path / "2-fastv" / "config.json"


# -- on a command line


@pytest.mark.parametrize(
    ("text", "chain"),
    [
        ("divprune:keep=0.5+btp", Chain(DivPrune(keep=0.5), BTP())),
        ("divprune:keep=49,layer=1+fastv:keep=+9,layer=3", Chain(DivPrune(keep=49, layer=1), FastV(keep=9, layer=3))),
        ("greedyprune:threshold=1e+0 + vtw:layer=4", Chain(GreedyPrune(threshold=1.0), VTW(layer=4))),
    ],
)
def test_as_it_is_written(text, chain):
    (spec, other) = parse_methods(f"{text},random:keep=0.3")
    assert build(spec.name, spec.options) == chain
    assert other == MethodSpec("random", {"keep": 0.3})
    assert parse_methods(str(spec)) == [spec]
    assert build(text, {"min_visual": 7}) == dataclasses.replace(chain, min_visual=7)
    assert not is_saved(spec.name)


def test_a_saved_one_among_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    BTP(keep=0.4).save_pretrained("my+btp")
    assert build("my+btp", {}) == BTP(keep=0.4)
    BTP(keep=0.3).save_pretrained("mine/btp")
    assert build("divprune:keep=0.5+mine/btp", {}) == Chain(DivPrune(keep=0.5), BTP(keep=0.3))


def test_its_budget_on_a_command_line():
    assert build_with("divprune+btp", {}, None, 0.3) == Chain(DivPrune(), BTP(), keep=0.3)
    assert build_with("divprune+btp", {}, 0.4, 0.3) == Chain(DivPrune(), BTP(), keep=0.4)
    assert build_with("divprune:keep=0.5+btp", {}, None, 0.3) == Chain(DivPrune(keep=0.5), BTP())
    assert has_own_budget("divprune+btp:variant=paper", {})
    with pytest.raises(BudgetError, match=r"given twice: 0.4 apart, and keep=0.5"):
        build_with("divprune:keep=0.5+btp", {}, 0.4, 0.3)


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("divprune+slowv", UnknownMethodError, "slowv"),
        ("divprune+btp:tau=1", UnknownMethodError, "btp has no option tau"),
        ("divprune:keep=2.0+btp", BudgetError, "keep"),
        ("divprune+fastv:layer=0", BudgetError, "at least 1"),
        ("divprune+random", BudgetError, "both cut before layer 0"),
    ],
)
def test_what_is_wrong_on_a_command_line_is_named(text, error, named):
    with pytest.raises(error, match=named):
        build(text, {})
    with pytest.raises(UnknownMethodError, match="a chain has no option layer"):
        build("divprune+btp", {"layer": 2})


# -- what cannot go together


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda: Chain(), "no method is given"),
        (lambda: Chain("divprune"), "made of methods.*'divprune'"),
        (lambda: Chain(DivPrune(), Random()), "divprune and random both cut before layer 0"),
        (lambda: Chain(FastV(), PyramidDrop(), GreedyPrune()), "fastv and greedyprune both cut before layer 2"),
        (lambda: Chain(Random(), foveate.Pool(layer=2)), "pool reads whole grids"),
        (lambda: Chain(Random(), foveate.EVS()), "evs reads whole grids"),
        (lambda: Chain(Random(min_visual=3), FastV()), "min_visual is 3 for random and 0 for fastv"),
        (lambda: Chain(Chain(Random(), keep=0.5), FastV()), "the chain among its methods has keep=0.5"),
        (lambda: Chain(Random(), keep=49), "no count"),
        (lambda: Chain(Random(), compact_cache="maybe"), "compact_cache"),
        (lambda: Chain(Random(), depth=0), "depth"),
    ],
)
def test_refused_when_it_is_made(made, named):
    with pytest.raises(BudgetError, match=named):
        made()


@pytest.mark.parametrize(
    ("chain", "named"),
    [
        (Chain(FastV(layer=3), DivPrune()), "fastv cuts before layer 3 and divprune, after it, before layer 0"),
        (Chain(BTP(stages=[(1, 0.5), (4, 0.2)]), FastV(layer=3)), "btp cuts before layers 1, 4 and fastv"),
        (Chain(DivPrune(layer=1), BTP(stages=[(1, 0.5)])), "before layer 1 and btp, after it, before layer 1"),
        (Chain(Random(), GlimpsePrune(weights=glimpse())), "glimpseprune adds tokens to the prompt.*goes alone"),
        (
            Chain(VTW(layer=2), FastV(layer=4)),
            "vtw drops every visual token before layer 2: nothing is left for fastv",
        ),
        (Chain(Random(keep=0.5), FastV(layer=9)), "layer 9 is not in a model of 6"),
        (Chain(Random(keep=0.5), VTW(layer=2), keep=0.9), "chain: a mean of 90.0%.*between 0.0% and 33.3%"),
        (Chain(Random(keep=20), FastV(), keep=0.5), "keeps a count, 20"),
    ],
)
def test_refused_when_it_is_attached_and_nothing_is_left(chain, named):
    model = model_of("llava")
    before = [len(one._forward_pre_hooks) + len(one._forward_hooks) for one in model.modules()]
    with pytest.raises(BudgetError, match=named) as caught:
        attach(model, chain)
    assert "\n" not in str(caught.value)
    assert before == [len(one._forward_pre_hooks) + len(one._forward_hooks) for one in model.modules()]


def test_a_method_without_keep_cannot_be_switched_off():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Fixed(Pruner):
        name = "fixed"

        def layers(self, depth):
            return (1,)

        def select(self, tokens):
            return tokens.valid

    config = model_of("llava").config
    with pytest.raises(BudgetError, match="fixed has no option keep"):
        Chain(Random(), Fixed(), keep=1.0).resolved(config)
    with pytest.raises(BudgetError, match="fixed has no option keep"):
        Fixed().with_mean(0.5, config)
    assert Chain(Ladder(cuts=(1,)), Fixed()).methods[1] == Fixed()
