"""Make the folder `llava` here again: the authors' GlimpsePrune on a tiny LLaVA-1.5 with random weights.

    python make_llava.py --repo CLONE --out llava

Repository HVision-NKU/GlimpsePrune (Apache-2.0), ``llava_gp/model/language_model/llava_llama.py`` at commit
091a3d576e510b7d997abb2fd8ad39debc318377 (a real clone), with transformers 4.37.2, which the
authors pin, and torch 2.13.0 (CPU, fp32).

The authors' class runs with FlashAttention 2 alone. Here its one call of that library is answered by torch's scaled
dot-product attention with the same mask (causal, aligned to the end, padding hidden); nothing else is replaced.
Their evaluation has one image a sample and batches of one; the batches here are left-padded, as the code allows.

``base``: the model in the layout of the hub's llava-1.5-7b-hf (fp16, which the run loads as fp32); the rest as
`make.py` says of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import types
from pathlib import Path

import torch
from draws import doubt, fill, middle, parameters_of
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaFlashAttention2

PAD, EOS, IMAGE, VOCAB = 0, 2, 197, 200
THEIRS = -200  # the authors' word for an image
SEED = 6
NEW = 6
SIDE = 5
VISION = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=8,
    num_attention_heads=4,
    image_size=4 * SIDE,
    patch_size=4,
    projection_dim=32,
)
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    pad_token_id=PAD,
    bos_token_id=1,
    eos_token_id=EOS,
)
GLIMPSE = dict(
    selected_layers=[3],
    reduce_layer=3,
    le_layers=[0, 1, 2, 3, 4, 5],
    le_dropout_prob=0.1,
    use_attention_logits=False,
    attn_fuse_size=24,
    visual_cond_size=40,
    attn_fuse_num_heads=4,
    selected_visual_layers=[7, 5, 3, 1],
    ori_attn_supervision=False,
    deep_supervision=False,
)
CHECKPOINTS = {
    "checkpoint": {},  # as released, but for sizes
    "checkpoint_logits": dict(  # with rows of some layers only, and the class's defaults for supervision
        use_attention_logits=True, le_layers=[0, 1, 3], ori_attn_supervision=True, deep_supervision=True
    ),
}
DEFAULTS = dict(reduce_threshold=0.5, max_remain_ratio=None, min_remain_num=1, anchor_positions=[])
# Text tokens before and behind each sample's image.
CASES: dict[str, tuple[list[tuple[int, int]], dict]] = {
    "one_image": ([(3, 5)], {}),
    "cap": ([(3, 7)], dict(max_remain_ratio=0.222)),
    "cap_below_one_token": ([(2, 6)], dict(max_remain_ratio=0.03)),
    "floor": ([(3, 4)], dict(reduce_threshold=0.9999, min_remain_num=5)),
    "floor_above_cap": ([(3, 4)], dict(max_remain_ratio=0.111, min_remain_num=4)),
    "anchors_cap": ([(3, 5)], dict(anchor_positions=["tl", "tr", "bl", "br"], max_remain_ratio=0.111)),
    "batch": ([(3, 5), (1, 9), (4, 2)], {}),
    "batch_cap": ([(3, 5), (1, 9), (4, 2)], dict(max_remain_ratio=0.222)),
    "logits": ([(3, 5)], dict(checkpoint="checkpoint_logits")),
    "logits_batch": ([(3, 5), (1, 8)], dict(checkpoint="checkpoint_logits")),
}


def authors(root: Path):
    """The authors' module from a clone; packages that only its other paths need are stood in for."""
    for name, wanted in (("matplotlib", ()), ("matplotlib.pyplot", ()), ("openai", ("OpenAI",))):
        try:
            importlib.import_module(name)
        except ImportError:
            stand_in = types.ModuleType(name)
            for attribute in wanted:
                setattr(stand_in, attribute, None)
            sys.modules[name] = stand_in
    PreTrainedModel._check_and_enable_flash_attn_2 = classmethod(with_flash)
    LlamaFlashAttention2._flash_attention_forward = attend
    sys.path.insert(0, str(root))
    try:
        return importlib.import_module("llava_gp.model.language_model.llava_llama")
    finally:
        sys.path.remove(str(root))


def with_flash(cls, config, *args, **kwargs):
    """What transformers does where flash-attn is installed."""
    config._attn_implementation = "flash_attention_2"
    return config


