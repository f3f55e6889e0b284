"""A model in the hands of PEFT, of a Trainer, of a pipeline; and what is said where nothing can be done."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments, pipeline

import foveate
from foveate.errors import UnsupportedModelError
from tests.laws.methods import METHODS
from tests.models.build import build, inputs, visual

PRUNER = METHODS["fastv"]


def kept(handle):
    return [[row.tolist() for row in stage.kept] for stage in handle.report.stages]


def labelled(family):
    batch = inputs(family, "ragged")
    labels = batch["input_ids"].clone()
    labels[:, :-3] = -100
    return {**batch, "labels": labels}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_labels_anchor_the_question_through_peft_too(family):
    """PEFT calls the model's `forward`, where hooks on the model itself do not run."""
    peft = pytest.importorskip("peft")
    model, batch = copy.deepcopy(build(family)), labelled(family)
    with torch.no_grad():
        with foveate.attach(model, PRUNER) as plain:
            model(**batch)
        with foveate.attach(model, PRUNER) as unlabelled:
            model(**{name: value for name, value in batch.items() if name != "labels"})
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
        with foveate.attach(adapted, PRUNER) as handle:
            adapted(**batch)
    assert kept(handle) == kept(plain) != kept(unlabelled)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # its new name is newer than 5.4
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_trainer(tmp_path, checkpointing):
    pytest.importorskip("accelerate")
    model, sample = copy.deepcopy(build("llava")), labelled("llava")
    before = model.get_decoder().layers[5].mlp.down_proj.weight.clone()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        **({"gradient_checkpointing": True} if checkpointing else {}),
        remove_unused_columns=True,  # by the signature of `forward`, which must not be hidden
        dataloader_pin_memory=False,
    )
    handle = foveate.attach(model, PRUNER)
    trainer = Trainer(model=model, args=arguments, train_dataset=[sample], data_collator=lambda samples: samples[0])
    trainer.train()
    assert len(handle.report.prefills) == 1
    assert handle.report.last_layer_tokens < 0.5
    assert not torch.equal(before, model.get_decoder().layers[5].mlp.down_proj.weight)
    handle.detach()
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_embeddings_with_images_merged_in(family):
    """Nobody can see where the images are: the report says so; told by mm_token_type_ids, it is like ids."""
    model, batch = build(family), inputs(family, "ragged")
    given = {}
    hook = model.get_decoder().register_forward_pre_hook(lambda *args: given.update(args[-1]), with_kwargs=True)
    with torch.no_grad():
        with foveate.attach(model, PRUNER) as expected:
            dense = model(**batch).logits
        hook.remove()
        merged = {"inputs_embeds": given["inputs_embeds"], "attention_mask": batch["attention_mask"]}
        merged["position_ids"] = given["position_ids"]
        with foveate.attach(model, PRUNER) as handle:
            model(**merged)
            assert "mm_token_type_ids" in handle.report.skipped
            found = model(**merged, mm_token_type_ids=visual(batch).int()).logits
    assert kept(handle) == kept(expected)
    torch.testing.assert_close(found, dense, atol=1e-5, rtol=0)


@pytest.mark.parametrize("number", [1, 2])
def test_pipeline(number):
    """One prompt, and a batch of two with different questions; the measure is `generate()`, pruned."""
    model, processor = foveate.tiny.load()
    images = [foveate.tiny.make_scene(np.random.default_rng(seed)).pil() for seed in range(number)]
    questions = ["how many circles are there?", "what is the color of the circle?"][:number]
    prompts = [foveate.tiny.prompt(question) for question in questions]
    given = processor(images=[[image] for image in images], text=prompts, padding=True, return_tensors="pt")
    with PRUNER(model) as plain:
        out = model.generate(**given, max_new_tokens=4, do_sample=False)
    expected = processor.batch_decode(out[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    with PRUNER(pipe.model) as handle:
        answers = pipe(
            images=[[image] for image in images],
            text=prompts,
            batch_size=number,
            max_new_tokens=4,
            generate_kwargs={"do_sample": False},
            return_full_text=False,
        )
    assert kept(handle) == kept(plain)
    assert [answer["generated_text"].strip() for answer in answers] == [text.strip() for text in expected]


def test_what_cannot_be_done_with_an_attached_model_is_said():
    model = copy.deepcopy(build("llava"))
    with foveate.attach(model, PRUNER):
        for copying in (copy.deepcopy, pickle.dumps):
            with pytest.raises(UnsupportedModelError, match="detach first"):
                copying(model)
        with pytest.raises(UnsupportedModelError, match="DataParallel"):
            model._replicate_for_data_parallel()(**inputs("llava", "ragged"))
    copy.deepcopy(model)
