import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="needs the extra `train`")

from safetensors.torch import load_file
from typer.testing import CliRunner

import foveate
from foveate.cli.app import app
from foveate.errors import FoveateError
from foveate.learn.errors import RewardError, TrainingError
from foveate.learn.glimpse.train import GlimpseSettings
from foveate.learn.glimpse_plus.setup import load_samples
from foveate.learn.glimpse_plus.train import train_plus
from foveate.learn.glimpse_plus.trainer import PlusTrainer
from foveate.measure.loading import load_model
from tests.learn.plus_cases import ANY_WORD, SETTINGS, TRL_IS_LATE, first

pytestmark = pytest.mark.filterwarnings(TRL_IS_LATE)
# two steps that learn: answers vary, and rewards with them
LEARNS = dataclasses.replace(
    SETTINGS, max_steps=2, temperature=ANY_WORD, warmup=0.0, lr=1e-3, reward="tests.learn.plus_cases:words"
)
PREDICTOR = GlimpseSettings(max_steps=1, accumulation=2, check_every=0, check_samples=2, max_keep=None)


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_from_the_model_to_a_predictor_for_the_new_one(tmp_path):
    sizes = {"size": 32, "condition_size": 16, "predictor_heads": 2}
    settings = dataclasses.replace(LEARNS, max_steps=1, glimpse=PREDICTOR, glimpse_sizes=sizes)
    seen = []
    result = train_plus(
        settings, first(16), first(18).items[16:], tmp_path, progress=lambda what, done, total: seen.append(what)
    )
    assert list(result["done"]) == ["rl", "merge", "predictor"]
    assert json.loads((tmp_path / "plus.json").read_text()) == json.loads(json.dumps(result))
    figures = json.loads((tmp_path / "adapter" / "steps.json").read_text())
    assert [step["step"] for step in figures["steps"]] == [1]
    assert {"seconds", "peak_bytes", "kept", "reward", "kl"} <= set(figures["steps"][0])
    assert "resident memory" in figures["memory"]
    assert {"measuring the prompts", "fine-tuning"} <= set(seen)
    before, after = load_model("tiny", "cpu").model.state_dict(), load_model(str(tmp_path / "model"), "cpu")
    changed = {name for name, weight in after.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {
        name for name in before if "language_model.layers" in name and name.endswith("proj.weight")
    }  # merged, and nothing else
    pruner = foveate.load(tmp_path / "predictor")
    assert isinstance(pruner, foveate.GlimpsePrune)
    item = first(1).items[0]
    inputs = after.inputs([item.question], [[item.image()]])
    with pruner(after.model) as pruned:
        after.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert pruned.report.stages[0].layer == 8


def test_the_merged_model_is_the_model_with_its_adapter(tmp_path):
    from peft import PeftModel

    train_plus(LEARNS, first(16), (), tmp_path)
    base, merged = load_model("tiny", "cpu"), load_model(str(tmp_path / "model"), "cpu")
    item = first(1).items[0]
    inputs = base.inputs([item.question], [[item.image()]])
    with torch.no_grad():
        plain = base.model(**inputs).logits
        adapted = PeftModel.from_pretrained(base.model, tmp_path / "adapter").eval()(**inputs).logits
        found = merged.model(**merged.inputs([item.question], [[item.image()]])).logits
    assert (adapted - plain).abs().max() > 1e-2
    torch.testing.assert_close(found, adapted, atol=1e-3, rtol=0)


class StopError(Exception):
    """As if the power went."""


@pytest.mark.slow
def test_a_stopped_fine_tuning_ends_as_one_that_was_not(tmp_path, monkeypatch):
    whole = train_plus(LEARNS, first(16), (), tmp_path / "whole")
    plain = PlusTrainer.training_step

    def stop(self, *args, **kwargs):
        if self.state.global_step == 1:
            raise StopError
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PlusTrainer, "training_step", stop)
        with pytest.raises(StopError):
            train_plus(LEARNS, first(16), (), tmp_path / "parts")
    assert not (tmp_path / "parts" / "adapter").exists()
    assert json.loads((tmp_path / "parts" / "plus.json").read_text())["done"] == {}
    parts = train_plus(LEARNS, first(16), (), tmp_path / "parts")
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert any(weight.abs().max() > 0 for name, weight in expected.items() if "lora_B" in name)
    assert all(torch.equal(weight, found[name]) for name, weight in expected.items())
    assert parts["done"]["merge"]["to"] == whole["done"]["merge"]["to"]
    told = [json.loads((tmp_path / name / "adapter" / "steps.json").read_text()) for name in ("whole", "parts")]
    first_run, second_run = ([step["reward"] for step in one["steps"]] for one in told)
    assert first_run == second_run


