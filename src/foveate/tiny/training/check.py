"""How fair a judge the embedded model is: its requirements, with intervals.

Fresh scenes, every question with a scene of its own, answers teacher-forced: right is what greedy decoding would get
exactly. Dropped tokens are hidden by a mask from a layer on, which is what removing them before that layer does.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from foveate.tiny.questions import LONG_TASKS, SHORT_TASKS, TASKS, Question, evidence_tokens, held_out
from foveate.tiny.scenes import Scene, Style
from foveate.tiny.training.optimisers import FAST
from foveate.tiny.training.packing import NO_TARGET, PREFIX, positions, run_layers, single
from foveate.tiny.training.vision_stage import see, to_pixels

KEEP, FEW = 0.22, 0.07
DTYPE = FAST  # that the model computes in
Select = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Attention of the last prompt token in the layer before (B, N), visual states (B, N, D) and numbers of the
questions (B,) to what is kept, bool (B, N)."""


@dataclass
class Items:
    """Questions of one answer each: visual tokens (Q, N, D), text (Q, T), place of the last prompt token (Q,)."""

    tokens: torch.Tensor
    ids: torch.Tensor
    targets: torch.Tensor
    last: torch.Tensor
    evidence: torch.Tensor
    """bool (Q, N)."""
    tasks: np.ndarray

    @property
    def visual(self) -> int:
        """Visual tokens of an image, N."""
        return self.tokens.shape[1]


@torch.no_grad()
def visual_tokens(model: torch.nn.Module, scenes: list[Scene], dtype: torch.dtype, keep: float = 1.0) -> torch.Tensor:
    """The model's visual tokens, (Q, N, D); `keep` below 1 gives images with that share of the pixels."""
    from foveate.measure.eval.answers import downsample

    out = []
    for first in range(0, len(scenes), 32):
        images = [scene.pil() for scene in scenes[first : first + 32]]
        if keep < 1:
            images = [
                downsample(image, keep).resize(image.size, 3) for image in images
            ]  # 3: bicubic, as the processor
        out.append(see(model, to_pixels(np.stack([np.asarray(image) for image in images])), dtype)[0])
    return torch.cat(out)


