"""foveate as a model of lmms-eval: `lmms-eval --model foveate --model_args pretrained=…,method=btp,keep=0.22`."""

from typing import Any


def manifests() -> list[Any]:
    """Return what lmms-eval is to know, which finds this by the entry point `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="foveate", chat_class_path="foveate.measure.lmms.model.Foveate")]
