"""Make this folder again: the authors' GlimpsePrune on a tiny Qwen2.5-VL with random weights.

    python make.py --repo CLONE --first CLONE_OF_FIRST --out .

Repository HVision-NKU/GlimpsePrune (Apache-2.0), ``transformers_gp/models/qwen2_5_vl/model_gp.py`` at two commits:
``--repo`` 7da56699be9ca7839e2f5568a7f0d24862091eee, the newest known here, makes every case but one;
``--first`` dafaa38969b287c155af10039d08fd7e55c78731, the release of the paper, makes the case with anchors, which
later commits took out, and is compared with the newest one in every other case: ``agree`` in cases.json. (The release
decodes batches wrongly: from the second new token on all rows get the position of the last row.)

Made with torch 2.13.0 (CPU, fp32, SDPA) and transformers 4.51.3. No clone could be reached where these files were
made: both folders held the inference path of the named commits written out by hand from the published text (SDPA and
AttnFuserV1 only). Run with real clones, the numbers below must come out the same up to fp32 rounding.

``base``: the model in the layout of the hub (fp16, which the run loads as fp32); ``checkpoint*``: what the authors
publish beside it (``save_new_modules``, bf16); ``cases.json``: options and what was kept; ``cases.safetensors``: for
each case its inputs, the VIP logit and the kept mask of every visual token (rows of a batch one after the other), the
last dense logits, and the logits and tokens of six greedy steps. Of every case the first draw of inputs is taken for
which no decision is near a tie. The output rows of the special tokens are zero, so none of them is ever generated.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import types
from pathlib import Path

import torch
from draws import doubt, fill, middle, parameters_of
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.utils import logging

PAD, EOS, START, END, IMAGE, VIDEO, VOCAB = 0, 2, 195, 196, 197, 198, 200
SEED = 4
NEW = 6
VISION = dict(
    depth=8,
    hidden_size=32,
    intermediate_size=48,
    num_heads=4,
    patch_size=2,
    spatial_merge_size=2,
    temporal_patch_size=2,
    window_size=12,
    fullatt_block_indexes=[3, 7],
    out_hidden_size=64,
    tokens_per_second=1,  # transformers 5.4.0 multiplies an image's first position by it
)
BASE = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    rope_scaling=dict(type="mrope", mrope_section=[2, 3, 3]),
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    vision_start_token_id=START,
    vision_end_token_id=END,
    pad_token_id=PAD,
    bos_token_id=1,
    eos_token_id=EOS,
)
GLIMPSE = dict(
    selected_layers=[3],
    reduce_layer=3,
    le_layers=[0, 1, 2, 3, 4, 5],
    le_dropout_prob=0.1,
    use_attention_logits=True,
    attn_fuse_size=24,
    visual_cond_size=40,
    attn_fuse_num_heads=4,
    attn_fuse_global=True,
    selected_visual_layers=[7, 5, 3, 1],
    ori_attn_supervision=False,
    deep_supervision=False,
)
CHECKPOINTS = {
    "checkpoint": {},  # as released, but for sizes
    "checkpoint_log_softmax": dict(  # with rows of some layers only, and the class's defaults for supervision
        use_attention_logits=False, le_layers=[0, 1, 3], ori_attn_supervision=True, deep_supervision=True
    ),
    "checkpoint_windows": dict(attn_fuse_global=False, selected_visual_layers=[7, 1]),
}
DEFAULTS = dict(reduce_threshold=0.5, max_remain_ratio=None, min_remain_num=1)
A, B, C, D = (8, 12), (12, 10), (6, 14), (4, 6)  # patches: merged grids 4x6, 6x5, 3x7, 2x3
# A row is what stands in it: a number of text tokens or an image.
CASES: dict[str, tuple[list[list], dict]] = {
    "one_image": ([[3, A, 5]], {}),
    "cap": ([[3, B, 7]], dict(max_remain_ratio=0.222)),
    "cap_below_one_token": ([[2, C, 6]], dict(max_remain_ratio=0.04)),
    "floor": ([[3, B, 4]], dict(reduce_threshold=0.9999, min_remain_num=5)),
    "floor_above_cap": ([[3, A, 4]], dict(max_remain_ratio=0.111, min_remain_num=4)),
    "two_images": ([[2, A, 3, C, 6]], {}),
    "two_images_cap": ([[2, D, 1, B, 6]], dict(max_remain_ratio=0.222)),
    "batch": ([[3, A, 5], [4, B, 2, D, 9], [1, C, 2]], {}),
    "batch_cap": ([[3, C, 5], [1, A, 9], [4, B, 2, A, 3]], dict(max_remain_ratio=0.222)),
    "batch_with_text_row": ([[2, A, 5], [9], [1, D, 3]], {}),
    "log_softmax": ([[3, B, 5]], dict(checkpoint="checkpoint_log_softmax")),
    "log_softmax_two_images": ([[2, A, 3, C, 6]], dict(checkpoint="checkpoint_log_softmax")),
    "windows": ([[3, B, 5]], dict(checkpoint="checkpoint_windows")),
    "windows_batch": ([[3, B, 5], [1, A, 2, C, 2]], dict(checkpoint="checkpoint_windows")),
    "fixed_ratio": ([[3, A, 5]], dict(fixed_remain_ratio=0.25)),
    "anchors_cap": ([[3, B, 5]], dict(anchor_positions=["tl", "tr", "bl", "br"], max_remain_ratio=0.111)),
}


def authors(root: Path):
    """The authors' model class from a clone; packages that only its other paths need are stood in for."""
    for name in [n for n in sys.modules if n.split(".")[0] in ("transformers_gp", "utils", "warppers")]:
        del sys.modules[name]
    for name, wanted in (("matplotlib", ()), ("matplotlib.pyplot", ()), ("openai", ("OpenAI",)), ("flash_attn", ())):
        try:
            importlib.import_module(name)
        except ImportError:
            stand_in = types.ModuleType(name)
            for attribute in (*wanted, "flash_attn_varlen_func"):
                setattr(stand_in, attribute, None)
            sys.modules[name] = stand_in
    sys.path.insert(0, str(root))
    try:
        return importlib.import_module(
            "transformers_gp.models.qwen2_5_vl.model_gp"
        ).Qwen2_5_VL_GP_ForConditionalGeneration
    finally:
        sys.path.remove(str(root))


