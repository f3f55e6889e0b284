"""The folders that GlimpsePrune's authors release: `config.json` beside `new_modules_gp.pt`."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.errors import IncompatibleWeightsError
from foveate.pruners.glimpseprune.modules import GlimpseConfig, GlimpseModules
from foveate.torch_state import own_randomness

WEIGHTS = "new_modules_gp.pt"
# their names -> ours, inside "attn_fuser"
_NAMES = (
    (r"attn_in_proj\.", "attention_in."),
    (r"cond_in_projs\.(\d+)\.", r"blocks.\1.condition."),
    (r"layers\.(\d+)\.norm1\.", r"blocks.\1.norm."),
    (r"layers\.(\d+)\.norm2\.", r"blocks.\1.feed_norm."),
    (r"layers\.(\d+)\.attn\.q_proj\.", r"blocks.\1.query."),
    (r"layers\.(\d+)\.attn\.k_proj\.", r"blocks.\1.key."),
    (r"layers\.(\d+)\.attn\.v_proj\.", r"blocks.\1.value."),
    (r"layers\.(\d+)\.attn\.o_proj\.", r"blocks.\1.out."),
    (r"layers\.(\d+)\.mlp\.(gate|up|down)_proj\.", r"blocks.\1.\2."),
)


def is_theirs(config: Any) -> bool:
    """Whether a `config.json` is one of theirs."""
    return isinstance(config, dict) and "method" not in config and {"reduce_layer", "selected_layers"} <= set(config)


@own_randomness()
def load(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The authors' weights and options, as options of GlimpsePrune; the file is read as tensors, never as code.

    Raises
    ------
    IncompatibleWeightsError
        When the file is not what the config says, or uses a variant that the released models do not.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        theirs, rows = found["attn_fuser"], found["learnable_embeddings"]
        sizes = _sizes(config, theirs, rows)
        modules = GlimpseModules(sizes, {"base_model": config.get("_name_or_path"), "weights": "of the authors"})
        modules.load_state_dict(_renamed(found, sizes))
    except (KeyError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise IncompatibleWeightsError(
            f"{path} does not hold the weights that its config describes: {type(error).__name__}: {error}"
        ) from error
    fixed = config.get("fixed_remain_ratio")  # so many, however likely
    return {
        "weights": modules.eval(),
        "threshold": config.get("reduce_threshold", 0.5) if fixed is None else 0.0,
        "max_keep": config.get("max_remain_ratio") if fixed is None else fixed,
        "min_keep": max(config.get("min_remain_num", 1), 1),
        "anchors": tuple(config.get("anchor_positions") or ()),
    }


def _sizes(config: Mapping[str, Any], theirs: Mapping[str, Tensor], rows: Tensor) -> GlimpseConfig:
    depth, layer = config["num_hidden_layers"], config["reduce_layer"] + 1
    llava = str(config.get("model_type", "")).startswith("llava")
    wrong = [
        what
        for what, there in (
            ("attention of several layers", list(config["selected_layers"]) != [layer - 1]),
            ("a layer norm on the glimpse token", config.get("le_norm_type", "rmsnorm") != "rmsnorm"),
            (
                f"the predictor {config['attn_fuse_type']}",
                config["attn_fuse_type"] not in ("AttnFuserV1", "AttnFuserV2"),
            ),
        )
        if there
    ]
    if wrong:
        raise IncompatibleWeightsError(f"this checkpoint has {', and '.join(wrong)}, which foveate does not have")
    # in LLaVA they count vision layers from the embeddings, in Qwen from the first block
    vision = tuple(number - llava for number in config["selected_visual_layers"])
    conditioned = config["attn_fuse_type"] == "AttnFuserV1"
    return GlimpseConfig(
        depth=depth,
        hidden_size=config["hidden_size"],
        heads=config["num_attention_heads"],
        layer=layer,
        vision_layers=vision if conditioned else (),
        vision_size=theirs["cond_in_projs.0.weight"].shape[1] if conditioned else 0,
        size=config["attn_fuse_size"],
        condition_size=config["visual_cond_size"],
        predictor_heads=config["attn_fuse_num_heads"],
        blocks=len(vision),
        attention="logits" if config.get("use_attention_logits", False) else "log_softmax",
        window=0 if llava or config.get("attn_fuse_global", False) else _window(config["vision_config"]),
        length=rows.shape[1],
        row_layers=tuple(config.get("le_layers", (0,))),
        norm_eps=config.get("rms_norm_eps", 1e-6),
    )


def _window(vision: Mapping[str, Any]) -> int:
    """Rows of tokens in a window of Qwen2.5-VL's vision encoder; a config leaves its defaults out."""
    return int(vision.get("window_size", 112) // vision.get("spatial_merge_size", 2) // vision.get("patch_size", 14))


def _renamed(found: Mapping[str, Any], sizes: GlimpseConfig) -> dict[str, Tensor]:
    """Their tensors under our names, fp32."""
    ours = {
        "glimpse.rows": found["learnable_embeddings"],
        "glimpse.projection.weight": found["le_proj"]["weight"],
        "glimpse.projection.bias": found["le_proj"]["bias"],
        "glimpse.norm.weight": found["le_norm"]["weight"],
    }
    last = f"attn_out_projs.{sizes.blocks - 1}."
    for name, value in found["attn_fuser"].items():
        if name.startswith("attn_out_projs."):  # with deep supervision all blocks have one; the last decides
            if name.startswith(last):
                ours[f"predictor.out.{name.removeprefix(last)}"] = value
            continue
        for pattern, replacement in _NAMES:
            if re.match(pattern, name):
                name = re.sub(pattern, replacement, name)
                break
        ours[f"predictor.{name}"] = value
    return {name: value.float() for name, value in ours.items()}
