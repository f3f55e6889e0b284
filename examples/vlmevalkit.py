"""Pruned models in VLMEvalKit, which takes no plug-ins: this script registers them, then does what its run.py does.

python PATH/TO/examples/vlmevalkit.py --model tiny-fastv --data MMBench_DEV_EN    # in a clone of VLMEvalKit
"""

import runpy
from functools import partial
from typing import Any

from PIL import Image
from vlmeval.config import supported_VLM
from vlmeval.vlm.base import BaseModel

import foveate
from foveate.measure.eval.answers import run_batch
from foveate.measure.loading import load_model

MODELS = {  # name: (a Hub id, a folder, or `tiny`; any method, or None for the dense model)
    "tiny-fastv": ("tiny", foveate.FastV(keep=0.5)),
    "llava-1.5-7b-dense": ("llava-hf/llava-1.5-7b-hf", None),
    "llava-1.5-7b-btp-22": ("llava-hf/llava-1.5-7b-hf", foveate.BTP(keep=0.22)),
}


class Pruned(BaseModel):
    INTERLEAVE = True  # several images are fine; they all stand before the text

    def __init__(self, model: str, pruner: Any, max_new_tokens: int = 256, **_: Any) -> None:
        self.loaded, self.pruner, self.longest = load_model(model), pruner, max_new_tokens

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        images = [Image.open(part["value"]).convert("RGB") for part in message if part["type"] == "image"]
        question = "\n".join(part["value"] for part in message if part["type"] == "text")
        return run_batch(self.loaded, [question], [images], self.pruner, self.longest).texts[0]


supported_VLM.update({name: partial(Pruned, *setting) for name, setting in MODELS.items()})
runpy.run_path("run.py", run_name="__main__")