def test_finished_stages_are_not_run_again(tmp_path, monkeypatch):
    settings = dataclasses.replace(LEARNS, max_steps=1)

    def fail(*args, **kwargs):
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr("foveate.learn.glimpse_plus.train.merge", fail)
        with pytest.raises(StopError):
            train_plus(settings, first(16), (), tmp_path)
    done = json.loads((tmp_path / "plus.json").read_text())["done"]
    assert list(done) == ["rl"]
    monkeypatch.setattr("foveate.learn.glimpse_plus.train.reinforce", fail)
    result = train_plus(settings, first(16), (), tmp_path)
    assert list(result["done"]) == ["rl", "merge"]
    assert result["done"]["rl"] == done["rl"]
    monkeypatch.setattr("foveate.learn.glimpse_plus.train.merge", fail)
    assert train_plus(settings, first(16), (), tmp_path) == result
    with pytest.raises(StopError):
        train_plus(settings, first(16), (), tmp_path, fresh=True)
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [({"lr": 1e-5}, "lr 0.001 \\(now 1e-05\\)"), ({"pruned": False}, "pruned True"), ({"layer": 2}, "layer None")],
)
def test_another_run_s_folder_is_refused(tmp_path, monkeypatch, change, told):
    monkeypatch.setattr("foveate.learn.glimpse_plus.train.reinforce", lambda *args: {})
    monkeypatch.setattr("foveate.learn.glimpse_plus.train.merge", lambda *args: {})
    train_plus(LEARNS, first(16), (), tmp_path)
    train_plus(LEARNS, first(16), (), tmp_path)
    with pytest.raises(TrainingError, match=told):
        train_plus(dataclasses.replace(LEARNS, **change), first(16), (), tmp_path)
    with pytest.raises(TrainingError, match="data fingerprint"):
        train_plus(LEARNS, first(15), (), tmp_path)
    train_plus(dataclasses.replace(LEARNS, **change), first(16), (), tmp_path, fresh=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": 1}'])
def test_a_file_that_is_no_state_is_refused(tmp_path, text):
    (tmp_path / "plus.json").write_text(text)
    with pytest.raises(TrainingError, match="not of a GlimpsePrune\\+ run"):
        train_plus(LEARNS, first(16), (), tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reward": "exakt"}, "no reward is called"),
        ({"reward": "judge"}, "under `judge`"),
        ({"predictor": "no/such/folder"}, "no/such/folder"),
        ({"glimpse": PREDICTOR, "glimpse_sizes": {"width": 3}}, "no size width"),
        ({"glimpse": PREDICTOR, "glimpse_sizes": {"layer": 99}}, "glimpse_sizes do not do"),
    ],
)
def test_what_does_not_do_is_said_before_the_first_step(tmp_path, monkeypatch, change, told):
    def fail(*args, **kwargs):
        raise StopError

    monkeypatch.setattr(PlusTrainer, "train", fail)
    with pytest.raises(FoveateError, match=told):
        train_plus(dataclasses.replace(LEARNS, **change), first(16), (), tmp_path)


