"""Training on a minute recipe: a resumed run equals one that never stopped, and the fast paths equal the model."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.shared_state import draws

from foveate.tiny.model import build
from foveate.tiny.questions import ask
from foveate.tiny.scenes import make_scene
from foveate.tiny.training.language_stage import run_layers, to_device
from foveate.tiny.training.optimisers import set_rate
from foveate.tiny.training.packing import PREFIX, TOKENS, pack
from foveate.tiny.training.pool import IGNORE, LABELS, Pool, patch_labels
from foveate.tiny.training.run import Recipe
from foveate.tiny.training.train import train
from foveate.tiny.training.vision_stage import see
from foveate.torch_state import threads

MINUTE = Recipe(
    scenes=12,
    held_out_scenes=4,
    steps_vision=2,
    steps_language=3,
    batch_vision=4,
    batch_language=2,
    signs_from=1,
    check_every=3,
)


@pytest.fixture(scope="module")
def pool():
    scenes = [make_scene(np.random.default_rng([6, i])) for i in range(8)]
    labels = np.stack([patch_labels(scene.objects) for scene in scenes])
    return Pool(np.stack([scene.image for scene in scenes]), labels, [scene.objects for scene in scenes])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build().eval()


class Stopped(Exception):
    """Stands for a killed process."""


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    before = draws()
    with threads(2):
        whole = train(tmp_path / "whole", MINUTE, threads=1)
        assert torch.get_num_threads() == 2
    assert draws() == before
    for name in ("scenes", "held_out"):
        shutil.copytree(tmp_path / "whole" / name, tmp_path / "parts" / name)

    def stop_at(stage, step):
        def progress(where, done, total, text):
            if (where, done) == (stage, step):
                raise Stopped

        return progress

    for stage, step in (("vision", 2), ("language", 2)):
        with pytest.raises(Stopped):
            train(tmp_path / "parts", MINUTE, "cpu", True, 1, -1.0, stop_at(stage, step))
    parts = train(tmp_path / "parts", MINUTE, resume=True, threads=1)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["vision", "language"]
    assert 0 <= lines[-1]["mean"] <= 100
    with pytest.raises(FileExistsError, match="resume"):
        train(tmp_path / "whole", MINUTE)
    with pytest.raises(ValueError, match="another recipe"):
        train(tmp_path / "whole", replace(MINUTE, steps_language=4), resume=True)


def test_packed_layers_equal_the_model(model, pool):
    packed = pack(np.random.default_rng(0), pool, np.arange(3), slots=4)
    tokens = torch.randn(3, TOKENS, 128, generator=torch.Generator().manual_seed(1))
    inputs = to_device(tokens, packed, torch.device("cpu"))
    language = model.model.language_model
    with torch.no_grad():
        logits, _ = run_layers(model, tokens, inputs[1], tuple(m.float() for m in inputs[2]), inputs[3])
        for b, slot, _ in packed.tasks[::3]:
            words = language.embed_tokens(inputs[1][b, slot])
            front = language.embed_tokens(torch.tensor(PREFIX))
            alone = language(inputs_embeds=torch.cat([front, tokens[b], words])[None]).last_hidden_state
            torch.testing.assert_close(logits[b, slot], model.lm_head(alone)[0, 198:], atol=1e-4, rtol=1e-4)


def test_lean_tower_equals_the_model(model):
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        tokens, pooled = see(model, pixels, torch.float32)
        out = model.model.vision_tower(pixels)
        theirs = model.model.multi_modal_projector(out.last_hidden_state[:, 1:])
    torch.testing.assert_close(tokens, theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled, out.pooler_output, atol=1e-5, rtol=1e-4)


def test_packed_questions_keep_their_evidence(pool):
    for visual, few in ((64, 0.0), (64, 1.0), (TOKENS, 0.0)):
        packed = pack(np.random.default_rng(2), pool, np.arange(8), visual, few=few)
        assert packed.tasks
        for (b, _), tokens in zip(packed.box_slot, packed.box_tokens, strict=True):
            assert tokens.any()
            assert packed.visible[b][tokens].all()
        if visual == TOKENS:
            assert packed.visible.all()


def test_patch_labels_name_what_is_there(pool):
    for labels, things in zip(pool.labels, pool.objects, strict=True):
        assert labels.shape == (len(LABELS), 196)
        assert labels[5].sum() <= len(things)
        shown = labels[0] > 0
        assert (labels[1][shown] > 0).all()
        assert (labels[3] > 0).sum() == (labels[4] > 0).sum()
        if not things:
            assert not shown.any()
        assert set(np.unique(labels[:5])) <= set(range(IGNORE, 12))


def test_the_rate_rises_stays_and_falls():
    weight = torch.nn.Parameter(torch.zeros(1))
    opt = torch.optim.Adam([{"params": [weight], "peak": 1.0}], lr=1.0)
    rates = []
    for step in (0, 100, 500, 750, 999):
        set_rate([opt], step, 1000, 0.5)
        rates.append(opt.param_groups[0]["lr"])
    assert rates == pytest.approx([1 / 60, 1.0, 1.0, 0.5, 0.01])


def test_training_scenes_differ_from_held_out():
    from foveate.tiny.questions import HELD_OUT_STREAM, TRAINING_STREAM

    streams = {TRAINING_STREAM, HELD_OUT_STREAM, HELD_OUT_STREAM + 1}
    assert len(streams) == 3
    images = {make_scene(np.random.default_rng([stream, 0, 0])).image.tobytes() for stream in streams}
    assert len(images) == 3
    rng = np.random.default_rng(0)
    assert any(ask(rng, make_scene(rng), "colour") for _ in range(3))
