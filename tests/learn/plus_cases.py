"""A trainer of the embedded model on a few scenes."""

import copy
import dataclasses
import functools

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from foveate.engine.arguments import cache_of
from foveate.learn.data import GroundedSamples, from_scenes
from foveate.learn.glimpse_plus.config import PlusSettings
from foveate.learn.glimpse_plus.rewards import exact_match
from foveate.learn.glimpse_plus.setup import load_for, make_trainer

# so hot that words are drawn nearly evenly: that all answers of a group are the same is out of the question
ANY_WORD = 100.0
# TRL 1.16 itself still uses the old name, at home and on the model
TRL_IS_LATE = "ignore:.*(gradient_checkpointing|is_gradient_checkpointing).*:FutureWarning"
SETTINGS = PlusSettings(
    model="tiny",
    suite="scenes",
    samples=24,
    held_out=8,
    prompts=2,
    micro_batch=4,
    max_steps=2,
    max_completion=6,
    lora_dropout=0.0,
    save_every=1,
    glimpse=None,
)


@functools.cache
def scenes(number=24, seed=5):
    """Samples with boxes."""
    found = from_scenes(number, seed)
    return dataclasses.replace(found, items=tuple(item for item in found.items if item.boxes))


def first(number):
    """So many of them."""
    return GroundedSamples(scenes().items[:number], "a few scenes", f"{number}")


def words(replies):
    """A reward of what was said that differs between any two answers of a batch, whatever was drawn."""
    return [float(7 * place + sum(map(ord, one.given)) % 7) for place, one in enumerate(replies)]


def trainer(folder, settings=SETTINGS, items=None, reward=exact_match):
    """One that is ready."""
    items = scenes().items if items is None else items
    return make_trainer(settings, items, load_for(settings, "cpu"), reward, folder)


def stir(model, size=0.05, seed=0):
    """Give an adapter, which starts at nothing, something to say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(size * torch.randn(weight.shape, generator=generator))


class Said(LogitsProcessor):
    """Words by place in the batch and in the answer; each row ends after its own number of them."""

    def __init__(self, start, end):
        self.start, self.end = start, end

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self.start
        words = [
            self.end if step == 2 + row % 4 else 40 + (7 * row + 3 * step) % 60 for row in range(input_ids.shape[0])
        ]
        only = torch.full_like(scores, -torch.inf)
        only[torch.arange(len(words)), words] = 0
        return only


def say_apart(trainer):
    """In place of draws, whose outcome hangs on the processor: answers of several lengths, no two alike in a group.

    The logits that a sampling returns stay the model's own. What is drawn next is the same after every sampling.
    """
    base = trainer.accelerator.unwrap_model(trainer.model).get_base_model()
    plain = base.generate

    def generate(*args, input_ids, generation_config, **kwargs):
        said = Said(input_ids.shape[1], trainer.processing_class.tokenizer.eos_token_id)
        output = plain(
            *args,
            input_ids=input_ids,
            generation_config=generation_config,
            logits_processor=LogitsProcessorList([said]),
            **kwargs,
        )
        torch.manual_seed(0)
        return output

    base.generate = generate


def rows(trainer, numbers):
    """What TRL hands to a step: each sample as often as answers are drawn."""
    return [trainer.train_dataset[number] for number in numbers for _ in range(trainer.num_generations)]


def watch_sampling(trainer, monkeypatch):
    """A list that gets (sequences, logits, cache) of each sampling."""
    base = trainer.accelerator.unwrap_model(trainer.model).get_base_model()
    plain, seen = base.generate, []

    def generate(*args, generation_config, **kwargs):
        asked = copy.deepcopy(generation_config)
        asked.output_logits = asked.return_dict_in_generate = True
        output = plain(*args, generation_config=asked, **kwargs)
        seen.append((output.sequences, torch.stack(output.logits, 1), cache_of(output)))
        return output.sequences

    monkeypatch.setattr(base, "generate", generate)
    return seen
