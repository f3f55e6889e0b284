"""The authors' checkpoints: what their code gave on a tiny Qwen2.5-VL, case by case (golden_glimpseprune/make.py)."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

import foveate
from foveate.errors import IncompatibleWeightsError

HERE = Path(__file__).parent / "golden_glimpseprune"
CASES = json.loads((HERE / "cases.json").read_text())["cases"]
TENSORS = load_file(HERE / "cases.safetensors")
IMAGE = 197


@pytest.fixture(scope="module")
def model():
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(HERE / "base", dtype=torch.float32).eval()


def inputs(case):
    given = {
        name: TENSORS[f"{case}.{name}"] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    }
    types = (given["input_ids"] == IMAGE).int()
    return {**given, "pixel_values": given["pixel_values"].float(), "mm_token_type_ids": types}


def released(case, tmp_path):
    """The checkpoint's folder with the case's options in its config, as the authors would write them."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(HERE / CASES[case]["checkpoint"], folder)
    config = json.loads((folder / "config.json").read_text()) | CASES[case]["options"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.oldest
@pytest.mark.parametrize("case", CASES)
def test_logits_kept_tokens_and_answer_are_theirs(model, case, tmp_path, monkeypatch):
    pruner = foveate.load(released(case, tmp_path))
    if case == "anchors_cap":
        assert pruner.anchors == ("tl", "tr", "bl", "br")
    seen = []
    ours = foveate.GlimpsePrune.logits
    monkeypatch.setattr(
        foveate.GlimpsePrune, "logits", lambda self, tokens: seen.append((tokens, ours(self, tokens))) or seen[-1][1]
    )
    batch = inputs(case)
    with pruner(model) as pruned, torch.no_grad():
        out = model.generate(
            **batch, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    tokens, logits = seen[0]
    torch.testing.assert_close(logits[tokens.valid], TENSORS[f"{case}.visual_logits"], atol=2e-4, rtol=1e-4)
    visual = batch["input_ids"] == IMAGE
    kept = torch.zeros_like(visual)
    for row, places in enumerate(pruned.report.stages[0].kept):
        kept[row, places] = True
    assert torch.equal(kept[visual], TENSORS[f"{case}.kept"].bool())
    assert torch.equal(out.sequences[:, batch["input_ids"].shape[1] :], TENSORS[f"{case}.tokens"])
    for step, theirs in zip(out.logits, TENSORS[f"{case}.step_logits"].unbind(1), strict=True):
        torch.testing.assert_close(step, theirs, atol=1e-4, rtol=0)


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
