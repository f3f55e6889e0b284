import math

import pytest
import torch

import foveate
from foveate import BTP
from foveate.learn.btp.calibrate import drop_everything
from foveate.learn.btp.divergence import CAP, dense_answer, divergence, force, next_words
from foveate.learn.btp.samples import Sample
from foveate.measure.eval.answers import run_batch
from foveate.measure.eval.scoring import IGNORE
from tests.measure.folders import picture

ASKED = [Sample("what is this ?", picture(1)), Sample("where is this red blue colour ?", picture(2))]


@pytest.fixture(scope="module")
def forced(loaded):
    return asked(loaded, ASKED)


def asked(loaded, samples):
    return force(loaded, samples, dense_answer(loaded, samples, 4))


def test_the_answer_is_the_dense_models_own(loaded, forced):
    ids, labels = forced.inputs["input_ids"], forced.inputs["labels"]
    assert ids.shape == labels.shape == forced.inputs["attention_mask"].shape
    assert (labels[:, : forced.start] == IGNORE).all()
    prompts = loaded.inputs([sample.question for sample in ASKED], [[sample.image()] for sample in ASKED])
    dense = loaded.model.generate(**prompts, max_new_tokens=4, do_sample=False)
    assert torch.equal(ids, dense)
    # teacher-forced, the dense model says its own answer again
    said = next_words(loaded.model, forced).argmax(-1)
    assert torch.equal(said[forced.real], ids[:, forced.start :][forced.real])


def test_tokens_behind_the_end_of_an_answer_do_not_count(loaded, monkeypatch):
    first = asked(loaded, ASKED).inputs["input_ids"][0, -4:]
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", int(first[1]))
    forced = asked(loaded, ASKED[:1])
    ends = [token == first[1] for token in first]
    assert forced.real[0].sum() == ends.index(True) + 1


def test_no_divergence_without_pruning(loaded, forced):
    dense = next_words(loaded.model, forced)
    kl, same = divergence(loaded.model, forced, dense, BTP(keep=1.0))
    assert torch.equal(kl, torch.zeros(2, dtype=torch.float64))
    assert torch.equal(same, torch.ones(2, dtype=torch.float64))


def test_divergence_is_the_mean_kl_over_the_answer(loaded, forced):
    pruner = foveate.Random(keep=0.25, layer=1)
    dense = next_words(loaded.model, forced)
    kl, same = divergence(loaded.model, forced, dense, pruner)
    with pruner(loaded.model):
        pruned = next_words(loaded.model, forced)
    for row in range(2):
        places = forced.real[row].nonzero().flatten().tolist()
        values = []
        for place in places:
            p, q = dense[row, place].double(), pruned[row, place].double()
            values.append(min(CAP, sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True))))
        assert kl[row].item() == pytest.approx(sum(values) / len(values), rel=1e-3, abs=1e-6)
    assert (kl > 0).all()
    assert ((same >= 0) & (same <= 1)).all()


def test_the_same_tokens_are_pruned_as_while_generating(loaded, forced):
    """The labels tell the engine where the prompt ends: attention is that of its last token, not of the answer's."""
    pruner = BTP(stages=((2, 0.5, 1.0), (4, 0.25, 1.0)))
    with torch.inference_mode(), pruner(loaded.model) as pruned:
        next_words(loaded.model, forced)
    (prefill,) = pruned.report.prefills
    generated = run_batch(
        loaded, [sample.question for sample in ASKED], [[sample.image()] for sample in ASKED], pruner
    )
    for mine, theirs in zip(prefill.stages, generated.report.prefills[0].stages, strict=True):
        for a, b in zip(mine.kept, theirs.kept, strict=True):
            assert torch.equal(a, b)


def test_everything_can_be_dropped_before_any_layer(loaded, forced):
    dense = next_words(loaded.model, forced)
    values = [divergence(loaded.model, forced, dense, drop_everything(layer))[0] for layer in range(6)]
    assert all(value.isfinite().all() for value in values)
    assert values[0].sum() > 0
