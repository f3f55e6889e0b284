"""Training the model that reads, on a minute recipe: lean layers equal the model's, and a run can be resumed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.shared_state import draws
from transformers import LlavaForConditionalGeneration

from foveate.families import load_processor
from foveate.tiny.drawing import GLYPHS
from foveate.tiny.model import Shape, build, prompt
from foveate.tiny.questions import LONG_TASKS, TASKS, cover, held_out
from foveate.tiny.scenes import LAYOUTS, TOKENS, Style, make_scene
from foveate.tiny.training.check import answer_right, attention_of, make_items, selections, verdict
from foveate.tiny.training.check import check as check_model
from foveate.tiny.training.language_stage import Batches, as_tensors, evidence_loss, start_layers
from foveate.tiny.training.optimisers import set_rate
from foveate.tiny.training.packing import FEW_OBJECTS, LAYOUT, NO_TARGET, PREFIX, pack, positions, run_layers, written
from foveate.tiny.training.pool import IGNORE, LABELS, Pool, patch_labels, read_pool
from foveate.tiny.training.recipe import RECIPES, Recipe
from foveate.tiny.training.run import Run
from foveate.tiny.training.train import train
from foveate.tiny.training.vision_stage import see
from foveate.tiny.vocabulary import WORD_ID
from foveate.torch_state import threads

MINUTE = Recipe(
    scenes=24,
    held_out_scenes=6,
    shape=Shape(hidden=64, mlp=96, heads=2, groups=1, layers=4, vision_hidden=32, vision_layers=1, vision_heads=1),
    steps_vision=2,
    batch_vision=3,
    steps_language=5,
    batch_language=2,
    decay_from=3,
    top_layers=2,
    grow_at=3,
    phases=((2, 8, 96), (0, 99, 256)),
    small=((12, 8, 1.0), (40, 6, 0.5)),
    small_from=3,
    small_every=1,
    shares=(("row", 2.0),),
    led_until=2,
    led_layers=(2, 3),
    check_every=5,
    check_scenes=4,
)


@pytest.fixture(scope="module")
def pool():
    scenes = [make_scene(np.random.default_rng([6, i]), layout=LAYOUTS[i % 3]) for i in range(9)]
    labels = np.stack([patch_labels(scene.objects) for scene in scenes])
    return Pool(np.stack([scene.image for scene in scenes]), labels, [scene.objects for scene in scenes])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(MINUTE.shape).eval()


class Stopped(Exception):
    """Stands for a killed process."""


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, monkeypatch):
    before = draws()
    with threads(2):
        whole = train(tmp_path / "whole", MINUTE)
        assert torch.get_num_threads() == 2
    assert draws() == before
    for name in ("scenes", "held_out"):
        shutil.copytree(tmp_path / "whole" / name, tmp_path / "parts" / name)
    save = Run.save

    def stop_at(stage, step):
        def saving(self, where, done, *rest):
            save(self, where, done, *rest)
            if (where, done) == (stage, step):
                raise Stopped

        return saving

    for stage, step in (("vision", 1), ("language", 2), ("language", 4)):
        monkeypatch.setattr(Run, "save", stop_at(stage, step))
        with pytest.raises(Stopped):
            train(tmp_path / "parts", MINUTE, resume=True, checkpoint_seconds=-1.0)
    monkeypatch.setattr(Run, "save", save)
    parts = train(tmp_path / "parts", MINUTE, resume=True)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["start", "vision", "language"]
    assert lines[-1]["first_layer"] == 0
    assert {"answer", "short", "long", "seconds"} <= set(lines[-1])
    assert (tmp_path / "whole" / "curve.png").stat().st_size > 5000
    with pytest.raises(FileExistsError, match="resume"):
        train(tmp_path / "whole", MINUTE)
    with pytest.raises(ValueError, match="another recipe"):
        train(tmp_path / "whole", replace(MINUTE, steps_language=6), resume=True)
    last = LlavaForConditionalGeneration.from_pretrained(whole, dtype=torch.float32).eval()
    assert last.model.language_model.layers[0].mlp.down_proj.weight.abs().max() > 0, "the bottom layers have joined"
    table = check_model(last, len(TASKS), 1)
    assert table["dense"]["all"]["of_dense"] in (0, 100)
    assert len(verdict(table, MINUTE.shape.layers)) == 14


def test_a_longer_run_has_the_same_course():
    longer = Recipe().lasting(19000)
    assert (longer.decay_from, longer.grow_at, longer.led_until) == (13600, 11000, 4000)
    assert longer.phases == ((1200, 4, 32), (3000, 6, 64), (5600, 9, 128), (0, 99, 256))
    assert Recipe().lasting(9500) == Recipe()
    assert RECIPES["sizes"].lasting(31000).small_from == 19848


def test_a_recipe_may_ask_some_tasks_more_often(pool):
    def asked(shares):
        batches = Batches(replace(MINUTE, shares=shares), pool)
        return [question.task for step in range(3, 9) for *_, question in batches(step)[1].asked]

    assert asked((("colour", 0.0),)).count("colour") == 0 < asked(()).count("colour")


def test_lean_tower_equals_the_model(model):
    pixels = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        tokens, pooled = see(model, pixels, torch.float32)
        out = model.model.vision_tower(pixels)
        theirs = model.model.multi_modal_projector(out.last_hidden_state[:, 1:])
    torch.testing.assert_close(tokens, theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled, out.pooler_output, atol=1e-5, rtol=1e-4)


def test_the_rate_rises_stays_and_falls():
    weight = torch.nn.Parameter(torch.zeros(1))
    opt = torch.optim.Adam([{"params": [weight], "peak": 1.0}], lr=1.0)
    rates = []
    for step in (0, 100, 500, 750, 999):
        set_rate([opt], step, 1000, 0.5)
        rates.append(opt.param_groups[0]["lr"])
    assert rates == pytest.approx([1 / 60, 1.0, 1.0, 0.5, 0.01])


def test_packed_layers_equal_the_model(model, pool):
    language = model.model.language_model
    for visual, layout in ((96, FEW_OBJECTS), (TOKENS, LAYOUT)):
        packed = pack(np.random.default_rng(0), pool, np.arange(9), visual, layout)
        assert {q.task for *_, q in packed.asked} >= {"row", "follow", "colours", "relation"} or visual < TOKENS
        tokens = torch.randn(9, visual, 64)
        where = positions(torch.from_numpy(packed.keep), layout)
        with torch.no_grad():
            hidden = run_layers(model, tokens, torch.from_numpy(packed.ids), where, layout)
            for b, start, end, question in packed.asked[::5]:
                head, tail = written(question)
                first = start - len(head) + 1
                text = torch.tensor(head + tail[:-1])
                front = language.embed_tokens(torch.tensor(PREFIX))
                alone = torch.cat([front, tokens[b], language.embed_tokens(text)])[None]
                # As in a prompt of its own, in which dropped visual tokens leave gaps.
                place = torch.cat(
                    [torch.arange(2), torch.from_numpy(packed.keep[b]) + 2, torch.arange(len(text)) + 258]
                )
                out = language(inputs_embeds=alone, position_ids=place[None]).last_hidden_state
                torch.testing.assert_close(hidden[b, first:end], out[0, 2 + visual :], atol=1e-5, rtol=1e-4)
                assert packed.ids[b, first:end].tolist() == head + tail[:-1]
                assert packed.targets[b, start:end].tolist() == tail


def test_packed_questions_keep_their_evidence(pool):
    for visual in (64, TOKENS):
        packed = pack(np.random.default_rng(2), pool, np.arange(9), visual)
        assert len(packed.asked) > 20
        assert (packed.targets != NO_TARGET).sum() == sum(end - start for _, start, end, _ in packed.asked)
        for b, _, _, question in packed.asked:
            shown = np.isin(np.arange(TOKENS), packed.keep[b])
            assert shown[cover(question.boxes) > 0].all()
    weights = packed.weights()
    assert weights[packed.targets == WORD_ID[","]].max() < 0.1
    assert weights[packed.targets == NO_TARGET].max() == 0
    assert weights[packed.targets == WORD_ID["red"]].min() == 1


def test_batches_depend_on_the_step_alone_and_prefer_signs(pool):
    batches, again = (Batches(replace(MINUTE, batch_language=4), pool) for _ in range(2))
    for step in (0, 1, 7):
        (chosen, packed), (same, like) = batches(step), again(step)
        assert np.array_equal(chosen, same)
        assert np.array_equal(packed.ids, like.ids)
        assert packed.keep.shape[1] == (96 if step < 2 else TOKENS)
        assert all(len(pool.objects[i]) <= 8 for i in chosen if step < 2)
    assert not np.array_equal(batches(3)[1].ids, batches(4)[1].ids)
    signs = {i for i, things in enumerate(pool.objects) if any(t.arrow or len(t.text) > 2 for t in things)}
    eager = Batches(replace(MINUTE, batch_language=len(signs), signs_weight=1e9), pool)
    assert set(eager(5)[0]) == signs


def test_evidence_loss_is_what_the_layer_attends_to(model, pool):
    """By hand for every led row: softmax of its query against the keys of prefix and image, mean over heads."""
    packed = pack(np.random.default_rng(0), pool, np.arange(3))
    where = positions(torch.from_numpy(packed.keep), packed.layout)
    hidden = torch.randn(3, where.shape[1], 64)
    language = model.model.language_model
    attention, norm = language.layers[2].self_attn, language.layers[2].input_layernorm
    missed = []
    with torch.no_grad():
        cos, sin = language.rotary_emb(hidden, where)

        def turned(x, b, place):
            x = x.view(-1, 32)
            return x * cos[b, place] + torch.cat([-x[:, 16:], x[:, :16]], 1) * sin[b, place]

        for b, start, _, question in packed.asked:
            x = norm(hidden[b])
            keys = torch.stack([turned(attention.k_proj(x[i]), b, i)[0] for i in range(2 + TOKENS)])
            for first, boxes in [(s.first, s.boxes) for s in question.steps] or [(0, question.boxes)]:
                if not boxes or question.answer == "no":
                    continue
                row = 2 + TOKENS + start + first
                share = (turned(attention.q_proj(x[row]), b, row) @ keys.T / 32**0.5).softmax(-1).mean(0)[2:]
                missed.append(-float(torch.log(share[torch.from_numpy(cover(boxes) >= 0.1)].sum() + 1e-3)))
        loss = evidence_loss(model, {2: hidden}, where, packed)
    assert len(missed) > 40
    assert float(loss) == pytest.approx(np.mean(missed), rel=1e-4)


def test_layers_that_join_later_begin_as_the_identity(pool):
    torch.manual_seed(1)
    model = build(MINUTE.shape)
    start_layers(model, 2)
    packed = pack(np.random.default_rng(0), pool, np.arange(2))
    tokens, ids = torch.randn(2, TOKENS, 64), torch.from_numpy(packed.ids)
    where = positions(torch.from_numpy(packed.keep), packed.layout)
    with torch.no_grad():
        late, whole = (run_layers(model, tokens, ids, where, packed.layout, first) for first in (2, 0))
        torch.testing.assert_close(late, whole)
        assert (late - run_layers(model, tokens, ids, where, packed.layout, 3)).abs().max() > 1e-3


def test_hiding_from_a_layer_on_equals_removal(model):
    """Before layer 0 hidden tokens are as good as never there; later, the model's own layers on the shorter state."""
    pairs = list(held_out(17, 3))
    tokens = torch.randn(17, TOKENS, 64)
    items = make_items(tokens, [q for _, q in pairs])
    chosen = selections(items, 40, 0)
    language = model.model.language_model
    for layer in (0, 2):
        kept = chosen["random"](None, None, torch.arange(17))
        seen = {}

        def cut(number, hidden, layer=layer, kept=kept):
            if number == layer:
                there = torch.cat([torch.ones(17, 2, dtype=torch.bool), kept], 1)
                return torch.zeros(there.shape).masked_fill(~there, -1e4)
            return None

        layout = ((1, items.ids.shape[1]),)
        where = positions(torch.arange(TOKENS).expand(17, -1), layout)
        with torch.no_grad():
            seen = run_layers(model, tokens, items.ids, where, layout, before=cut)
            text = items.ids[5][None]
            hidden = torch.cat(
                [language.embed_tokens(torch.tensor([PREFIX])), tokens[5:6], language.embed_tokens(text)], 1
            )
            place = torch.arange(hidden.shape[1])[None]
            for number, block in enumerate(language.layers):
                if number == layer:
                    stay = torch.ones(hidden.shape[1], dtype=torch.bool)
                    stay[2 : 2 + TOKENS] = kept[5]
                    hidden, place = hidden[:, stay], place[:, stay]
                mask = torch.full((hidden.shape[1],) * 2, -1e9).triu(1)[None, None]
                out = block(hidden, attention_mask=mask, position_embeddings=language.rotary_emb(hidden, place))
                hidden = out[0] if isinstance(out, tuple) else out
            torch.testing.assert_close(seen[5], language.norm(hidden)[0, 2 + 40 :], atol=1e-4, rtol=1e-3)
    right = answer_right(model, items)
    assert right.shape == (17,)
    with torch.no_grad():
        hidden = torch.cat(
            [language.embed_tokens(torch.tensor([PREFIX] * 17)), tokens, language.embed_tokens(items.ids)], 1
        )
        share = attention_of(model, 0, hidden, where, items.last)
    assert share.shape == (17, 2, TOKENS)
    assert (share.sum(-1) < 1).all()


