"""What GlimpsePrune+ trains: data, model with adapter, pruner, and TRL's settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveate.families import family_of, find_runs, visual_mask
from foveate.learn import data as grounded
from foveate.learn.data import GroundedSample, GroundedSamples
from foveate.learn.errors import TrainingError
from foveate.learn.glimpse.targets import target_mask
from foveate.learn.glimpse_plus.config import PlusSettings
from foveate.learn.glimpse_plus.pruner import GivenBoxes
from foveate.learn.glimpse_plus.rewards import Reply, Reward, score
from foveate.measure.loading import LoadedModel, load_model
from foveate.pruners import METHODS, Pruner, load, make

Progress = Callable[[str, int, int], None]


def load_for(settings: PlusSettings, device: str) -> LoadedModel:
    """The model before training, in the type that it is trained in."""
    return load_model(settings.model, device, "bfloat16" if settings.bf16 else "auto")


def load_samples(
    settings: PlusSettings, progress: Progress | None = None
) -> tuple[GroundedSamples, Sequence[GroundedSample]]:
    """What the settings train on, and what is only looked at.

    Raises
    ------
    TrainingDataError
        It cannot be read, or there is less than is asked for.
    TrainingError
        Not one of data, dataset and suite was given.
    """
    given = [name for name in ("data", "dataset", "suite") if getattr(settings, name) is not None]
    if len(given) != 1:
        raise TrainingError(f"give one of data, dataset and suite, not {' and '.join(given) or 'none'}")
    if settings.suite is not None:
        if settings.suite not in grounded.SUITES:
            raise TrainingError(f"no suite '{settings.suite}' to train on; there are {', '.join(grounded.SUITES)}")
        draw = grounded.SUITES[settings.suite]
        apart = draw(max(settings.held_out, 1), settings.seed + 1, progress=progress).items[: settings.held_out]
        return draw(settings.samples, settings.seed, progress=progress), apart
    if settings.data is not None:
        found = grounded.from_jsonl(settings.data, settings.images, settings.skip_bad)
    else:
        found = grounded.from_datasets(str(settings.dataset), skip_bad=settings.skip_bad)
    return grounded.split(found, settings.samples, settings.held_out, settings.seed)


def chooser(settings: PlusSettings) -> Pruner | None:
    """Who selects for samples without boxes."""
    if settings.predictor is None:
        return None
    return make(settings.predictor) if settings.predictor in METHODS else load(settings.predictor)


def usable(
    settings: PlusSettings, items: Sequence[GroundedSample], loaded: LoadedModel, progress: Progress | None
) -> tuple[list[GroundedSample], int]:
    """The samples whose prompts are short enough, whole and pruned, and how many are not.

    Raises
    ------
    TrainingError
        None is; or one has no boxes, and there is no predictor.
    """
    bare = sum(not item.boxes for item in items)
    if settings.pruned and bare and settings.predictor is None:
        raise TrainingError(
            f"{bare} of {len(items)} samples have no boxes: give `predictor`, a pruner that chooses for them, or "
            "leave them out"
        )
    kept = list(items)
    if settings.max_prompt is not None or settings.max_pruned_prompt is not None:
        kept = []
        for number, item in enumerate(items, 1):
            if _short_enough(settings, item, loaded):
                kept.append(item)
            if progress:
                progress("measuring the prompts", number, len(items))
    if not kept:
        limits = {"": settings.max_prompt, " once pruned": settings.max_pruned_prompt}
        told = " and ".join(f"{most} tokens{when}" for when, most in limits.items() if most is not None)
        raise TrainingError(f"no sample has a prompt of at most {told}")
    return kept, len(items) - len(kept)


def _short_enough(settings: PlusSettings, item: GroundedSample, loaded: LoadedModel) -> bool:
    """Whether a sample's prompt, whole and with what lies under its boxes, is no longer than the settings say."""
    image = item.image()
    inputs = loaded.inputs([item.question], [[image]])
    length = int(inputs["input_ids"].shape[1])
    if settings.max_prompt is not None and length > settings.max_prompt:
        return False
    if settings.max_pruned_prompt is None or length <= settings.max_pruned_prompt or not item.boxes:
        return True
    family = family_of(loaded.model)
    visual = visual_mask(family.parts(loaded.model), inputs)
    if visual is None:
        return True
    runs = find_runs(visual.cpu(), inputs["input_ids"].cpu())
    images = family.image_grids(loaded.model.config, inputs, runs)
    grids = family.place(images[0], image.size, loaded.processor) if images else ()
    if not grids or any(not grid.known or grid.region is None for grid in grids):
        return True
    gone = int(visual.sum()) - int(target_mask(item.boxes, grids).sum())
    return length - gone <= settings.max_pruned_prompt