def test_trl_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(TrainingError, match="needs trl: pip install 'foveate\\[train\\]'"):
        train_plus(LEARNS, first(16), (), tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"suite": None}, "not none"),
        ({"data": "a.jsonl"}, "not data and suite"),
        ({"suite": "pictures"}, "there are scenes"),
    ],
)
def test_data_of_one_kind(change, told):
    with pytest.raises(TrainingError, match=told):
        load_samples(dataclasses.replace(SETTINGS, **change))


def test_scenes_and_held_out_scenes():
    samples, apart = load_samples(SETTINGS)
    assert (len(samples.items), len(apart)) == (24, 8)
    pictures = {item.image().tobytes() for item in samples.items}
    assert not pictures & {item.image().tobytes() for item in apart}
    assert load_samples(dataclasses.replace(SETTINGS, held_out=0))[1] == ()


def test_a_file_of_samples(tmp_path):
    lines = []
    for number, item in enumerate(first(6).items):
        item.image().save(tmp_path / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": item.question, "answer": item.answer, "boxes": item.boxes})
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = dataclasses.replace(SETTINGS, suite=None, data=str(tmp_path / "some.jsonl"), held_out=2, samples=3)
    samples, apart = load_samples(settings)
    assert (len(samples.items), len(apart)) == (3, 2)
    assert {item.question for item in samples.items} <= {item.question for item in first(6).items}


CONFIG = """
model: tiny
suite: scenes
samples: 16
held_out: 4
predictor: glimpseprune  # some of these have no boxes
prompts: 2
max_steps: 1
max_completion: 4
glimpse: {max_steps: 1, accumulation: 1, check_every: 0}
glimpse_sizes: {size: 32, condition_size: 16}
"""


def test_the_command(tmp_path):
    (tmp_path / "plus.yaml").write_text(CONFIG)
    run = ["train", "glimpse-plus", str(tmp_path / "plus.yaml"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    result = CliRunner().invoke(app, [*run, "--json", str(tmp_path / "told.json")])
    assert result.exit_code == 0, result.output
    assert "1 steps of" in result.output
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["done"]["rl"]["steps"] == 1
    assert isinstance(foveate.load(tmp_path / "out" / "predictor"), foveate.GlimpsePrune)
    (tmp_path / "plus.yaml").write_text(CONFIG + "lr: 3\n")
    result = CliRunner().invoke(app, run)
    assert result.exit_code == 2
    assert "lr 0.0001 (now 3.0)" in " ".join(result.output.split())


def test_the_judge_s_key_is_in_no_file(tmp_path, monkeypatch):
    from foveate.learn.glimpse_plus.rewards import Judge

    monkeypatch.setenv("SOME_KEY", "secret-value")
    settings = dataclasses.replace(
        LEARNS, reward="judge", judge=Judge("http://127.0.0.1:9/v1", retries=0, key_variable="SOME_KEY")
    )
    with pytest.raises(RewardError, match="did not score"):
        train_plus(settings, first(16), (), tmp_path)
    assert not any(b"secret-value" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.slow
def test_two_processes_share_a_step(tmp_path):
    config = CONFIG.replace("glimpse: {max_steps: 1, accumulation: 1, check_every: 0}", "glimpse: null")
    (tmp_path / "plus.yaml").write_text(
        config + f"temperature: {ANY_WORD}\nwarmup: 0\nreward: tests.learn.plus_cases:words\n"
    )
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "foveate", "train", "glimpse-plus"]
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(Path(foveate.__file__).parents[1]), str(root)])
    done = subprocess.run(
        [sys.executable, *launch, "plus.yaml", "--out", "out", "--device", "cpu", "--json", "told.json"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(json.loads((tmp_path / "told.json").read_text())["done"]) == ["rl", "merge"]
    assert any(weight.abs().max() > 0 for name, weight in weights(tmp_path / "out").items() if "lora_B" in name)
    load_model(str(tmp_path / "out" / "model"), "cpu")
