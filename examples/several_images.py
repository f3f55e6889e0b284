"""A batch of prompts with one and with two images, pruned together: each sample keeps what it would keep alone.

python examples/several_images.py
"""

from __future__ import annotations

import numpy as np

import foveate

model, processor = foveate.tiny.load()
scenes = [foveate.tiny.make_scene(np.random.default_rng(seed)).pil() for seed in (3, 4, 5)]
one = foveate.tiny.prompt("how many circles are there?")
two = one.replace("<image>", "<image><image>")

# a list of images for each prompt; decoder-only models are padded on the left
inputs = processor(
    images=[scenes[:1], scenes[1:]], text=[one, two], padding=True, padding_side="left", return_tensors="pt"
)
# per="image": one budget for each image; per="prompt", the default, lets the images of a prompt compete
with foveate.DivPrune(keep=0.25, per="image")(model) as pruned:
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)

for answer in processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True):
    print("answer:", answer.strip())
for sample, images in enumerate(pruned.report.stages[0].per_image):
    print(f"sample {sample}:", ", ".join(f"{kept} of {dense} visual tokens kept" for kept, dense in images))
