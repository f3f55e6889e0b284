"""`import foveate` gives every public name, loads nothing heavy and changes nothing in torch or transformers."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

import foveate
from foveate.pruners import METHODS, methods

PUBLIC = [
    *(method.__name__ for method in METHODS.values()),
    "BTPStage",
    "Chain",
    "make",
    "load",
    "attach",
    "detach",
    "load_processor",
    "select",
    "tiny",
    "errors",
    "__version__",
]


DEMO = """
import os, sys, tempfile
from foveate.cli import main
os.chdir(tempfile.mkdtemp())
sys.argv = ["foveate", "demo", "--questions", "1"]
try:
    main()
except SystemExit as end:
    assert not end.code
"""


def python(code: str) -> str:
    """Run code in an interpreter of its own, for this one has long imported everything."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        pytest.fail(done.stderr)
    return done.stdout


def test_loads_nothing_heavy():
    heavy = python(
        "import sys, foveate\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'matplotlib', 'torchvision', 'typer', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert heavy.strip() == "[]"


def test_the_command_line_answers_help_without_a_model():
    loaded = python(
        "import sys, foveate.cli\n"
        "sys.argv = ['foveate', '--help']\n"
        "try:\n"
        "    foveate.cli.main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "print(sorted({'transformers', 'matplotlib', 'torchvision'} & set(sys.modules)))"
    )
    assert loaded.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name(name):
    assert name in dir(foveate)
    assert getattr(foveate, name) is not None


def test_nothing_else_is_public():
    assert sorted(PUBLIC) == sorted(foveate.__all__)


def test_the_lines_of_the_registry_are_read_as_they_run():
    """`foveate` reads them, a type checker sees them imported."""
    assert {*foveate._methods()} == {name for name in vars(methods) if not name.startswith("_")}
    assert {"BTP", "GlimpsePrune", "GreedyPrune", "Random"} <= {*foveate.__all__}


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'PyramidDrip'"):
        foveate.PyramidDrip  # noqa: B018


CHANGES_NOTHING = """
import sys
import torch, transformers
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, LlavaForConditionalGeneration
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration
from transformers.generation import GenerationMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import ProcessorMixin
from torch.nn.modules import module

CLASSES = (
    torch.nn.Module, torch.Tensor, PreTrainedModel, GenerationMixin, DynamicCache, ProcessorMixin, AttentionInterface,
    AttentionMaskInterface, LlavaForConditionalGeneration, Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration, transformers.Qwen2_5_VLProcessor, transformers.AutoProcessor,
)

def picture():
    state = {c.__name__: dict(vars(c)) for c in CLASSES}
    state["attention"] = {name: ALL_ATTENTION_FUNCTIONS[name] for name in ALL_ATTENTION_FUNCTIONS.valid_keys()}
    state["mask"] = {name: ALL_MASK_ATTENTION_FUNCTIONS[name] for name in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()}
    state["get_interface"] = AttentionInterface.get_interface
    state["sdpa"] = torch.nn.functional.scaled_dot_product_attention
    hooks = {k: v for k, v in vars(module).items() if k.startswith("_global_") and hasattr(v, "items")}
    state["hooks"] = {k: dict(v) for k, v in hooks.items()}
    state["threads"] = torch.get_num_threads()
    state["grad"] = torch.is_grad_enabled()
    state["dtype"] = torch.get_default_dtype()
    state["filters"] = list(__import__("warnings").filters)
    return state

before = picture()
import foveate
for name in foveate.__all__:
    getattr(foveate, name)
import foveate.cli, foveate.engine, foveate.families, foveate.pruners, foveate.select
after = picture()
for key in before:
    if before[key] != after[key]:
        print("changed:", key)
print(sorted({"matplotlib", "torchvision"} & set(sys.modules)))
"""


def test_changes_nothing_in_torch_or_transformers():
    assert python(CHANGES_NOTHING).strip() == "[]"


@pytest.mark.parametrize(
    "code", ["import foveate.tiny; [getattr(foveate.tiny, name) for name in dir(foveate.tiny)]", DEMO]
)
def test_who_only_answers_loads_no_training(code):
    """The embedded model's training is a room that neither the demo nor `foveate.tiny` enters."""
    names = python(code + "\nimport sys; print(sorted(name for name in sys.modules if name.startswith('foveate.')))")
    loaded = set(ast.literal_eval(names.strip().splitlines()[-1]))
    assert "foveate.tiny.model" in loaded
    assert not {
        name for name in loaded if name.startswith(("foveate.tiny.training", "foveate.tiny.reading", "foveate.learn"))
    }
