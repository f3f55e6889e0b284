"""One training step: what the glimpse token sees, what it says, and what learns from it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from foveate.families import family_of
from foveate.learn.data import from_scenes
from foveate.learn.glimpse.step import GlimpseForTraining, Places, Weighing, collate
from foveate.learn.glimpse.targets import localisation_loss, target_masks
from foveate.learn.looking import Looking
from foveate.measure.loading import LoadedModel, load_model
from foveate.pruners.glimpseprune.modules import GlimpseConfig, GlimpseModules, Segments
from tests.laws.methods import glimpse
from tests.models.build import ATTENTIVE, SEEING, build, inputs, visual

# of a LLaVA, whose images are shown whole
PROCESSOR = SimpleNamespace(
    image_processor=SimpleNamespace(do_resize=False, do_center_crop=False, crop_size=None, size=None)
)
BOXES = ((0.2, 0.1, 0.6, 0.55),)


# which part of the image is where, sizes would tell
IN_PARTS = (
    "internvl",
    "internvl3_5",
    "internvl3_5_moe",
    "internvl3_5_gpt_oss",
    "idefics3",
    "smolvlm",
    "aya_vision",
    "cohere2_vision",
    "got_ocr2",
    "perception_lm",
)
ROWS = {"one": [[4, None, 5]], "ragged": [[4, None, 5], [3, None, 2], [12, None, 4]]}


def batch_of(family, layout):
    """A batch as `collate` makes it: prompts, a place for the glimpse token, answers of different lengths."""
    prompt = inputs(family, ROWS[layout])
    rows, start = prompt["input_ids"].shape
    torch.manual_seed(3)
    answer = torch.randint(2, 80, (rows, 4))
    labels = answer.clone()
    labels[0, 2:] = -100
    batch = dict(prompt)
    for name, value in prompt.items():
        if value.shape == (rows, start):
            fill = torch.cat([torch.ones(rows, 1, dtype=value.dtype), (labels != -100).to(value.dtype)], -1)
            if name != "attention_mask":  # to PaliGemma 1 is an answer, to the others 0 is no image
                fill = torch.full_like(fill, family.startswith("paligemma"))
            batch[name] = torch.cat([value, fill], -1)
    batch["input_ids"] = torch.cat([prompt["input_ids"], torch.full((rows, 1), 7), answer], -1)
    batch["labels"] = torch.cat([torch.full((rows, start + 1), -100), labels], -1)
    return {**batch, "start": start, "placed": Places([BOXES] * rows, [(32, 32)] * rows)}


def whole_loss(model, weights, batch):
    """The loss by one dense pass over everything, with eager attention maps: slow, and nothing of the engine in it."""
    batch = dict(batch)
    start, boxes = batch.pop("start"), [[own] for own in batch.pop("placed").boxes]
    rows = weights.glimpse()

    def put(number):
        def hook(layer, args, kwargs):
            hidden = args[0].clone()
            hidden[:, start] = rows[number] + (hidden[:, start] if number else 0)
            return (hidden, *args[1:]), kwargs

        return hook

    layers = family_of(model).parts(model).layers
    handles = [layer.register_forward_pre_hook(put(n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        out = model(**batch, output_attentions=True, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    looking = Looking(layer=weights.config.layer, vision=weights.config.vision_layers)
    prompt = {
        name: value[:, :start] if value.shape == batch["labels"].shape else value for name, value in batch.items()
    }
    del prompt["labels"]
    with torch.no_grad(), looking(model):
        model(**prompt)
    tokens = looking.seen[0]
    row = out.attentions[weights.config.layer - 1][:, :, start]
    logits = torch.zeros(tokens.valid.shape)
    for sample, places in enumerate(visual({"input_ids": batch["input_ids"][:, :start]})):
        number = int(places.sum())
        own = row[sample][:, :start][:, places].T
        inside = own > 0
        own = torch.where(inside, own, 1).log()  # a logarithm of 0 would have no gradient
        own = torch.where(inside, own, own.amin(0))
        one = torch.nn.functional.pad(own, (0, 0, 0, tokens.valid.shape[1] - number))
        single = type(tokens)(
            **{
                **{name: getattr(tokens, name) for name in tokens.__dataclass_fields__},
                **{
                    name: getattr(tokens, name)[sample : sample + 1]
                    for name in ("valid", "grid", "row", "column", "grids")
                },
            }
        )
        segments = Segments.of(single)
        cell = torch.stack([single.row, single.column], -1).clamp(min=0)
        vision = [segments.pick(value[sample : sample + 1]) for value in tokens.vision]
        said = weights.predictor(segments.pick(one[None]), vision, segments.pick(cell), segments)
        logits[sample] = segments.put(said, single.valid.shape, 0)[0]
    target = target_masks(boxes, tokens.grids)
    return out.loss + localisation_loss(logits, target, tokens.valid)[0]


@pytest.mark.parametrize("family", [one for one in ATTENTIVE if one in SEEING])
@pytest.mark.parametrize("layout", ROWS)
def test_loss_and_gradients_equal_one_whole_pass(family, layout):
    weights = glimpse(attention="log_softmax", **condition_of(family))
    batch = batch_of(family, layout)
    if family in IN_PARTS:
        batch["placed"] = Places([()] * len(batch["labels"]), batch["placed"].sizes)
    learner = GlimpseForTraining(LoadedModel(family, build(family), PROCESSOR, str), weights, Weighing(), dropout=0.0)
    ours = learner(**batch)["loss"]
    ours.backward()
    gradients = {name: value.grad.clone() for name, value in weights.named_parameters() if value.grad is not None}
    weights.zero_grad()
    theirs = whole_loss(build(family, "eager"), weights, batch)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    theirs.backward()
    assert gradients["glimpse.rows"].abs().amax((1, 2)).min() > 0, "every row learns"
    for name, value in weights.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(gradients[name], value.grad, atol=2e-3, rtol=2e-3, msg=name)


def condition_of(family):
    """Sizes of weights that take two vision layers of the family's tiny model."""
    width = family_of(build(family)).vision_width(build(family).config)
    return {"vision_layers": (2, 0), "vision_size": width, "condition_size": 16}