def make_trainer(
    settings: PlusSettings,
    items: Sequence[GroundedSample],
    loaded: LoadedModel,
    reward: Reward,
    folder: Path,
    progress: Progress | None = None,
) -> Any:
    """The trainer; the model in `loaded` gets its adapter."""
    from peft import LoraConfig
    from transformers import PrinterCallback

    from foveate.learn.glimpse_plus.trainer import PlusTrainer, ShowSteps

    pruner, processor = None, loaded.processor
    if settings.pruned:
        place = functools.partial(family_of(loaded.model).place, processor=processor)
        pruner = GivenBoxes(otherwise=chooser(settings), layer=settings.layer, place=place)
    processor.tokenizer.padding_side = "left"
    if not getattr(processor, "chat_template", None):
        processor.chat_template = _plain_template(processor)
    adapter = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=linear_layers(loaded.model),
    )
    trainer = PlusTrainer(
        samples=items,
        pruner=pruner,
        model=loaded.model,
        reward_funcs=_for_trl(reward, items),
        args=grpo_config(settings, folder, loaded.model.device),
        train_dataset=data_set(items),
        processing_class=processor,
        peft_config=adapter,
        callbacks=[ShowSteps(progress)] if progress else None,
    )
    trainer.remove_callback(PrinterCallback)  # all figures are in the report
    return trainer


def grpo_config(settings: PlusSettings, folder: Path, device: torch.device) -> Any:
    """TRL's settings: one update for each batch of answers, the mean over an answer and then over answers."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(folder),
        num_generations=settings.group,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.prompts * settings.group // settings.micro_batch,
        num_iterations=1,
        loss_type="grpo",  # the original objective; TRL's default weighs long answers more
        scale_rewards="group",
        beta=settings.beta,
        temperature=settings.temperature,
        max_completion_length=settings.max_completion,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        max_grad_norm=settings.grad_norm,
        bf16=settings.bf16,
        seed=settings.seed,
        gradient_checkpointing=settings.gradient_checkpointing,
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
    )


def linear_layers(model: Any) -> list[str]:
    """Names of all linear layers of the language model, its head apart."""
    decoder = family_of(model).parts(model).decoder
    inside = {id(module) for module in decoder.modules() if isinstance(module, nn.Linear)}
    return [name for name, module in model.named_modules() if id(module) in inside]


def data_set(items: Sequence[GroundedSample]) -> Any:
    """What TRL reads: the sample's number, its question and its image, which is opened when it is wanted."""
    from datasets import Dataset

    def show(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        numbers = batch["sample"]
        return {
            "sample": numbers,
            "prompt": [[{"role": "user", "content": items[number].question}] for number in numbers],
            "images": [[items[number].image()] for number in numbers],
        }

    return Dataset.from_dict({"sample": list(range(len(items)))}).with_transform(show)


def _for_trl(reward: Reward, items: Sequence[GroundedSample]) -> Callable[..., list[float]]:
    def reward_of(completions: list[Any], sample: list[int], **_: Any) -> list[float]:
        said = [one if isinstance(one, str) else one[0]["content"] for one in completions]
        asked = [items[number] for number in sample]
        replies = [Reply(one.question, text, one.answer, one.task) for text, one in zip(said, asked, strict=True)]
        return score(reward, replies)

    return reward_of


def _plain_template(processor: Any) -> str:
    """The form that `load_model` uses for a processor without a template, as one."""
    token = getattr(processor, "image_token", "<image>")
    return (
        "{% for message in messages %}{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] if part['type'] == 'image' %}{{ '" + token + "' }}{% endfor %}{{ '\\n' }}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
        "{{ ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
