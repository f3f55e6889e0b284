"""Answer one question with all visual tokens and with a quarter of them, and print what was kept and saved.

python examples/quick_start.py
"""

from __future__ import annotations

import numpy as np

import foveate

# The embedded model. For another one: AutoModelForImageTextToText.from_pretrained(name), foveate.load_processor(name)
model, processor = foveate.tiny.load()
image = foveate.tiny.make_scene(np.random.default_rng(3)).pil()
prompt = foveate.tiny.prompt("what shape is the medium blue object?")
inputs = processor(images=[image], text=prompt, return_tensors="pt")


def answer() -> str:
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


print("dense: ", answer())
with foveate.FastV(keep=0.25)(model) as pruned:
    print("pruned:", answer())
print(pruned.report)