@pytest.fixture(scope="module")
def loaded():
    loaded = load_model("tiny")
    loaded.model.requires_grad_(False)
    return loaded


def test_collate(loaded):
    samples = from_scenes(4, 7).items
    batch = collate(loaded, samples)
    tokenizer = loaded.processor.tokenizer
    for row, sample in enumerate(samples):
        answer = batch["labels"][row][batch["labels"][row] != -100]
        assert tokenizer.decode(answer[:-1]) == sample.answer
        assert answer[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(batch["input_ids"][row, : batch["start"]])
        assert sample.question in text
        assert text.endswith("ASSISTANT:")
    assert (batch["labels"][:, batch["start"]] == -100).all(), "the glimpse token itself is not said by anyone"
    assert (batch["labels"][:, batch["start"] + 1] != -100).all()
    assert batch["attention_mask"][:, batch["start"]].all()
    assert batch["placed"] == Places([sample.boxes for sample in samples], [(256, 256)] * 4)


def test_a_few_steps_lower_the_loss_and_leave_the_model_alone(loaded):
    torch.manual_seed(0)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    weights = GlimpseModules(GlimpseConfig(12, 192, 6, 8, size=32, condition_size=32))
    learner = GlimpseForTraining(loaded, weights, Weighing(), dropout=0.0)
    assert {name.partition(".")[0] for name, _ in learner.named_parameters()} == {"learned"}
    batch = collate(loaded, from_scenes(8, 7).items)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        found = learner(**batch)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        losses.append(float(found["loss"].detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert {"loss", "answer_loss", "dice", "bce", "recall", "kept"} == set(found)
    assert all(torch.equal(before[name], value) for name, value in loaded.model.state_dict().items())
    assert not any(value.grad is not None for value in loaded.model.parameters())


def test_samples_without_boxes_teach_the_answer_only(loaded):
    weights = GlimpseModules(GlimpseConfig(12, 192, 6, 8, size=32, condition_size=32))
    learner = GlimpseForTraining(loaded, weights, Weighing(), dropout=0.0)
    batch = collate(loaded, from_scenes(2, 7).items)
    found = learner(**{**batch, "placed": Places([(), ()], [(224, 224)] * 2)})
    assert float(found["loss"].detach()) == pytest.approx(float(found["answer_loss"]))
