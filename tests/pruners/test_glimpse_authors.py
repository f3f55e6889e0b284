"""The authors' checkpoints: what their code gave on a tiny Qwen2.5-VL and LLaVA-1.5 (golden_glimpseprune/make*.py)."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration, Qwen2_5_VLForConditionalGeneration

import foveate
from foveate.errors import IncompatibleWeightsError

HERE = Path(__file__).parent / "golden_glimpseprune"
IMAGE = 197
MODELS = {
    "qwen2.5-vl": (HERE, Qwen2_5_VLForConditionalGeneration),
    "llava-1.5": (HERE / "llava", LlavaForConditionalGeneration),
}
CASES = {name: json.loads((folder / "cases.json").read_text())["cases"] for name, (folder, _) in MODELS.items()}
TENSORS = {name: load_file(folder / "cases.safetensors") for name, (folder, _) in MODELS.items()}


@functools.cache
def model(name):
    folder, cls = MODELS[name]
    return cls.from_pretrained(folder / "base", dtype=torch.float32).eval()


def inputs(name, case):
    found = TENSORS[name]
    given = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    batch = {one: found[f"{case}.{one}"] for one in given if f"{case}.{one}" in found}
    if "image_grid_thw" in batch:
        batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).int()
    return {**batch, "pixel_values": batch["pixel_values"].float()}


def released(case, tmp_path, name="qwen2.5-vl"):
    """The checkpoint's folder with the case's options in its config, as the authors would write them."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(MODELS[name][0] / CASES[name][case]["checkpoint"], folder)
    change(folder, **CASES[name][case]["options"])
    return folder


@pytest.mark.oldest
@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in CASES.items() for case in cases])
def test_logits_kept_tokens_and_answer_are_theirs(name, case, tmp_path, monkeypatch):
    pruner = foveate.load(released(case, tmp_path, name))
    if case == "anchors_cap":
        assert pruner.anchors == ("tl", "tr", "bl", "br")
    seen = []
    ours = foveate.GlimpsePrune.logits
    monkeypatch.setattr(
        foveate.GlimpsePrune, "logits", lambda self, tokens: seen.append((tokens, ours(self, tokens))) or seen[-1][1]
    )
    batch, theirs = inputs(name, case), TENSORS[name]
    with pruner(model(name)) as pruned, torch.no_grad():
        out = pruned.model.generate(
            **batch, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    tokens, logits = seen[0]
    torch.testing.assert_close(logits[tokens.valid], theirs[f"{case}.visual_logits"], atol=2e-4, rtol=1e-4)
    visual = batch["input_ids"] == IMAGE
    kept = torch.zeros_like(visual)
    for row, places in enumerate(pruned.report.stages[0].kept):
        kept[row, places] = True
    assert torch.equal(kept[visual], theirs[f"{case}.kept"].bool())
    assert torch.equal(out.sequences[:, batch["input_ids"].shape[1] :], theirs[f"{case}.tokens"])
    for step, logits in zip(out.logits, theirs[f"{case}.step_logits"].unbind(1), strict=True):
        torch.testing.assert_close(step, logits, atol=1e-4, rtol=0)


def test_it_saves_in_our_format(tmp_path):
    theirs = foveate.load(HERE / "checkpoint")
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert foveate.load(tmp_path) == theirs
    assert dataclasses.replace(theirs, max_keep=0.2) != theirs


def change(folder, **config):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"selected_layers": [1, 3]}, "several layers"),
        ({"le_norm_type": "layernorm"}, "layer norm"),
        ({"attn_fuse_type": "AttnFuserDummy"}, "AttnFuserDummy"),
        ({"hidden_size": 32}, "size mismatch"),
    ],
)
def test_variants_that_are_refused(tmp_path, config, message):
    folder = released("one_image", tmp_path)
    change(folder, **config)
    with pytest.raises(IncompatibleWeightsError, match=message):
        foveate.load(folder)


class Code:
    """What a malicious pickle would run."""

    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize("content", [b"", b"no pickle", "code"], ids=["empty", "bytes", "code"])
def test_weights_are_never_run(tmp_path, capsys, content):
    folder = released("one_image", tmp_path)
    if content == "code":
        torch.save(Code(), folder / "new_modules_gp.pt")
    else:
        (folder / "new_modules_gp.pt").write_bytes(content)
    with pytest.raises(IncompatibleWeightsError):
        foveate.load(folder)
    assert "ran" not in capsys.readouterr().out
