"""OC-VTP: slot attention in plain float64, token by token; what fills up; its weights as files."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import foveate
from foveate.errors import IncompatibleWeightsError
from foveate.families import Grid
from foveate.pruners.learned import CARD
from foveate.pruners.ocvtp.modules import SlotConfig, published_vision_layer, slots_for
from tests.laws.methods import slots
from tests.models.build import build, generate, inputs
from tests.pruners.encoder_tokens import best, encoder_tokens, kept

GRIDS = [[Grid(5, 6)], [Grid(3, 4, row_ends=1), Grid(2, 3)]]
COUNTS = (30, 21)
CELLS = ([*range(30)], [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, *range(15, 21)])  # without separators


def small(**changes):
    return slots(vision_size=6, size=8, **changes)


def shown():
    torch.manual_seed(3)
    return encoder_tokens(GRIDS)


def places(weights, rows, number: int) -> list[int]:
    """The token of each slot, by the rule, one number at a time."""
    numbers = {name: value.double() for name, value in weights.state_dict().items()}
    size = weights.config.size

    def norm(name, x):
        scaled = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        return scaled * numbers[f"{name}.weight"] + numbers[f"{name}.bias"]

    def linear(name, x):
        y = numbers[f"{name}.weight"] @ x
        return y + numbers[f"{name}.bias"] if f"{name}.bias" in numbers else y

    def gelu(x):
        return torch.tensor([v * (1 + math.erf(v / 2**0.5)) / 2 for v in x.tolist()], dtype=torch.float64)

    encoded = [linear("encoder.3", gelu(linear("encoder.1", norm("encoder.0", row.double())))) for row in rows]
    encoded = [norm("attention.norm_tokens", row) for row in encoded]
    keys, values = ([linear(f"attention.{name}", row) for row in encoded] for name in ("key", "value"))
    draw = torch.randn(number, size, generator=torch.Generator().manual_seed(weights.config.seed)).double()
    state = [numbers["mean"][0] + one * numbers["log_std"][0].exp() for one in draw]
    for _ in range(weights.config.iterations):
        queries = [linear("attention.query", norm("attention.norm_slots", one)) for one in state]
        share = [[0.0] * len(rows) for _ in range(number)]
        for token, key in enumerate(keys):
            products = [math.exp(float(query @ key) / size**0.5) for query in queries]
            for slot in range(number):
                share[slot][token] = products[slot] / sum(products)
        for slot in range(number):
            mixed = sum(part * value for part, value in zip(share[slot], values, strict=True))
            mixed = mixed / (sum(share[slot]) + 1e-5)
            at, old = "attention.update", state[slot]
            given = (numbers[f"{at}.weight_ih"] @ mixed + numbers[f"{at}.bias_ih"]).chunk(3)
            before = (numbers[f"{at}.weight_hh"] @ old + numbers[f"{at}.bias_hh"]).chunk(3)
            reset, stay = torch.sigmoid(given[0] + before[0]), torch.sigmoid(given[1] + before[1])
            fresh = torch.tanh(given[2] + reset * before[2])
            new = (1 - stay) * fresh + stay * old
            wide = gelu(linear("attention.feed.0", norm("attention.norm_feed", new)))
            state[slot] = new + linear("attention.feed.2", wide)
    return [max(range(len(rows)), key=lambda token: (row[token], -token)) for row in share]


@pytest.mark.parametrize("keep", [4, 9, 17])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_slot_keeps_its_token_and_attention_fills_up(keep, seed):
    tokens, weights = shown(), small(seed=seed)
    found = foveate.OCVTP(keep=keep, weights=weights).select(tokens)
    filled = 0
    for sample, number in enumerate(COUNTS):
        cells = CELLS[sample]
        chosen = {cells[place] for place in places(weights, tokens.vision[0][sample, cells], keep)}
        filled += keep - len(chosen)
        score = tokens.received[0][sample] + tokens.class_received[0][sample]
        chosen |= set(best(score, keep - len(chosen), [one for one in range(number) if one not in chosen]))
        assert kept(found, sample) == sorted(chosen)
    assert keep == 4 or filled, "both halves of the rule are met"


def test_blocks_of_tokens_make_no_difference():
    torch.manual_seed(4)
    attention, tokens, start = small().attention, torch.randn(2, 11, 8), torch.randn(2, 3, 8)
    there, found = torch.rand(2, 11) < 0.8, []
    for rows in (11, 4, 1):
        seen: list[torch.Tensor] = []
        found.append((attention(tokens, there, start, seen.append, rows), torch.cat(seen, -1)))
    assert torch.equal(found[0][1].sum(1) > 0, there)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_a_sample_keeps_the_same_alone_and_each_time():
    tokens, pruner = shown(), foveate.OCVTP(keep=0.4, weights=small())
    both = pruner.select(tokens)
    assert torch.equal(both, pruner.select(tokens))
    short = COUNTS[1]
    one = {
        field.name: getattr(tokens, field.name)[1:, :short]
        for field in dataclasses.fields(tokens)
        if field.name in ("features", "valid", "position", "image", "grid", "row", "column")
    }
    one |= {name: getattr(tokens, name)[1:] for name in ("dense", "present", "grids", "query", "mean_text", "extra")}
    one |= {
        name: tuple(part[1:, :short] for part in getattr(tokens, name))
        for name in ("vision", "received", "class_received")
    }
    assert kept(pruner.select(dataclasses.replace(tokens, **one)), 0) == kept(both, 1)
    other = foveate.OCVTP(keep=0.4, weights=small(seed=1)).select(tokens)
    assert not torch.equal(both, other)


def test_without_weights_what_receives_attention_is_kept_and_the_report_says_so():
    tokens = shown()
    found = foveate.OCVTP(keep=7).select(tokens)
    for sample, number in enumerate(COUNTS):
        score = tokens.received[0][sample] + tokens.class_received[0][sample]
        assert kept(found, sample) == sorted(best(score, 7, range(number)))
    model = build("llava")
    for weights, said in ((None, True), (slots(), False)):
        with foveate.OCVTP(keep=0.3, weights=weights)(model) as pruned:
            generate(model, inputs("llava", "one image"), 1)
        assert ("no trained slots" in str(pruned.report)) == said


def test_weights_of_another_encoder_are_refused():
    model = build("llava")
    with (
        pytest.raises(IncompatibleWeightsError, match="of width 6, the model's has 32"),
        foveate.OCVTP(weights=small())(model),
    ):
        generate(model, inputs("llava", "one image"), 1)
    with pytest.raises(foveate.errors.BudgetError, match="vision layers must be blocks of"):
        foveate.attach(model, foveate.OCVTP(weights=slots(vision_layer=40)))


def test_save_and_load(tmp_path):
    pruner = foveate.OCVTP(weights=small(seed=3), keep=0.33)
    pruner.weights.about = {"base_model": "org/base", "metrics": {"loss after": 0.9}}
    pruner.save_pretrained(tmp_path)
    loaded = foveate.load(tmp_path)
    assert loaded == pruner
    assert loaded.weights.about == pruner.weights.about
    card = (tmp_path / CARD).read_text()
    assert "base_model: org/base" in card
    assert "loss after: 0.9" in card
    with torch.no_grad():
        loaded.weights.mean += 1
    assert loaded != pruner
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(IncompatibleWeightsError, match="does not hold the weights"):
        foveate.load(tmp_path)


def test_sizes():
    assert [published_vision_layer(depth) for depth in (24, 4, 1)] == [8, 1, 0]
    model = build("llava")
    assert slots_for(model, vision_layer=None, size=16) == SlotConfig(1, 32, 16)
    with pytest.raises(IncompatibleWeightsError, match="no 7"):
        slots_for(model, vision_layer=7)
    with pytest.raises(IncompatibleWeightsError, match="cannot have such sizes"):
        SlotConfig(0, 6, 0)


def test_attention_that_is_no_number_counts_as_none():
    tokens = shown()
    none, one = torch.zeros(tokens.valid.shape), torch.zeros(tokens.valid.shape)
    one[:, 2:5] = torch.tensor([torch.inf, torch.nan, -torch.inf])
    for keep in (2, 3, 4, 5):  # all are alike, so the first are kept
        found = foveate.OCVTP(keep=keep).select(dataclasses.replace(tokens, received=(one,), class_received=(none,)))
        assert [kept(found, sample) for sample in (0, 1)] == [[*range(keep)]] * 2


def test_choosing_builds_no_graph():
    """Also where nobody else sees to that."""
    weights, seen = small(), []
    weights.attention.query.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    with torch.enable_grad():
        foveate.OCVTP(keep=5, weights=weights).select(shown())
    assert seen
    assert not any(seen)
