import dataclasses
import math

import pytest
import torch

pytest.importorskip("trl", reason="needs the extra `train`")

from trl import GRPOConfig

from foveate.errors import BudgetError
from foveate.learn.data import GroundedSample
from foveate.learn.errors import TrainingError
from foveate.learn.glimpse.targets import target_mask
from foveate.learn.glimpse_plus.pruner import GivenBoxes
from foveate.learn.glimpse_plus.rewards import exact_match
from foveate.learn.glimpse_plus.setup import grpo_config, usable
from foveate.learn.glimpse_plus.trainer import INDEX, check_possible
from foveate.pruners import BTP, FastV
from tests.families.test_processing import VISION, needs_images, picture, qwen_folder, tokenizer
from tests.learn.plus_cases import (
    ANY_WORD,
    SETTINGS,
    TRL_IS_LATE,
    first,
    rows,
    say_apart,
    scenes,
    stir,
    trainer,
    watch_sampling,
    words,
)
from tests.models.build import build
from tests.models.images import IMAGE, VIDEO, VISION_END, VISION_START
from tests.models.sizes import PAD

pytestmark = pytest.mark.filterwarnings(TRL_IS_LATE)
CUT, DEPTH, VISUAL = 8, 12, 256  # of the embedded model


def sampled_logps(sequences, logits, answers):
    """(B, C) log-probability of each token at the moment when it was drawn."""
    drawn = sequences[:, -logits.shape[1] :]
    return logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0][:, : answers.shape[1]]


@pytest.fixture
def stirred(tmp_path):
    """Answers of different lengths from an adapter that says something, without dropout."""
    one = trainer(tmp_path, dataclasses.replace(SETTINGS, temperature=2.0), reward=words)
    stir(one.model)
    say_apart(one)
    one.model.train()
    return one


