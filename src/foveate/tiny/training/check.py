"""Measure what the embedded model is wanted for: dense accuracy, the floor, evidence only, four simple selections."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from foveate.tiny.questions import SINGLE_EVIDENCE, TASKS, held_out, overlap
from foveate.tiny.training.language_stage import decoder_layer, layer_weights
from foveate.tiny.training.packing import PREFIX, TOKENS, masks
from foveate.tiny.vocabulary import ASSISTANT, EOS, NEWLINE, WORD_ID, question_ids

KEEP = 0.22
Select = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Items:
    """Single questions, teacher-forced: all answer tokens and the end right is what greedy decoding would get right.

    `tokens` (Q, 196, D) are the projected visual tokens, `cover` (Q, 196) the evidence's share of each patch.
    """

    tokens: torch.Tensor
    ids: torch.Tensor
    targets: torch.Tensor
    last: torch.Tensor
    cover: torch.Tensor
    tasks: np.ndarray


@torch.no_grad()
def make_items(model: torch.nn.Module, processor: object, n: int, seed: int) -> Items:
    """Held-out questions as tensors; the visual tokens come from the model's own `get_image_features`."""
    pairs = list(held_out(n, seed))
    images = [processor.image_processor(s.pil(), return_tensors="pt")["pixel_values"] for s, _ in pairs]
    images = torch.cat(images).to(model.dtype)
    tokens = []
    for i in range(0, n, 50):
        out = model.model.get_image_features(images[i : i + 50])
        out = out.pooler_output if hasattr(out, "pooler_output") else out
        tokens.append(
            torch.stack(list(out)) if isinstance(out, (list, tuple)) else out.view(-1, TOKENS, out.shape[-1])
        )
    heads = [[WORD_ID[NEWLINE], *question_ids(q.text), WORD_ID[ASSISTANT]] for _, q in pairs]
    tails = [[*question_ids(q.answer), WORD_ID[EOS]] for _, q in pairs]
    length = max(len(h) + len(t) - 1 for h, t in zip(heads, tails, strict=True))
    ids, targets = torch.zeros(n, length, dtype=torch.long), torch.full((n, length), -100)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        ids[row, : len(head) + len(tail) - 1] = torch.tensor(head + tail[:-1])
        targets[row, len(head) - 1 : len(head) + len(tail) - 1] = torch.tensor(tail)
    cover = torch.from_numpy(np.stack([overlap(q.boxes) for _, q in pairs])).float()
    last = torch.tensor([len(head) - 1 for head in heads])
    return Items(torch.cat(tokens), ids, targets, last, cover, np.array([q.task for _, q in pairs]))


@torch.no_grad()
def answer_right(
    model: torch.nn.Module, items: Items, select: Select | None = None, layer: int = 0, batch: int = 60
) -> np.ndarray:
    """Which questions are answered exactly, bool (Q,), if `select` hides visual tokens from layer `layer` on.

    `select(visual, prompt, index)` gets the hidden states of the visual tokens (B, 196, D) and of the last prompt
    token (B, D) at the input of that layer and the numbers of the questions (B,); it gives the kept ones, bool
    (B, 196). Positions stay those of the dense prompt.
    """
    language = model.model.language_model
    heads, front = language.config.num_attention_heads, len(PREFIX) + TOKENS
    right = []
    for index in torch.arange(len(items.ids)).split(batch):
        ids, size = items.ids[index], len(index)
        start = language.embed_tokens(torch.tensor(PREFIX)).expand(size, -1, -1)
        hidden = torch.cat([start, items.tokens[index], language.embed_tokens(ids)], 1)
        rope = language.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        mask = masks(torch.ones(size, TOKENS, dtype=torch.bool), hidden.dtype)
        for number, block in enumerate(language.layers):
            if number == layer and select is not None:
                prompt = hidden[torch.arange(size), front + items.last[index]]
                mask = masks(select(hidden[:, len(PREFIX) : front], prompt, index), hidden.dtype)
            hidden = decoder_layer(hidden, layer_weights(block), mask, rope, heads, ids.shape[1])
        guess = model.lm_head(language.norm(hidden[:, front:])).argmax(-1)
        targets = items.targets[index]
        right.append(((guess == targets) | (targets == -100)).all(1))
    return torch.cat(right).numpy()


def selections(items: Items, keep: int, seed: int) -> dict[str, Select]:
    """The simple ideas, and the oracle: evidence by overlap first, the rest at random."""
    from foveate.select import max_min_diversity, top_k

    chance = torch.rand(items.cover.shape, generator=torch.Generator().manual_seed(seed))
    unit = torch.nn.functional.normalize
    return {
        "oracle": lambda v, p, i: top_k(torch.where(items.cover[i] >= 0.1, 1 + items.cover[i], chance[i]), keep),
        "random": lambda v, p, i: top_k(chance[i], keep),
        "saliency": lambda v, p, i: top_k((unit(v, dim=-1) @ unit(p, dim=-1)[..., None])[..., 0], keep),
        "diversity": lambda v, p, i: max_min_diversity(v, keep),
    }