def test_patch_labels_name_what_is_there(pool):
    for labels, things in zip(pool.labels, pool.objects, strict=True):
        assert labels.shape == (len(LABELS), TOKENS)
        shown = labels[0] > 0
        assert (labels[1][shown] > 0).all()
        glyphs = [g for t in things for g in t.glyphs]
        assert sorted(GLYPHS[i - 1] for i in labels[3][labels[3] > 0]) == sorted(glyphs)
        assert (labels[5] == 2).sum() == sum(bool(t.text) for t in things)
        assert set(np.unique(labels)) <= set(range(IGNORE, len(GLYPHS) + 1))


def test_held_out_items_repeat_and_take_the_tasks_in_turn():
    items = list(held_out(34, 3))
    assert [q.task for _, q in items] == list(TASKS) * 2
    assert all(q.steps for _, q in items if q.task in LONG_TASKS)
    again = list(held_out(34, 3))
    assert all(np.array_equal(a.image, b.image) and p == q for (a, p), (b, q) in zip(items, again, strict=True))
    assert not np.array_equal(next(iter(held_out(1, 4)))[0].image, items[0][0].image)


def test_the_larger_recipe_trains_and_is_checked(tmp_path):
    """Shrunken but for its 24 x 24 visual tokens."""
    large = RECIPES["large"]
    assert (large.grid, large.phases[-1][2]) == (24, 576)
    fewer = replace(MINUTE, side=large.side, phases=((2, 8, 216), (0, 99, 576)))
    weights = train(tmp_path / "run", fewer)
    pool = read_pool(tmp_path / "run" / "scenes")
    packed = pack(np.random.default_rng(0), pool, np.arange(2))
    where = as_tensors(torch.zeros(24, 576, 64), np.arange(2), packed, pool, "cpu")[2]
    assert where[0, [1, 2, 577, 578]].tolist() == [1, 2, 577, 578], "the text comes after all visual tokens"
    trained = LlavaForConditionalGeneration.from_pretrained(weights, dtype=torch.float32).eval()
    assert trained.config.image_seq_length == 576
    scene, question = next(held_out(1, 1, Style(side=large.side)))
    inputs = load_processor(weights)(images=[scene.pil()], text=prompt(question.text), return_tensors="pt")
    assert (inputs["input_ids"] == trained.config.image_token_id).sum() == 576
    assert trained(**inputs).logits.isfinite().all()
    table = check_model(trained, len(TASKS), 1)
    assert table["attention"]["area"][0] < 0.1
    with pytest.raises(ValueError, match="another recipe"):
        train(tmp_path / "run", replace(fewer, side=256), resume=True)


def test_the_larger_recipe_fits_the_package():
    large = RECIPES["large"]
    with torch.device("meta"):
        assert sum(p.numel() for p in build(large.shape, large.side).parameters()) * 2 < 16e6