def make_items(tokens: torch.Tensor, questions: list[Question], images: int = 1) -> Items:
    """Questions as tensors; of several images the tokens of one follow those of the other."""
    rows = single(questions)
    length = max(len(ids) for ids, _ in rows)
    ids, targets = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), NO_TARGET)
    for number, (own, wanted) in enumerate(rows):
        ids[number, : len(own)] = torch.from_numpy(own)
        targets[number, : len(wanted)] = torch.from_numpy(wanted)
    last = (targets != NO_TARGET).int().argmax(1)
    grid = math.isqrt(tokens.shape[1] // images)
    evidence = torch.from_numpy(np.stack([evidence_tokens(q, grid, grid * images) for q in questions]))
    return Items(tokens, ids, targets, last, evidence, np.array([q.task for q in questions]))


def attention_of(
    model: torch.nn.Module, layer: int, hidden: torch.Tensor, where: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """Attention (B, H, N) that the last prompt token pays to the visual tokens in a layer with input `hidden`."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    language, visual = model.model.language_model, model.config.image_seq_length
    block = language.layers[layer]
    attention, x = block.self_attn, block.input_layernorm(hidden.float())
    shape = (*x.shape[:2], -1, attention.head_dim)
    query, key = (p(x).view(shape).transpose(1, 2) for p in (attention.q_proj, attention.k_proj))
    query, key = apply_rotary_pos_emb(query, key, *language.rotary_emb(x, where))
    row = len(PREFIX) + visual + last
    query = query[torch.arange(len(x)), :, row]
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.einsum("bhe,bhse->bhs", query, key) * attention.scaling
    later = torch.arange(x.shape[1])[None] > row[:, None]
    share = scores.masked_fill(later[:, None], -1e4).softmax(-1)
    return share[..., len(PREFIX) : len(PREFIX) + visual]


@torch.no_grad()
def answer_right(
    model: torch.nn.Module, items: Items, select: Select | None = None, layer: int = 0, batch: int = 32
) -> np.ndarray:
    """Which questions are answered exactly, bool (Q,), if `select` drops visual tokens before `layer`."""
    right = []
    for index in torch.arange(len(items.ids)).split(batch):
        ids, tokens = items.ids[index], items.tokens[index]
        layout = ((1, ids.shape[1]),)
        where = positions(torch.arange(items.visual).expand(len(index), -1), layout, items.visual)
        before: dict[int, torch.Tensor] = {}

        def cut(
            number: int,
            hidden: torch.Tensor,
            index: torch.Tensor = index,
            where: torch.Tensor = where,
            before: dict[int, torch.Tensor] = before,
        ) -> torch.Tensor | None:
            if select is None or number > layer:
                return None
            if number == layer - 1:
                before[number] = attention_of(model, number, hidden, where, items.last[index]).mean(1)
            if number < layer:
                return None
            states = hidden[:, len(PREFIX) : len(PREFIX) + items.visual].float()
            kept = select(before.get(layer - 1, torch.zeros(states.shape[:2])), states, index)
            kept = torch.cat([torch.ones(len(index), len(PREFIX), dtype=torch.bool), kept], 1)
            return torch.zeros(kept.shape).masked_fill(~kept, -1e4)

        hidden = run_layers(model, tokens, ids, where, layout, before=cut)
        guess = torch.nn.functional.linear(hidden, model.lm_head.weight.to(hidden.dtype)).float().argmax(-1)
        targets = items.targets[index]
        right.append(((guess == targets) | (targets == NO_TARGET)).all(1))
    return torch.cat(right).numpy()


@torch.no_grad()
def hit_rates(model: torch.nn.Module, items: Items, batch: int = 32) -> dict[str, list[float]]:
    """By layer: mass of the last prompt token on the image, share of it on evidence, recall of evidence at 22 %."""
    layers = len(model.model.language_model.layers)
    mass, share, recall = (np.zeros(layers) for _ in range(3))
    some = items.evidence.any(1)
    count = round(KEEP * items.visual)
    for index in torch.arange(len(items.ids))[some].split(batch):
        layout = ((1, items.ids.shape[1]),)
        where = positions(torch.arange(items.visual).expand(len(index), -1), layout, items.visual)
        proof = items.evidence[index].float()

        def look(
            number: int,
            hidden: torch.Tensor,
            index: torch.Tensor = index,
            where: torch.Tensor = where,
            proof: torch.Tensor = proof,
        ) -> None:
            seen = attention_of(model, number, hidden, where, items.last[index]).mean(1)
            top = torch.zeros_like(seen).scatter_(1, seen.topk(count, 1).indices, 1.0)
            mass[number] += float(seen.sum())
            share[number] += float(((seen * proof).sum(1) / seen.sum(1).clamp(min=1e-9)).sum())
            recall[number] += float(((top * proof).sum(1) / proof.sum(1)).sum())

        run_layers(model, items.tokens[index], items.ids[index], where, layout, before=look)
    number = int(some.sum())
    rounded = {"mass": mass, "share": share, "recall": recall}
    out = {name: [round(float(v) / number, 4) for v in values] for name, values in rounded.items()}
    out["area"] = [round(float(items.evidence[some].float().mean()), 4)]
    return out


def attention_rows(seen: dict[str, list[float]]) -> list[list[str]]:
    """Layer, mass on the image, share of it on the evidence and recall, a row for each layer."""
    columns = zip(seen["mass"], seen["share"], seen["recall"], strict=True)
    return [[str(layer), *(f"{value:.2f}" for value in values)] for layer, values in enumerate(columns)]


ATTENTION_HEADS = ["layer", "mass", "share", "recall"]


def selections(items: Items, count: int, seed: int) -> dict[str, Select]:
    """Keep `count` tokens by chance, by max-min diversity of the states, by attention in the layer before."""
    from foveate.select import max_min_diversity, top_k

    chance = torch.rand(items.evidence.shape, generator=torch.Generator().manual_seed(seed))
    return {
        "random": lambda attention, states, index: top_k(chance[index], count),
        "diversity": lambda attention, states, index: max_min_diversity(states, count),
        "attention": lambda attention, states, index: top_k(attention, count),
    }


def interval(values: Callable[[np.ndarray], float], n: int, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of a figure by drawing the questions anew."""
    rng = np.random.default_rng(seed)
    drawn = [values(rng.integers(0, n, n)) for _ in range(draws)]
    return float(np.percentile(drawn, 2.5)), float(np.percentile(drawn, 97.5))


def figures(right: np.ndarray, dense: np.ndarray, tasks: np.ndarray) -> dict:
    """Accuracy and share of dense, over all, short and long tasks, with intervals, and by task; in per cent."""
    out: dict = {}
    for name, group in (("all", TASKS), ("short", SHORT_TASKS), ("long", LONG_TASKS)):
        mine = np.isin(tasks, group)
        a, d = right[mine], dense[mine]
        if not len(a):
            continue
        low, high = interval(lambda i, a=a: 100 * a[i].mean(), len(a))
        part = {"right": 100 * float(a.mean()), "right_interval": [low, high]}
        low, high = interval(lambda i, a=a, d=d: 100 * a[i].sum() / max(1, d[i].sum()), len(a))
        out[name] = {**part, "of_dense": 100 * float(a.sum() / max(1, d.sum())), "of_dense_interval": [low, high]}
    out["tasks"] = {task: 100 * float(right[tasks == task].mean()) for task in TASKS if (tasks == task).any()}
    return out


def check(model: torch.nn.Module, n: int, seed: int, dtype: torch.dtype = DTYPE) -> dict:
    """All figures of the table."""
    layers = len(model.model.language_model.layers)
    late, later = math.ceil(2 * layers / 3), math.ceil(3 * layers / 4)
    pairs = list(held_out(n, seed, Style(side=model.config.vision_config.image_size)))
    scenes, questions = [s for s, _ in pairs], [q for _, q in pairs]
    items = make_items(visual_tokens(model, scenes, dtype), questions)
    dense = answer_right(model, items)
    out = {"dense": figures(dense, dense, items.tasks)}

    def add(name: str, right: np.ndarray) -> None:
        out[name] = figures(right, dense, items.tasks)

    # Another question of the same task lends its scene, so that even the kind of scene fits.
    add("wrong scene", answer_right(model, replace(items, tokens=items.tokens.roll(len(TASKS), 0))))
    few = selections(items, round(FEW * items.visual), seed)
    add(f"random 7 % before {late}", answer_right(model, items, few["random"], late))
    add(f"nothing before {later}", answer_right(model, items, lambda a, s, i: torch.zeros(a.shape).bool(), later))
    add(f"nothing before {late}", answer_right(model, items, lambda a, s, i: torch.zeros(a.shape).bool(), late))
    for layer in (0, 2, late):
        add(f"evidence only before {layer}", answer_right(model, items, lambda a, s, i: items.evidence[i], layer))
    for name, select in selections(items, round(KEEP * items.visual), seed).items():
        add(f"{name} 22 % before 2", answer_right(model, items, select, 2))
    add(
        "image of 22 % of the pixels",
        answer_right(model, make_items(visual_tokens(model, scenes, dtype, KEEP), questions)),
    )
    out["attention"] = hit_rates(model, items)
    return out


def verdict(table: dict, layers: int) -> list[tuple[str, float, list[float], str, bool]]:
    """What was wanted: name, figure, its interval, bound, met or not."""
    late, later = math.ceil(2 * layers / 3), math.ceil(3 * layers / 4)
    wanted = [
        ("dense", "short", "right", ">= 90"),
        ("dense", "long", "right", ">= 85"),
        ("wrong scene", "short", "right", "<= 25"),
        ("wrong scene", "long", "right", "<= 5"),
        (f"random 7 % before {late}", "all", "of_dense", "< 75"),
        (f"nothing before {later}", "long", "of_dense", "< 60"),
        *((f"evidence only before {k}", "all", "of_dense", ">= 97") for k in (0, 2, late)),
        *((f"{name} 22 % before 2", "all", "of_dense", "< 90") for name in ("random", "diversity", "attention")),
        ("image of 22 % of the pixels", "all", "of_dense", "< 90"),
    ]
    out = []
    for name, group, what, bound in wanted:
        figure = table[name][group][what]
        sign, limit = bound.split()
        met = {">=": figure >= float(limit), "<=": figure <= float(limit), "<": figure < float(limit)}[sign]
        label = f"{name}, {group} tasks, {'% right' if what == 'right' else '% of dense'}"
        out.append((label, figure, table[name][group][f"{what}_interval"], bound, met))
    names = [f"{name} 22 % before 2" for name in ("random", "diversity", "attention")]
    best = [sum(table[a]["tasks"][t] >= max(table[b]["tasks"][t] for b in names) for t in TASKS) for a in names]
    ahead = float(max(best))
    out.append(
        (
            f"most tasks that one of the three leads or shares, of {len(TASKS)}",
            ahead,
            [ahead, ahead],
            f"< {len(TASKS)}",
            ahead < len(TASKS),
        )
    )
    return out


def write(path: Path, table: dict, layers: int, command: str, n: int, seed: int) -> None:
    """Write the figures with what made them as JSON, and as Markdown tables beside it."""
    import transformers

    made = {
        "command": command,
        "seed": seed,
        "questions": n,
        "dtype": str(DTYPE).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, CPU",
    }
    rows = verdict(table, layers)
    wanted = [{"what": w, "figure": f, "interval": i, "wanted": b, "met": m} for w, f, i, b, m in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"made": made, "wanted": wanted, "figures": table}, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(table, rows, made))


def markdown(table: dict, rows: list[tuple[str, float, list[float], str, bool]], made: dict) -> str:
    """The tables of a check."""
    lines = ["# The embedded model, checked", ""]
    lines += [f"Made by `{made['command']}`: {made['questions']} fresh questions, a scene each.", ""]
    lines += ["| what | figure | 95 % | wanted | met |", "|---|--:|--:|---|---|"]
    lines += [
        f"| {name} | {figure:.1f} | {low:.1f}–{high:.1f} | {bound} | {'yes' if met else 'no'} |"
        for name, figure, (low, high), bound, met in rows
    ]
    lines += ["", "Right answers in %:", "", "| | all | short | long | " + " | ".join(TASKS) + " |"]
    lines += ["|---|" + "--:|" * (3 + len(TASKS))]
    for name, row in table.items():
        if not name.startswith("attention"):
            means = [f"{row[group]['right']:.0f}" for group in ("all", "short", "long")]
            lines.append(f"| {name} | " + " | ".join([*means, *(f"{row['tasks'][t]:.0f}" for t in TASKS)]) + " |")
    seen = table["attention"]
    lines += ["", "Attention of the last prompt token, mean over heads, by decoder layer: mass on the image, share of"]
    lines += [f"it on the evidence ({seen['area'][0]:.3f} of the area), evidence tokens among the 22 % with most:", ""]
    lines += [f"| {' | '.join(ATTENTION_HEADS)} |", "|--:" * len(ATTENTION_HEADS) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in attention_rows(seen)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Check the shipped weights, or those of a folder, and write the figures as JSON and Markdown."""
    from transformers import LlavaForConditionalGeneration

    from foveate.tiny.model import WEIGHTS

    parser = argparse.ArgumentParser(prog="python -m foveate.tiny.training.check", description=main.__doc__)
    parser.add_argument("file", type=Path, help="JSON file to write")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of weights")
    parser.add_argument("--questions", type=int, default=1020)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    command = f"python -m foveate.tiny.training.check {asked.file} --questions {asked.questions} --seed {asked.seed}"
    command += f" --weights {asked.weights}" if asked.weights != WEIGHTS else ""
    model = LlavaForConditionalGeneration.from_pretrained(asked.weights, dtype=torch.float32).eval()
    layers = len(model.model.language_model.layers)
    write(asked.file, check(model, asked.questions, asked.seed), layers, command, asked.questions, asked.seed)


if __name__ == "__main__":
    main()
