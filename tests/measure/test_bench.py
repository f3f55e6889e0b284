"""The bench's parts: shapes, prompts, counts, bytes, the rule of --check."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from transformers import AutoModelForImageTextToText, DynamicCache, LlamaConfig

from foveate import BTP, FastV, Random
from foveate.errors import BudgetError
from foveate.families import family_of
from foveate.measure.bench.arms import AGAIN, DENSE, Arm, check_methods, make_arms
from foveate.measure.bench.counters import cache_bytes, counted, peak_bytes
from foveate.measure.bench.measure import Measured, _order, measure
from foveate.measure.bench.prompts import encode, make_prompt, processed
from foveate.measure.bench.published_shapes import SHAPES, shape_named
from foveate.measure.bench.result import entries, failures
from foveate.measure.bench.run import random_model, run
from foveate.measure.bench.settings import BenchSettings
from foveate.measure.bench.timing import PARTS, new_cache, prefill, split_run
from foveate.measure.loading import LoadedModel
from foveate.pruners.spec import parse_methods

CPU = torch.device("cpu")
PARAMETERS = {  # of the checkpoints
    "qwen2.5-vl-7b": 8_292_166_656,
    "llava-1.5-7b": 7_063_427_072,
    "llava-1.6-7b": 7_063_431_168,
    "qwen3-vl-8b": 8_767_123_696,
}


@pytest.fixture(scope="module")
def models():
    made = {name: shape.resized(4, 256).build(CPU, torch.float32, "sdpa") for name, shape in SHAPES.items()}
    return {name: LoadedModel(name, model, None, None) for name, model in made.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_parameters_of_its_checkpoint(name):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(shape_named(name).config())
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name]


def test_a_narrower_shape_keeps_heads_and_ratios():
    whole, narrow = SHAPES["qwen3-vl-8b"], SHAPES["qwen3-vl-8b"].resized(9, 1024)
    assert narrow.depth == 9
    assert narrow.text["head_dim"] == whole.text["head_dim"]
    assert narrow.text["num_attention_heads"] == 4 * narrow.text["num_key_value_heads"] == 8
    assert narrow.text["intermediate_size"] == 3 * narrow.text["hidden_size"] == 3072
    assert narrow.vision["depth"] == 7
    assert narrow.vision["hidden_size"] == 72 * narrow.vision["num_heads"] == 288
    assert max(narrow.vision["deepstack_visual_indexes"]) < 7


@pytest.mark.parametrize(
    ("name", "wanted", "tokens", "pictures"),
    [
        ("qwen2.5-vl-7b", 96, 96, 1),
        ("qwen3-vl-8b", 97, 99, 1),
        ("llava-1.5-7b", 1000, 1152, 2),
        ("llava-1.6-7b", 2880, 2928, 1),
    ],
)
def test_a_model_takes_a_prompt_of_about_so_many_visual_tokens(models, name, wanted, tokens, pictures):
    loaded = models[name]
    made = make_prompt(loaded, wanted, 12, 2)
    marks = made.inputs["input_ids"] == loaded.model.config.image_token_id
    assert marks.sum(-1).tolist() == [tokens] * 2
    assert (made.visual, made.text, made.pictures) == (tokens, 12, pictures)
    if wanted < 100:
        with torch.inference_mode():
            out = prefill(loaded.model, made.inputs, new_cache(loaded.model))
        assert out.logits.isfinite().all()


@pytest.mark.parametrize("name", ["llava-1.5-7b", "qwen2.5-vl-7b"])
def test_the_counter_agrees_with_the_formula_on_a_dense_run(models, name):
    model = models[name].model
    made = make_prompt(models[name], 576, 24, 1)
    inputs = encode(model, made.inputs)
    with torch.inference_mode(), Random(keep=1.0)(model) as handle:
        cache = new_cache(model)
        _, flops = counted(lambda: prefill(model, inputs, cache))
    text = model.config.get_text_config()
    head = 2 * text.hidden_size * text.vocab_size
    assert flops - head == pytest.approx(handle.report.flops_dense, rel=0.005)


def test_peak_memory_to_the_byte():
    held = torch.empty(1 << 20, dtype=torch.uint8)

    def work():
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(5000, dtype=torch.uint8)
        del first
        third = torch.empty(3000, dtype=torch.uint8)
        del second
        return torch.empty(4500, dtype=torch.uint8), third

    result, peak = peak_bytes(CPU, work)
    assert peak == 8000
    assert len(result) == 2
    assert held.numel() == 1 << 20


def test_the_bytes_of_a_cache():
    cache = DynamicCache()
    long, short = torch.zeros(1, 2, 10, 4), torch.zeros(1, 2, 3, 4)
    cache.update(long, long.clone(), 0)
    cache.update(short, short.clone(), 1)
    assert cache_bytes(cache) == 4 * 2 * 4 * 2 * (10 + 3)


def test_the_parts_of_a_prefill_sum_up(models):
    loaded = models["qwen2.5-vl-7b"]
    made = make_prompt(loaded, 96, 12, 1)
    family = family_of(loaded.model)
    found = split_run(loaded.model, made.inputs, Random(keep=0.3, layer=2), family)
    assert sum(found[part] for part in PARTS) == pytest.approx(found["total"])
    assert min(found[part] for part in PARTS) > 0
    dense = split_run(loaded.model, made.inputs, None, family)
    assert dense["behind"] == dense["choosing"] == dense["compaction"] == 0
    assert not loaded.model.get_decoder().layers[0]._forward_pre_hooks


def test_each_round_has_every_arm_in_another_order(models):
    running = [Measured(arm, None) for arm in make_arms(models["llava-1.5-7b"].model, (), (0.5,), True)]
    orders = [[one.arm.label for one in _order(running, number)] for number in range(4)]
    assert orders[0][:2] == [DENSE, AGAIN]
    assert len(set(map(tuple, orders))) == 4
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(orders[0]))}


def test_a_method_means_here_what_it_means_everywhere(models):
    model = models["qwen2.5-vl-7b"].model

    def made(methods, *keeps):
        arms = make_arms(model, tuple(parse_methods(methods)), keeps, True)
        return {arm.label: arm.pruner for arm in arms if arm.method.startswith(("btp", "fastv"))}

    assert made("fastv:layer=1", 0.6, 40) == {
        "fastv:layer=1 @ 0.6": FastV(layer=1, keep=0.6),
        "fastv:layer=1 @ 40": FastV(layer=1, keep=40),
    }
    assert made("btp:variant=default,btp:variant=paper,btp", 0.6) == {
        "btp:variant=default @ 0.6": BTP(variant="default", keep=0.6),
        "btp @ 0.6": BTP(keep=0.6),
        "btp:variant=paper": BTP(variant="paper"),
    }


@pytest.mark.parametrize(
    ("methods", "keeps", "config", "word"),
    [
        ("greedyprune:keep=0.5", (0.2,), None, "--keep"),
        ("btp:variant=mine", (0.2,), None, "released"),
        ("btp:variant=paper,stages=default", (0.2,), None, "either"),
        ("btp", (49,), None, "no count"),
        ("fastv:layer=4", (0.2,), LlamaConfig(num_hidden_layers=4), "layer 4"),
        ("btp", (0.01,), LlamaConfig(), "1.0%"),
    ],
)
def test_a_budget_that_cannot_be_had_is_refused_before_loading(methods, keeps, config, word):
    with pytest.raises(BudgetError, match=word):
        check_methods(tuple(parse_methods(methods)), keeps, config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Large(Random):
    """Does not fit."""

    def choose(self, tokens, k):
        raise torch.OutOfMemoryError("too much")


def timed(arm, ratios, peak=100, decode=None):
    low, middle, high = ratios
    faster = {"median": middle, "q25": low, "q75": high}
    entry = {"arm": arm, "visual": 576, "visual_asked": 576, "batch": 1, "peak_bytes": peak}
    entry["failed"] = None
    return entry | {"prefill": {"faster": faster}, "decode": {"faster": decode}, "dense": arm in (DENSE, AGAIN)}


RESULT = {"entries": [timed(DENSE, (1, 1, 1)), timed(AGAIN, (0.97, 1, 1.02)), timed("a", (1.1, 1.2, 1.3))]}


@pytest.mark.parametrize(
    ("ratios", "peak", "found"),
    [
        ((0.9, 0.95, 0.98), 100, []),  # within the spread of dense, 3 %
        ((0.8, 0.9, 0.96), 100, ["prefill"]),
        ((0.8, 0.9, 1.01), 100, []),  # a quarter of the rounds was faster
        ((1.1, 1.2, 1.3), 101, ["memory"]),
        ((0.5, 0.5, 0.5), 101, ["prefill", "memory"]),
    ],
)
def test_slower_or_larger_than_dense(ratios, peak, found):
    result = copy.deepcopy(RESULT)
    result["entries"][2] = timed("a", ratios, peak)
    assert [failure["what"] for failure in failures(result)] == found


def test_what_does_not_fit_where_dense_does_fails():
    result = copy.deepcopy(RESULT)
    result["entries"][2] |= {"failed": "out of memory", "prefill": {"faster": None}, "peak_bytes": None}
    assert [failure["what"] for failure in failures(result)] == ["memory"]
    result["entries"][0]["failed"] = "out of memory"
    assert [failure["what"] for failure in failures(result)] == ["dense"]


def test_out_of_memory_is_told_and_the_others_go_on(models):
    """Of one method alone; then of dense, beside which nothing can be timed."""
    settings = BenchSettings(visual=(96,), keeps=(0.5,), rounds=1, splits=1, decode=1, operations=False, text=12)
    loaded, family = models["qwen2.5-vl-7b"], family_of(models["qwen2.5-vl-7b"].model)
    arms = [Arm(DENSE, None), Arm("random", 0.5, Random(keep=0.5)), Arm("large", 0.5, Large(keep=0.5))]
    prompts = {DENSE: make_prompt(loaded, 96, 12, 1)}

    def entries_of(arms):
        return entries(measure(loaded.model, family, arms, prompts, settings, lambda _: None), 96, 1, "cpu")

    _, random, large = entries_of(arms)
    assert large["failed"] == "out of memory: too much"
    assert large["prefill"]["faster"] is None
    assert large["parts"] is None
    assert random["failed"] is None
    assert random["prefill"]["faster"]["median"] > 0
    large, random = entries_of([Arm(DENSE, None, Large(keep=0.5)), arms[1]])
    assert large["failed"]
    assert random["peak_bytes"]
    assert random["prefill"]["faster"] is None


def test_a_slower_decode_fails_too():
    result = copy.deepcopy(RESULT)
    result["entries"][2]["decode"]["faster"] = {"median": 0.8, "q25": 0.7, "q75": 0.9}
    assert [failure["what"] for failure in failures(result)] == ["decode"]
    assert failures(RESULT) == []


def test_pictures_through_a_processor_that_makes_as_many_tokens_of_each(loaded):
    one = processed(loaded, None, 3, 2, 0)
    assert one.pictures == 1
    more = processed(loaded, 3 * one.visual, 3, 1, 0)
    assert (more.pictures, more.visual) == (3, 3 * one.visual)
    assert more.inputs["input_ids"].shape == (1, more.visual + more.text)


def test_the_embedded_model_has_a_predictor_of_its_own(models):
    from foveate import load, tiny

    model, _ = tiny.load()
    spec = tuple(parse_methods("glimpseprune"))
    assert make_arms(model, spec, (0.5,), True)[-1].pruner.weights == load("glimpseprune-tiny").weights
    other = make_arms(models["llava-1.5-7b"].model, spec, (0.5,), True)[-1].pruner.weights
    assert other.config.hidden_size == 256
    assert len(other.config.vision_layers) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu():
    loaded = random_model("qwen2.5-vl-7b", "cuda", layers=4, width=256)
    settings = BenchSettings(tuple(parse_methods("greedyprune,glimpseprune")), (0.3,), (256,), rounds=2, decode=2)
    result = run(loaded, settings)
    assert result["clock"] == "wall"
    dense, *others = result["entries"]
    assert all(entry["failed"] is None and entry["peak_bytes"] > 0 for entry in result["entries"])
    assert all(entry["flops"] < dense["flops"] for entry in others if "random" in entry["arm"])
    assert loaded.model.dtype == torch.bfloat16