def scored(trainer, batch):
    """Log-probabilities as the loss has them."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    trainer._rows = batch[INDEX].tolist()
    with torch.no_grad():
        found = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            ids,
            mask,
            batch["completion_ids"].shape[1],
            compute_entropy=True,
            pixel_values=batch["pixel_values"],
            num_images=batch["num_images"],
        )
    return found[0], found[1]


def test_scoring_equals_sampling_for_every_answer_of_a_ragged_batch(stirred, monkeypatch):
    seen = watch_sampling(stirred, monkeypatch)
    batch = stirred._generate_and_score_completions(rows(stirred, [0, 3, 5, 7]))
    ((sequences, logits, _),) = seen
    mask = batch["completion_mask"].bool()
    assert len(set(mask.sum(-1).tolist())) > 1  # answers of several lengths,
    assert len(set(batch["prompt_mask"].sum(-1).tolist())) > 1  # behind prompts of several lengths
    drawn = sampled_logps(sequences, logits / 2.0, batch["completion_ids"])
    found, entropy = scored(stirred, batch)
    torch.testing.assert_close(found[mask], drawn[mask], atol=1e-4, rtol=0)
    distribution = (logits / 2.0).log_softmax(-1)
    expected = -(distribution.exp() * distribution).sum(-1)[:, : mask.shape[1]]
    torch.testing.assert_close(entropy[mask], expected[mask], atol=1e-4, rtol=0)


def test_scoring_without_the_sample_s_own_boxes_differs(stirred, monkeypatch):
    """What the test above would see if boxes got lost on the way."""
    seen = watch_sampling(stirred, monkeypatch)
    batch = stirred._generate_and_score_completions(rows(stirred, [0, 3, 5, 7]))
    ((sequences, logits, _),) = seen
    mask = batch["completion_mask"].bool()
    drawn = sampled_logps(sequences, logits / 2.0, batch["completion_ids"])
    batch[INDEX] = batch[INDEX].roll(4)
    assert (scored(stirred, batch)[0] - drawn)[mask].abs().max() > 1e-2
    stirred._pruner = None  # TRL's own pass, over all visual tokens
    assert (scored(stirred, batch)[0] - drawn)[mask].abs().max() > 1e-2


def test_trl_s_own_pass_with_the_pruner_attached_is_not_what_sampling_computed(stirred, monkeypatch):
    """Why the trainer replaces it."""
    from foveate.learn.glimpse_plus.trainer import PlusTrainer

    seen = watch_sampling(stirred, monkeypatch)
    batch = stirred._generate_and_score_completions(rows(stirred, [0, 3]))
    ((sequences, logits, _),) = seen
    mask = batch["completion_mask"].bool()
    drawn = sampled_logps(sequences, logits / 2.0, batch["completion_ids"])
    monkeypatch.setattr(PlusTrainer, "_pruned_scores", lambda self, model, answer: model)
    with stirred._pruned(batch[INDEX].tolist()):
        assert (scored(stirred, batch)[0] - drawn)[mask].abs().max() > 1e-2


def test_each_answer_keeps_its_boxes_through_shuffling_and_small_passes(stirred, monkeypatch):
    seen = watch_sampling(stirred, monkeypatch)
    plain, found = stirred._get_per_token_logps_and_entropies, []

    def listen(*args, **kwargs):
        output = plain(*args, **kwargs)
        found.append(output[0].detach())
        return output

    monkeypatch.setattr(stirred, "_get_per_token_logps_and_entropies", listen)
    stirred.current_gradient_accumulation_steps = 2
    first_pass = stirred._prepare_inputs(rows(stirred, [0, 3]))
    found.clear()  # the reference's
    stirred.compute_loss(stirred.model, first_pass)
    stirred._step += 1
    second_pass = stirred._prepare_inputs(rows(stirred, [0, 3]))
    stirred.compute_loss(stirred.model, second_pass)
    ((sequences, logits, _),) = seen
    order = torch.cat([first_pass[INDEX], second_pass[INDEX]])
    assert order.sort().values.tolist() == [0] * 4 + [3] * 4
    assert order.tolist() != [0] * 4 + [3] * 4
    for batch, logps in zip([first_pass, second_pass], found, strict=True):
        answered = batch["completion_mask"].bool()
        for row, (said, mask) in enumerate(zip(batch["completion_ids"], answered, strict=True)):
            prompt = batch["prompt_ids"][row]
            same = (sequences == torch.cat([prompt, said])[None, : sequences.shape[1]]).all(-1).nonzero()[0]
            drawn = sampled_logps(sequences[same], logits[same] / 2.0, said[None])[0]
            torch.testing.assert_close(logps[row][mask], drawn[mask], atol=1e-4, rtol=0)


def qwen_samples():
    """Pictures of several sizes, with one box each or none."""
    return [
        GroundedSample("w1 w2 w3" + " w4" * number, "w5", picture(16 * wide, 16 * high, number), boxes)
        for number, (wide, high, boxes) in enumerate(
            [(2, 3, ((0.0, 0.0, 0.5, 0.5),)), (4, 2, ()), (3, 5, ((0.4, 0.1, 0.9, 0.9),)), (2, 2, ((0.9, 0.9, 1, 1),))]
        )
    ]


@needs_images
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_scoring_equals_sampling_for_images_of_many_sizes(tmp_path, family, monkeypatch):
    names = [f"w{number}" for number in range(128)]
    names[PAD], names[1], names[2] = "<pad>", "<unk>", "</s>"
    names[VISION_START], names[VISION_END], names[IMAGE], names[VIDEO] = VISION
    folder = qwen_folder(tmp_path, family, "new", tokenizer(names), patch=4)
    build(family).save_pretrained(folder)
    settings = dataclasses.replace(SETTINGS, model=str(folder), predictor="glimpseprune")
    one = trainer(tmp_path / "run", settings, qwen_samples(), words)
    stir(one.model)
    one.model.train()
    found, seen = [], watch_sampling(one, monkeypatch)
    plain = one._get_per_token_logps_and_entropies

    def listen(*args, **kwargs):
        output = plain(*args, **kwargs)
        found.append(output[0].detach())
        return output

    monkeypatch.setattr(one, "_get_per_token_logps_and_entropies", listen)
    one.args.steps_per_generation = one.current_gradient_accumulation_steps = 4
    batches = []
    for step in range(4):
        one._step = step
        batches.append(one._prepare_inputs(rows(one, [0, 1, 2, 3])))
        found[:] = found[1:] if step == 0 else found  # the reference's
        one.compute_loss(one.model, batches[-1])
    found = found[-4:]
    ((sequences, logits, cache),) = seen
    assert len({int((layer.slots >= 0).sum(-1).min()) for layer in cache.layers}) == 1
    for batch, logps in zip(batches, found, strict=True):
        for row, mask in enumerate(batch["completion_mask"].bool()):
            whole = torch.cat([batch["prompt_ids"][row], batch["completion_ids"][row]])[: sequences.shape[1]]
            same = (sequences == whole).all(-1).nonzero()[0]
            drawn = sampled_logps(sequences[same], logits[same], batch["completion_ids"][row][None])[0]
            torch.testing.assert_close(logps[row][mask], drawn[mask], atol=1e-4, rtol=0)


def test_the_reference_is_the_model_without_adapter(stirred, tmp_path, monkeypatch):
    batch = stirred._generate_and_score_completions(rows(stirred, [0, 3]))
    mask = batch["completion_mask"].bool()
    plain = trainer(tmp_path / "plain", dataclasses.replace(SETTINGS, temperature=2.0))
    expected, _ = scored(plain, batch)  # an adapter that says nothing yet
    torch.testing.assert_close(batch["ref_per_token_logps"][mask], expected[mask], atol=1e-5, rtol=0)
    assert (scored(stirred, batch)[0] - expected)[mask].abs().max() > 1e-2


def test_while_answering_every_layer_holds_what_the_boxes_keep(stirred, monkeypatch):
    seen = watch_sampling(stirred, monkeypatch)
    batch = stirred._generate_and_score_completions(rows(stirred, [0, 3, 5]))
    ((sequences, _, cache),) = seen
    kept = [
        int(target_mask(scenes().items[number].boxes, grid_of_the_model()).sum()) for number in batch[INDEX].tolist()
    ]
    assert len(set(kept)) > 1
    text = (batch["prompt_mask"].sum(-1) - VISUAL).tolist()
    answered = sequences.shape[1] - batch["prompt_ids"].shape[1] - 1  # the last word is not in the cache
    longest = max(one + other for one, other in zip(kept, text, strict=True)) + answered
    assert [layer.keys.shape[2] for layer in cache.layers] == [longest] * DEPTH
    for layer in cache.layers:
        assert (layer.slots >= 0).sum(-1).tolist() == [
            one + other + answered for one, other in zip(kept, text, strict=True)
        ]
    share = stirred._metrics["train"]["kept"][-1]
    assert share == pytest.approx(sum(kept) / len(kept) / VISUAL)


def grid_of_the_model():
    from foveate.families import Grid

    return (Grid(16, 16),)


def test_one_step_changes_the_adapter_and_nothing_else(tmp_path):
    one = trainer(tmp_path, dataclasses.replace(SETTINGS, max_steps=1, temperature=ANY_WORD, warmup=0.0), reward=words)
    before = {name: weight.detach().clone() for name, weight in one.model.named_parameters()}
    one.train()
    changed = {name for name, weight in one.model.named_parameters() if not torch.equal(weight, before[name])}
    adapter = {name for name in before if "lora_" in name}
    assert changed == {name for name in adapter if "lora_B" in name}  # A moves once B is not zero
    assert len(adapter) == 2 * 7 * DEPTH  # all linear layers of the language model,
    assert all("language_model" in name for name in adapter)  # and no other
    (entry,) = [entry for entry in one.state.log_history if "seconds" in entry]
    assert math.isfinite(float(entry["loss"]))
    assert float(entry["grad_norm"]) > 0
    assert float(entry["kl"]) == pytest.approx(0, abs=1e-6)
    assert 0 < float(entry["kept"]) < 0.3
    assert float(entry["seconds"]) > 0
    assert float(entry["peak_bytes"]) > 1e8


def test_dense_is_trl_s_own(tmp_path, monkeypatch):
    settings = dataclasses.replace(SETTINGS, max_steps=1, pruned=False, temperature=ANY_WORD)
    one = trainer(tmp_path, settings, reward=words)
    seen = watch_sampling(one, monkeypatch)
    one.train()
    ((sequences, _, cache),) = seen
    assert all(layer.get_seq_length() == layer.keys.shape[2] == sequences.shape[1] - 1 for layer in cache.layers)
    (entry,) = [entry for entry in one.state.log_history if "seconds" in entry]
    assert "kept" not in entry
    assert float(entry["grad_norm"]) > 0


def test_gradients_flow_through_the_pruned_cache(stirred):
    """Moving the adapter against the gradient of one answer's log-probability by a little changes it as foretold."""
    batch = stirred._generate_and_score_completions(rows(stirred, [0]))
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    inputs = {"pixel_values": batch["pixel_values"], "num_images": batch["num_images"]}
    stirred._rows = batch[INDEX].tolist()

    def value():
        found, _, _ = stirred._get_per_token_logps_and_entropies(
            stirred.model, ids, mask, batch["completion_ids"].shape[1], **inputs
        )
        return (found * batch["completion_mask"])[0].double().sum()

    at = value()
    at.backward()
    weights = [weight for weight in stirred.model.parameters() if weight.requires_grad]
    below = [weight for name, weight in stirred.model.named_parameters() if "layers.0.self_attn.k_proj.lora_B" in name]
    assert below
    assert all(weight.grad.abs().sum() > 0 for weight in below)  # keys of layer 0 reach the answer by the cache alone
    norm = sum(float(weight.grad.square().sum()) for weight in weights) ** 0.5
    step = 0.01
    with torch.no_grad():
        for weight in weights:
            weight.add_(weight.grad, alpha=step / norm)
        assert float(value() - at) == pytest.approx(step * norm, rel=0.1)


