"""Quantise the decoder of a vision-language model into a folder, for `foveate check` and `run`: docs/quantised.md.

pip install bitsandbytes accelerate
python examples/quantised.py Qwen/Qwen3-VL-8B-Instruct qwen3-vl-8b-4bit
foveate check qwen3-vl-8b-4bit --methods greedyprune:keep=0.22
python examples/quantised.py qwen3-vl-8b-4bit --image cat.jpg --prompt "What is on the sofa?"
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

import foveate

# The encoder sees each image once and is small; the head decides on the words. Both stay as they are.
AS_THEY_ARE = ["model.visual", "model.vision_tower", "model.multi_modal_projector", "lm_head"]


def quantisation(weights: str) -> Any:
    """What `from_pretrained` is given for `nf4` (bitsandbytes, 4 bits), `int8` or `int4` (torchao)."""
    if weights == "nf4":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=AS_THEY_ARE,
        )
    from torchao import quantization
    from transformers import TorchAoConfig

    kind = quantization.Int8WeightOnlyConfig() if weights == "int8" else quantization.Int4WeightOnlyConfig()
    return TorchAoConfig(kind, modules_to_not_convert=AS_THEY_ARE)


def save(name: str, folder: str, weights: str) -> None:
    """Load the model quantised, layer by layer, and save it with its processor."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(
        name, dtype=torch.bfloat16, device_map=place, quantization_config=quantisation(weights)
    )
    model.save_pretrained(folder)
    foveate.load_processor(name).save_pretrained(folder)
    print(f"{folder}: {model.get_memory_footprint() / 2**30:.2f} GiB of weights on {place}")


def answer(folder: str, image: str, prompt: str, keep: float) -> None:
    """Answer one question dense and pruned, and print the report."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", device_map="auto").eval()
    processor = foveate.load_processor(folder)
    content = [{"type": "image", "image": Image.open(image).convert("RGB")}, {"type": "text", "text": prompt}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, model.dtype)
    start = inputs["input_ids"].shape[1]
    dense = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    with foveate.GreedyPrune(keep=keep)(model) as pruned:
        out = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    for title, found in (("dense", dense), ("pruned", out)):
        print(f"{title}: {processor.batch_decode(found[:, start:], skip_special_tokens=True)[0]}")
    print(pruned.report)
    if torch.cuda.is_available():
        print(f"peak memory: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hub id or a folder")
    parser.add_argument("folder", nargs="?", help="where the quantised model goes; without it, a question is answered")
    parser.add_argument("--weights", choices=["nf4", "int8", "int4"], default="nf4")
    parser.add_argument("--image")
    parser.add_argument("--prompt", default="What is in this image?")
    parser.add_argument("--keep", type=float, default=0.22)
    given = parser.parse_args()
    if given.folder:
        save(given.model, given.folder, given.weights)
    elif given.image:
        answer(given.model, given.image, given.prompt, given.keep)
    else:
        parser.error("give a folder to save to, or --image for an answer")


if __name__ == "__main__":
    main()