def write_base(folder: Path) -> None:
    """The dense model as its hub repository would hold it."""
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**BASE, vision_config=VISION))
    fill(model.named_parameters(), torch.Generator().manual_seed(SEED), 0.2)
    model.lm_head.weight.data[[PAD, EOS, START, END, IMAGE, VIDEO]] = 0
    model.to(torch.float16).save_pretrained(folder)
    (folder / "generation_config.json").unlink()


def write_checkpoint(out: Path, name: str, cls) -> None:
    """New modules in the authors' own layout, the last bias such that 0.5 lies among the logits of one image."""
    model = load(cls, out / "base")
    config = {**model.config.to_dict(), **GLIMPSE, **CHECKPOINTS[name]}
    model._init_new_modules(model.config_class.from_dict(config), re_init=True)
    fill(parameters_of(model), torch.Generator().manual_seed(SEED + 1), 0.25)
    for _, value in parameters_of(model):
        value.data = value.data.bfloat16().float()
    model.eval()
    bias = model.attn_fuser.attn_out_projs[-1].bias
    bias.data -= middle(prefill(model, inputs_of("one_image", 0))[0][0])
    model.bfloat16().save_new_modules(out / name)


def load(cls, base: Path):
    return cls.from_pretrained(base, torch_dtype=torch.float32, attn_implementation="sdpa").eval()