def test_a_sample_without_boxes_needs_a_predictor(tmp_path):
    bare = [dataclasses.replace(item, boxes=()) if number == 1 else item for number, item in enumerate(first(4).items)]
    with pytest.raises(TrainingError, match="1 of 4 samples have no boxes"):
        usable(SETTINGS, bare, None, None)
    FastV(layer=6, keep=0.25, compact_cache=True).save_pretrained(tmp_path / "fastv")
    settings = dataclasses.replace(
        SETTINGS, predictor=str(tmp_path / "fastv"), max_prompt=None, max_pruned_prompt=None
    )
    assert usable(settings, bare, None, None) == (bare, 0)
    one = trainer(tmp_path, settings, bare)
    with one._pruned([0, 1]) as pruned:
        model = one.model.get_base_model()
        texts = one.processing_class(
            images=[bare[0].image(), bare[1].image()],
            text=["USER: <image>\nwhat? ASSISTANT:"] * 2,
            return_tensors="pt",
            padding=True,
        )
        model.generate(**texts, max_new_tokens=2, do_sample=False)
    (stage,) = pruned.report.stages
    assert stage.layer == 6  # the predictor's
    expected = int(target_mask(bare[0].boxes, grid_of_the_model()).sum())
    assert [len(kept) for kept in stage.kept] == [expected, round(0.25 * VISUAL)]