def attend(module, query, key, value, attention_mask, query_length, dropout=0.0, softmax_scale=None):
    """Attention of (batch, tokens, heads, width), in place of FlashAttention's."""
    new, length = query.shape[1], key.shape[1]
    seen = torch.ones(new, length, dtype=torch.bool).tril(length - new)
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None, -length:].bool()
        seen = seen | torch.eye(length, dtype=torch.bool)[-new:]  # padding sees itself
    heads = (states.transpose(1, 2) for states in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=seen).transpose(1, 2)


def write_base(folder: Path) -> None:
    """The dense model as its hub repository would hold it: names and config of llava-1.5-7b-hf."""
    vision = CLIPVisionModel(CLIPVisionConfig(**VISION))
    sizes, width = TEXT, TEXT["hidden_size"]
    shapes = {
        "language_model.model.embed_tokens.weight": (VOCAB, width),
        "language_model.model.norm.weight": (width,),
        "language_model.lm_head.weight": (VOCAB, width),
        "multi_modal_projector.linear_1.weight": (width, VISION["hidden_size"]),
        "multi_modal_projector.linear_1.bias": (width,),
        "multi_modal_projector.linear_2.weight": (width, width),
        "multi_modal_projector.linear_2.bias": (width,),
    }
    for number in range(sizes["num_hidden_layers"]):
        at = f"language_model.model.layers.{number}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (sizes["intermediate_size"], width) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (width, sizes["intermediate_size"])}
        shapes |= {f"{at}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    named = [(name, torch.nn.Parameter(torch.empty(shape))) for name, shape in sorted(shapes.items())]
    named += [(f"vision_tower.{name}", value) for name, value in vision.named_parameters()]
    fill(named, torch.Generator().manual_seed(SEED), 0.2)
    weights = {name: value.data.half().contiguous() for name, value in named}
    weights["language_model.lm_head.weight"][[PAD, EOS, IMAGE]] = 0
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = dict(
        architectures=["LlavaForConditionalGeneration"],
        model_type="llava",
        image_token_index=IMAGE,
        image_seq_length=SIDE * SIDE,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        pad_token_id=PAD,
        tie_word_embeddings=False,
        torch_dtype="float16",
        text_config=dict(model_type="llama", hidden_act="silu", tie_word_embeddings=False, **TEXT),
        vision_config=dict(model_type="clip_vision_model", hidden_act="quick_gelu", **VISION),
    )
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def load(code, base: Path, settings: dict):
    """The authors' model with the base's weights, its new modules not yet filled."""
    weights = {name: value.float() for name, value in load_file(base / "model.safetensors").items()}
    with tempfile.TemporaryDirectory() as folder:
        tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
        tower.load_state_dict(
            {name.removeprefix("vision_tower."): one for name, one in weights.items() if name.startswith("vision_")}
        )
        tower.save_pretrained(folder)
        CLIPImageProcessor().save_pretrained(folder)
        config = code.LlavaConfig_GP(
            **{**TEXT, **GLIMPSE, **settings},
            mm_vision_tower=folder,
            mm_hidden_size=VISION["hidden_size"],
            mm_projector_type="mlp2x_gelu",
            mm_vision_select_layer=-2,
            mm_vision_select_feature="patch",
            tokenizer_padding_side="left",
            attn_implementation="flash_attention_2",
        )
        model = code.LlavaLlamaForCausalLM_GP(config)
        model.get_vision_tower().load_model()
    language = {
        name.removeprefix("language_model."): one for name, one in weights.items() if name.startswith("language_model")
    }
    for ours, theirs in (("linear_1", 0), ("linear_2", 2)):
        for kind in ("weight", "bias"):
            language[f"model.mm_projector.{theirs}.{kind}"] = weights[f"multi_modal_projector.{ours}.{kind}"]
    missing, unexpected = model.load_state_dict(language, strict=False)
    rest = {name.split(".")[0] for name in missing if not name.startswith("model.vision_tower")}
    assert not unexpected
    assert rest <= {*model.new_modules_to_be_saved()}
    return model.eval()


def write_checkpoint(code, out: Path, name: str) -> None:
    """New modules in the authors' own layout, the last bias such that 0.5 lies among the logits of one image."""
    model = load(code, out / "base", CHECKPOINTS[name])
    fill(parameters_of(model), torch.Generator().manual_seed(SEED + 1), 0.25)
    for _, value in parameters_of(model):
        value.data = value.data.bfloat16().float()
    bias = model.attn_fuser.attn_out_projs[-1].bias
    bias.data -= middle(generate(model, inputs_of("one_image", 0))["logits"][0])
    model.bfloat16().save_new_modules(out / name)
    config = json.loads((out / name / "config.json").read_text())
    config["mm_vision_tower"] = "clip"
    (out / name / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def inputs_of(case: str, draw: int) -> dict[str, torch.Tensor]:
    """Left-padded prompts of random text around an image of random pixels, as the hub's model takes them."""
    generator = torch.Generator().manual_seed(SEED + 100 * sum(case.encode()) + draw)
    rows = []
    for before, behind in CASES[case][0]:
        text = torch.randint(3, IMAGE - 1, (before + behind,), generator=generator).tolist()
        rows.append(text[:before] + [IMAGE] * SIDE * SIDE + text[before:])
    length, size = max(map(len, rows)), VISION["image_size"]
    return dict(
        input_ids=torch.tensor([[PAD] * (length - len(row)) + row for row in rows]),
        attention_mask=torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        pixel_values=torch.randn(len(rows), 3, size, size, generator=generator).half().float(),
    )


def for_them(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same prompts in the authors' form, one word for each image."""
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        words = ids[mask.bool()].tolist()
        at = words.index(IMAGE)
        rows.append([*words[:at], THEIRS, *words[at + SIDE * SIDE :]])
    length = max(map(len, rows))
    return dict(
        input_ids=torch.tensor([[PAD] * (length - len(row)) + row for row in rows]),
        attention_mask=torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        images=inputs["pixel_values"],
    )


@torch.no_grad()
def generate(model, inputs: dict) -> dict:
    """Logits and kept mask of every visual token, and tokens and logits of six greedy steps."""
    steps, selected = [], []
    keep = model._get_remain_masks

    def watched(input_ids, attention_mask, logits, grid_hw):
        found = keep(input_ids, attention_mask, logits, grid_hw)
        selected.append((logits[:, -1], torch.stack(found[1])))
        return found

    hook = model.lm_head.register_forward_hook(lambda module, args, out: steps.append(out[:, -1]))
    model._get_remain_masks = watched
    try:
        model.reset_image_tokens_cache()
        tokens = model.generate(
            **for_them(inputs), do_sample=False, max_new_tokens=NEW, use_cache=True, do_selection=True
        )
    finally:
        hook.remove()
        del model._get_remain_masks
    ((logits, masks),) = selected
    return dict(logits=list(logits), masks=list(masks), tokens=tokens, step_logits=torch.stack(steps, 1))


def pruned(code, out: Path, options: dict, inputs: dict) -> dict:
    """One case run by the authors' code."""
    name = options.get("checkpoint", "checkpoint")
    model = load(code, out / "base", CHECKPOINTS[name])  # the attention layers keep the config that they begin with
    model.load_new_modules(str(out / name))
    model.float().eval()
    for key, value in {**DEFAULTS, **options}.items():
        setattr(model.config, key, value)
    return generate(model, inputs)


def make(code, out: Path) -> None:
    """Write everything."""
    write_base(out / "base")
    for name in CHECKPOINTS:
        write_checkpoint(code, out, name)
    facts: dict[str, dict] = {}
    tensors: dict[str, torch.Tensor] = {}
    for case, (_, options) in CASES.items():
        for draw in range(1000):
            inputs = inputs_of(case, draw)
            result = pruned(code, out, options, inputs)
            why = doubt(result, options)
            kept = [int(mask.sum()) for mask in result["masks"]]
            if not why and "cap_below" not in case and max(kept) <= options.get("min_remain_num", 1) < 4:
                why = "only the floor"
            whole = dict(options, reduce_threshold=-1.0, max_remain_ratio=None)
            if not why and torch.equal(pruned(code, out, whole, inputs)["tokens"], result["tokens"]):
                why = "same as dense"
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
        )
        print(case, facts[case])
        found = dict(
            inputs,
            pixel_values=inputs["pixel_values"].half(),
            visual_logits=torch.cat(result["logits"]),
            kept=torch.cat(result["masks"]),
            tokens=result["tokens"],
            step_logits=result["step_logits"],
        )
        tensors |= {f"{case}.{key}": value.contiguous().clone() for key, value in found.items()}
    save_file(tensors, out / "cases.safetensors")
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)
    (out / "cases.json").write_text(json.dumps(dict(new_tokens=NEW, cases=facts), indent=1) + "\n")


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    make(authors(options.repo.resolve()), options.out)


if __name__ == "__main__":
    main()