def check(model: torch.nn.Module, processor: object, n: int = 900, seed: int = 1) -> dict:
    """All figures of the table, in per cent; `n` questions, the nine tasks equally often."""
    items = make_items(model, processor, n, seed)
    single = np.isin(items.tasks, SINGLE_EVIDENCE)
    dense = answer_right(model, items)

    def figures(right: np.ndarray) -> dict:
        by_task = {task: 100 * float(right[items.tasks == task].mean()) for task in TASKS}
        return {"all": 100 * float(right.mean()), "of_dense": 100 * float(right.mean() / dense.mean()), **by_task}

    out = {"dense": figures(dense)}
    # Another question of the same task lends its scene, so that even the kind of scene fits.
    other = Items(items.tokens.roll(len(TASKS), 0), items.ids, items.targets, items.last, items.cover, items.tasks)
    out["wrong scene"] = figures(answer_right(model, other))
    for layer in (0, 2):
        only = answer_right(model, items, lambda v, p, i: items.cover[i] >= 0.1, layer)
        out[f"evidence only, layer {layer}"] = {
            **figures(only),
            "single_of_dense": 100 * float(only[single].mean() / dense[single].mean()),
        }
        for name, select in selections(items, round(KEEP * TOKENS), seed).items():
            out[f"{name}, layer {layer}"] = figures(answer_right(model, items, select, layer))
    return out


def verdict(table: dict) -> list[tuple[str, float, str, bool]]:
    """What was wanted: name, figure, bound, met or not."""
    dense = table["dense"]
    rows = [("dense, all tasks", dense["all"], ">= 90")]
    rows += [(f"dense, {task}", dense[task], ">= 75" if task == "count" else ">= 85") for task in TASKS]
    rows += [("scene of another question", table["wrong scene"]["all"], "<= 25")]
    for layer in (0, 2):
        only = table[f"evidence only, layer {layer}"]["single_of_dense"]
        rows += [(f"evidence only before {layer}, % of dense, single-evidence tasks", only, ">= 97")]
        rows += [(f"oracle 0.22 before {layer}, % of dense", table[f"oracle, layer {layer}"]["of_dense"], ">= 98")]
        for name in ("random", "saliency", "diversity"):
            rows += [(f"{name} 0.22 before {layer}, % of dense", table[f"{name}, layer {layer}"]["of_dense"], "< 92")]

    def met(value: float, bound: str) -> bool:
        sign, limit = bound.split()
        return {">=": value >= float(limit), "<=": value <= float(limit), "<": value < float(limit)}[sign]

    return [(name, value, bound, met(value, bound)) for name, value, bound in rows]


def write(path: Path, table: dict, command: str, n: int, seed: int) -> None:
    """Write the figures with what made them as JSON, and as a Markdown table beside it."""
    import transformers

    made = {
        "command": command,
        "seed": seed,
        "questions": n,
        "keep": KEEP,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, CPU",
    }
    wanted = [{"what": w, "figure": round(f, 2), "wanted": b, "met": m} for w, f, b, m in verdict(table)]
    rounded = {name: {k: round(v, 2) for k, v in row.items()} for name, row in table.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"made": made, "wanted": wanted, "figures": rounded}, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(made, wanted, rounded))


def markdown(made: dict, wanted: list[dict], figures: dict) -> str:
    """The tables of a check as Markdown."""
    lines = [
        "# The embedded model, checked",
        "",
        f"Made by `{made['command']}`: {made['questions']} held-out questions.",
    ]
    error = 50 / (made["questions"] / len(TASKS)) ** 0.5
    lines += [
        f"One standard error is about {error / 3:.1f} points or less over all tasks, {error:.0f} or less in one."
    ]
    lines += ["", "| what | % | wanted | met |", "|---|--:|--:|---|"]
    lines += [f"| {w['what']} | {w['figure']:.1f} | {w['wanted']} | {'yes' if w['met'] else 'no'} |" for w in wanted]
    columns = ("all", "of_dense", *TASKS)
    lines += [
        "",
        f"Right answers in %; selections keep {made['keep']:.0%} of the visual tokens from the layer on.",
        "",
    ]
    lines += ["| | " + " | ".join(c.replace("_", " ") for c in columns) + " |", "|---|" + "--:|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(f"{row[c]:.0f}" for c in columns) + " |" for name, row in figures.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """`python -m foveate.tiny.training.check FILE`: check the shipped weights and write the figures."""
    import argparse

    from foveate.tiny.model import load

    parser = argparse.ArgumentParser(prog="python -m foveate.tiny.training.check", description=main.__doc__)
    parser.add_argument("file", type=Path, help="JSON file to write")
    parser.add_argument("--questions", type=int, default=900)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    command = f"python -m foveate.tiny.training.check {asked.file} --questions {asked.questions} --seed {asked.seed}"
    write(asked.file, check(*load(), asked.questions, asked.seed), command, asked.questions, asked.seed)


if __name__ == "__main__":
    main()