def test_the_cut_lies_at_two_thirds():
    assert [GivenBoxes().layers(depth) for depth in (28, 32, 36, 40, 12)] == [(19,), (22,), (24,), (27,), (8,)]
    assert GivenBoxes(layer=3).layers(12) == (3,)
    with pytest.raises(BudgetError, match="1 to 11"):
        GivenBoxes(layer=12).layers(12)
    with pytest.raises(BudgetError, match="cut once"):
        GivenBoxes(otherwise=BTP()).layers(12)


def test_long_prompts_are_left_out(tmp_path):
    from foveate.learn.glimpse_plus.setup import load_for

    loaded = load_for(SETTINGS, "cpu")
    items = first(6).items
    lengths = [loaded.inputs([item.question], [[item.image()]])["input_ids"].shape[1] for item in items]
    assert len(set(lengths)) > 1
    kept, left_out = usable(dataclasses.replace(SETTINGS, max_prompt=min(lengths)), items, loaded, None)
    assert kept == [item for item, length in zip(items, lengths, strict=True) if length == min(lengths)]
    assert left_out == len(items) - len(kept) > 0
    with pytest.raises(TrainingError, match="at most 3 tokens"):
        usable(dataclasses.replace(SETTINGS, max_prompt=3), items, loaded, None)