def inputs_of(case: str, draw: int) -> dict[str, torch.Tensor]:
    """Left-padded prompts of random text and images of random pixels."""
    generator = torch.Generator().manual_seed(SEED + 100 * sum(case.encode()) + draw)
    rows, grids = [], []
    for parts in CASES[case][0]:
        row: list[int] = []
        for part in parts:
            if isinstance(part, int):
                row += torch.randint(3, START, (part,), generator=generator).tolist()
            else:
                grids.append((1, *part))
                row += [START, *[IMAGE] * (part[0] * part[1] // 4), END]
        rows.append(row)
    length = max(map(len, rows))
    patches = sum(h * w for _, h, w in grids)
    return dict(
        input_ids=torch.tensor([[PAD] * (length - len(row)) + row for row in rows]),
        attention_mask=torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        pixel_values=torch.randn(patches, 24, generator=generator).half().float(),
        image_grid_thw=torch.tensor(grids),
    )


@torch.no_grad()
def prefill(model, inputs: dict) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Logits and kept mask of every row's visual tokens, and the next-token logits."""
    model.reset_image_tokens_cache()
    out = model(**inputs, use_cache=True, return_dict=True)
    return [row[-1] for row in out.image_token_mask_logits], out.image_token_bool_masks, out.logits[:, -1]


@torch.no_grad()
def generate(model, inputs: dict, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (rows, 6) and the logits they came from (rows, 6, vocabulary) of greedy decoding."""
    out = model.generate(
        **inputs, **options, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


def pruned(cls, folder: Path, options: dict, inputs: dict) -> dict:
    """One case run by the authors' code."""
    model = load(cls, folder / "base")
    model.load_new_modules(str(folder / options.get("checkpoint", "checkpoint")))
    model.eval()
    for key, value in {**DEFAULTS, **options}.items():
        setattr(model.config, key, value)
    logits, masks, first = prefill(model, inputs)
    model.reset_image_tokens_cache()
    tokens, steps = generate(model, inputs)
    torch.testing.assert_close(steps[:, 0], first, atol=1e-4, rtol=1e-4)
    return dict(logits=logits, masks=masks, tokens=tokens, step_logits=steps)


def make(newest, first, out: Path) -> None:
    """Write everything."""
    write_base(out / "base")
    for name in CHECKPOINTS:
        write_checkpoint(out, name, newest)
    facts: dict[str, dict] = {}
    tensors: dict[str, torch.Tensor] = {}
    dense = load(Qwen2_5_VLForConditionalGeneration, out / "base")
    for case, (_, options) in CASES.items():
        anchors = "anchor_positions" in options
        for draw in range(1000):
            inputs = inputs_of(case, draw)
            result = pruned(first if anchors else newest, out, options, inputs)
            dense_tokens, dense_logits = generate(dense, inputs)
            why = doubt(result, options) or ("same as dense" if torch.equal(dense_tokens, result["tokens"]) else "")
            if not why:
                break
        else:
            raise SystemExit(f"{case}: {why} in every draw")
        facts[case] = dict(
            draw=draw,
            checkpoint=options.get("checkpoint", "checkpoint"),
            options={key: value for key, value in {**DEFAULTS, **options}.items() if key != "checkpoint"},
            visual=[len(row) for row in result["logits"]],
            kept=[int(mask.sum()) for mask in result["masks"]],
            agree="only the first" if anchors else agreement(first, out, options, inputs, result),
        )
        print(case, facts[case])
        found = dict(
            inputs,
            pixel_values=inputs["pixel_values"].half(),
            visual_logits=torch.cat(result["logits"]),
            kept=torch.cat(result["masks"]),
            tokens=result["tokens"],
            step_logits=result["step_logits"],
            dense_last_logits=dense_logits[:, 0],
            dense_tokens=dense_tokens,
        )
        tensors |= {f"{case}.{key}": value.contiguous().clone() for key, value in found.items()}
    save_file(tensors, out / "cases.safetensors")
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)
    (out / "cases.json").write_text(json.dumps(dict(new_tokens=NEW, cases=facts), indent=1) + "\n")


def agreement(first, out: Path, options: dict, inputs: dict, result: dict) -> str:
    """Whether the first release gives the same as the newest commit."""
    if "fixed_remain_ratio" in options:
        return "not in the first release"
    try:
        other = pruned(first, out, options, inputs)
    except (RuntimeError, ZeroDivisionError) as error:
        return f"the first release fails: {type(error).__name__}: {error}"
    torch.testing.assert_close(torch.cat(other["logits"]), torch.cat(result["logits"]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other["step_logits"][:, 0], result["step_logits"][:, 0], atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.cat(other["masks"]), torch.cat(result["masks"]))
    gap = (other["step_logits"][:, 1] - result["step_logits"][:, 1]).abs().max().item()
    if torch.equal(other["tokens"], result["tokens"]) and gap < 1e-4:
        return "yes"
    assert len(other["masks"]) > 1
    rows = (other["tokens"] != result["tokens"]).any(1).tolist()
    return f"up to the first token; then its rows with other tokens: {rows}, second step's logits off by {gap:.2f}"


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repo", type=Path, required=True)
    parser.add_argument("--first", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.set_verbosity_error()
    make(authors(options.repo), authors(options.first), options.out)


if __name__ == "__main__":
    main()
