"""GlimpsePrune's choice: threshold, cap, floor, anchors, budgets; saving and loading."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

import foveate
from foveate.engine.arguments import cache_of
from foveate.errors import BudgetError, IncompatibleWeightsError, ModelNotReachable
from foveate.families import Grid
from foveate.pruners import VisualTokens
from tests.laws.methods import glimpse
from tests.models.build import ATTENTIVE, SEEING, build, generate, inputs, visual
from tests.pruners.visual_tokens import visual_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told(foveate.GlimpsePrune):
    """GlimpsePrune whose predictor says what the test wants."""

    said: Tensor = dataclasses.field(default=None, compare=False)

    def logits(self, tokens: VisualTokens) -> Tensor:
        return self.said.masked_fill(~tokens.valid, -torch.inf)


TOKENS = visual_tokens([[Grid(4, 5)], [Grid(3, 3)]])
SAID = torch.linspace(-2, 3, 20).expand(2, -1)


def kept(**options) -> list[list[int]]:
    keep = Told(said=SAID, **options).select(TOKENS) & TOKENS.valid
    return [row.nonzero()[:, 0].tolist() for row in keep]


def test_threshold():
    assert kept() == [list(range(8, 20)), [8]]
    assert kept(threshold=0.9) == [list(range(16, 20)), [8]], "at least one, the likeliest"
    assert kept(threshold=0.0) == [list(range(20)), list(range(9))]


def test_cap_rounds_down():
    assert kept(max_keep=0.39) == [list(range(13, 20)), [8]]  # 7.8 of 20
    assert kept(max_keep=0.05, threshold=0.0) == [[19], [8]], "0.45 of 9 tokens round down to none; one stays"


def test_floor():
    assert kept(min_keep=3, threshold=0.9) == [[16, 17, 18, 19], [6, 7, 8]]
    assert kept(min_keep=3, max_keep=0.1) == [[17, 18, 19], [6, 7, 8]], "the floor is asked last"
    assert kept(min_keep=50) == [list(range(20)), list(range(9))]


def test_anchors():
    assert kept(threshold=0.9, anchors=("tl", "tr", "bl", "br")) == [[0, 4, 15, 16, 17, 18, 19], [0, 2, 6, 8]]


def test_budget_instead_of_threshold():
    assert kept(keep=0.25) == [list(range(15, 20)), [7, 8]]
    assert kept(keep=2) == [[18, 19], [7, 8]]
    assert kept(keep=1.0) == [list(range(20)), list(range(9))]


def test_padding_and_text_only_samples():
    tokens = visual_tokens([[Grid(2, 2)], []])
    assert foveate.GlimpsePrune().select(tokens)[1].sum() == 0
    assert foveate.GlimpsePrune(min_keep=3).select(tokens).sum(-1).tolist() == [3, 0]


def test_without_weights_it_is_the_scaled_head_mean():
    mean = TOKENS.attention[:, :, 0].mean(1)
    for sample, number in enumerate((20, 9)):
        own = mean[sample, :number]
        scaled = (own - own.min()) / (own.max() - own.min())
        ours = foveate.GlimpsePrune().logits(TOKENS)[sample]
        torch.testing.assert_close(ours[:number].sigmoid(), scaled, atol=1e-5, rtol=0)
        assert (ours[number:] == -torch.inf).all()


def test_it_says_what_the_stand_in_is():
    model = build("llava")
    with foveate.GlimpsePrune()(model) as pruned:
        generate(model, inputs("llava", "one image"), 1)
    assert "training-free stand-in" in str(pruned.report)
    with foveate.GlimpsePrune(weights=glimpse())(model) as pruned:
        generate(model, inputs("llava", "one image"), 1)
    assert "stand-in" not in str(pruned.report)


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 1.0},
        {"threshold": -0.1},
        {"threshold": float("nan")},
        {"threshold": "0.5"},
        {"threshold": None},
        {"max_keep": "all"},
        {"max_keep": 2},
        {"anchors": "middle"},
        {"anchors": (1,)},
        {"max_keep": 0.0},
        {"max_keep": 1.5},
        {"max_keep": float("nan")},
        {"min_keep": 0},
        {"min_keep": 2.0},
        {"anchors": ("top",)},
        {"layer": 2.5},
        {"keep": 0.0},
    ],
    ids=str,
)
def test_options_that_make_no_sense(options):
    with pytest.raises(BudgetError):
        foveate.GlimpsePrune(**options)


@pytest.mark.parametrize("layer", [0, 6])
def test_layers_that_the_model_has_not(layer):
    with pytest.raises(BudgetError, match="1 to 5"):
        foveate.attach(build("llava"), foveate.GlimpsePrune(layer=layer))


def test_a_mean_share_is_a_budget_behind_the_cut():
    config = LlamaConfig(num_hidden_layers=12)
    assert foveate.GlimpsePrune().with_mean(0.75, config) == foveate.GlimpsePrune(keep=0.25)
    with pytest.raises(BudgetError, match="67%"):
        foveate.GlimpsePrune().with_mean(0.5, config)


def test_weights_of_another_model_leave_this_one_as_it_was():
    model = build("llava")
    wrong = foveate.GlimpsePrune(weights=glimpse(hidden_size=32))

    def hooks():
        return [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]

    before = hooks()
    with pytest.raises(IncompatibleWeightsError, match="hidden_size 32, not 64"):
        foveate.attach(model, wrong)
    assert hooks() == before


def test_the_row_of_each_layer_counts(monkeypatch):
    """Rows up to the cut change what is chosen, rows from the cut on do not."""
    model, batch = build("llava"), inputs("llava", "two images")
    weights = glimpse()
    logits = []
    ours = foveate.GlimpsePrune.logits
    monkeypatch.setattr(
        foveate.GlimpsePrune, "logits", lambda self, tokens: logits.append(ours(self, tokens)) or logits[-1]
    )

    def run():
        with foveate.GlimpsePrune(weights=weights)(model):
            generate(model, batch, 1)
        return logits.pop()

    before = run()
    for row in range(6):
        with torch.no_grad():
            weights.glimpse.rows[row] += torch.randn(1, 64)
        after = run()
        assert torch.equal(before, after) == (row >= 4), row
        before = after


def test_save_and_load(tmp_path):
    pruner = foveate.GlimpsePrune(weights=glimpse(), max_keep=0.111, anchors=("tl",))
    pruner.weights.about = {"base_model": "org/base", "metrics": {"recall": 0.9}}
    pruner.save_pretrained(tmp_path)
    loaded = foveate.load(tmp_path)
    assert loaded == pruner
    assert hash(loaded) == hash(pruner)
    assert foveate.GlimpsePrune.from_pretrained(tmp_path) == pruner
    assert loaded.weights.about == pruner.weights.about
    card = (tmp_path / "README.md").read_text()
    assert "base_model: org/base" in card
    assert "recall: 0.9" in card
    with torch.no_grad():
        loaded.weights.glimpse.rows[0] += 1
    assert loaded != pruner
    with pytest.raises(BudgetError, match="holds glimpseprune, not btp"):
        foveate.BTP.from_pretrained(tmp_path)


def test_damaged_folders(tmp_path):
    foveate.GlimpsePrune(weights=glimpse()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["weights"]["hidden_size"] = 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(IncompatibleWeightsError, match="size mismatch"):
        foveate.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(IncompatibleWeightsError):
        foveate.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelNotReachable):
        foveate.load(tmp_path)


def test_push_to_hub(monkeypatch):
    import huggingface_hub

    calls = []
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda name, **rest: calls.append(name))

    def upload(repo_id, folder_path, token):
        calls.append(foveate.load(folder_path))
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    pruner = foveate.GlimpsePrune(weights=glimpse())
    assert pruner.push_to_hub("me/mine") == "https://hub/me/mine"
    assert calls == ["me/mine", pruner]


def test_what_is_timed_has_weights():
    """Those of the package where they fit, else random ones; those that it was given stay."""
    shipped = foveate.load("glimpseprune-tiny").weights
    embedded, _ = foveate.tiny.load()
    assert foveate.GlimpsePrune(max_keep=0.2).for_bench(embedded, True) == foveate.GlimpsePrune(
        max_keep=0.2, weights=shipped
    )
    model = build("llava")
    made = foveate.GlimpsePrune().for_bench(model, True)
    assert (made.weights.config.hidden_size, made.weights.config.vision_size) == (64, 32)
    given = foveate.GlimpsePrune(weights=glimpse())
    assert given.for_bench(model, True) == given
    assert made.vision_layers(3)
    assert not made.for_bench(model, False).vision_layers(3)


@pytest.mark.parametrize("family", [one for one in ATTENTIVE if one in SEEING])
def test_while_decoding_every_layer_holds_survivors_and_text(family):
    """The glimpse token left, and so did what it did not want, from the layers before the cut too."""
    model, batch = build(family), inputs(family, "two images")
    pruner = foveate.GlimpsePrune(
        weights=glimpse(vision_layers=(2, 0), vision_size=32, condition_size=16), max_keep=0.3
    )
    with pruner(model) as pruned:
        out = generate(model, batch, 3)
    text = int((~visual(batch)).sum())
    kept = len(pruned.report.stages[0].kept[0])
    assert 0 < kept <= 0.3 * int(visual(batch).sum())
    for layer in cache_of(out).layers:
        held = layer.keys.shape[2]  # in a window what left it is gone, too
        assert held < text + kept + 2 if layer.window else held == text + kept + 2
    assert pruned.report.prefills[0].kv_share == pytest.approx(kept / int(visual(batch).sum()))