def test_prompts_that_are_long_even_when_pruned_are_left_out(tmp_path):
    from foveate.learn.glimpse_plus.setup import load_for

    loaded = load_for(SETTINGS, "cpu")
    items = [*first(5).items, dataclasses.replace(first(6).items[5], boxes=())]
    lengths = []
    for item in items:
        length = loaded.inputs([item.question], [[item.image()]])["input_ids"].shape[1]
        under = int(target_mask(item.boxes, grid_of_the_model()).sum())
        lengths.append(length - (VISUAL - under if item.boxes else 0))
    most = sorted(lengths[:5])[2]
    settings = dataclasses.replace(SETTINGS, max_pruned_prompt=most, predictor="glimpseprune")
    kept, left_out = usable(settings, items, loaded, None)
    few = [item for item, length in zip(items[:5], lengths[:5], strict=True) if length <= most]
    assert kept == [*few, items[5]]  # without boxes nobody knows yet
    assert left_out == 6 - len(kept) > 0
    assert usable(dataclasses.replace(settings, pruned=False), items, loaded, None) == (kept, left_out)
    assert usable(dataclasses.replace(settings, max_pruned_prompt=None), items, loaded, None) == (items, 0)
    with pytest.raises(TrainingError, match="6000 tokens and 3 tokens once pruned"):
        usable(dataclasses.replace(settings, max_pruned_prompt=3), items[:5], loaded, None)


@pytest.mark.parametrize(
    ("option", "told"),
    [("use_vllm", "vLLM"), ("use_transformers_continuous_batching", "paged"), ("gradient_checkpointing", "KV cache")],
)
def test_what_does_not_go_with_pruning_is_refused(tmp_path, option, told):
    options = {"output_dir": str(tmp_path), "bf16": False, "use_cpu": True, "gradient_checkpointing": False}
    args = GRPOConfig(**{**options, "per_device_train_batch_size": 4, "num_generations": 4})
    check_possible(args)
    setattr(args, option, True)
    with pytest.raises(TrainingError, match=told):
        check_possible(args)


def test_trl_is_told_the_published_objective(tmp_path):
    args = grpo_config(dataclasses.replace(SETTINGS, prompts=8, micro_batch=4), tmp_path, torch.device("cpu"))
    assert (args.loss_type, args.num_iterations, args.scale_rewards) == ("grpo", 1, "group")
    assert (args.steps_per_generation, args.gradient_accumulation_steps, args.generation_batch_size) == (8, 8, 32)
    assert (args.beta, args.temperature, args.lr_scheduler_type) == (0.04, 1.0, "cosine")


def test_rewards_meet_their_own_answers(tmp_path):
    one = trainer(tmp_path, items=first(3).items, reward=exact_match)
    (reward,) = one.reward_funcs
    said = [[{"role": "assistant", "content": first(3).items[number].answer.upper()}] for number in (2, 0, 0)]
    assert reward(completions=said, sample=[2, 0, 1], prompts=None) == [
        1.0,
        1.0,
        float(first(3).items[0].answer == first(3).items[1].answer),
    ]
