"""The embedded model: a small, real LLaVA that ships with the package, its scenes and its questions."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.tiny.clips import CLIP_TASKS as CLIP_TASKS
    from foveate.tiny.clips import Clip as Clip
    from foveate.tiny.clips import held_out_clips as held_out_clips
    from foveate.tiny.harder import HARD_STYLE as HARD_STYLE
    from foveate.tiny.harder import HARD_TASKS as HARD_TASKS
    from foveate.tiny.harder import ask_hard as ask_hard
    from foveate.tiny.harder import held_out_hard as held_out_hard
    from foveate.tiny.large import LARGE_TASKS as LARGE_TASKS
    from foveate.tiny.large import held_out_large as held_out_large
    from foveate.tiny.model import load as load
    from foveate.tiny.model import prompt as prompt
    from foveate.tiny.pairs import PAIR_TASKS as PAIR_TASKS
    from foveate.tiny.pairs import held_out_pairs as held_out_pairs
    from foveate.tiny.questions import LONG_TASKS as LONG_TASKS
    from foveate.tiny.questions import SHORT_TASKS as SHORT_TASKS
    from foveate.tiny.questions import TASKS as TASKS
    from foveate.tiny.questions import Question as Question
    from foveate.tiny.questions import ask as ask
    from foveate.tiny.questions import evidence_tokens as evidence_tokens
    from foveate.tiny.questions import held_out as held_out
    from foveate.tiny.scenes import Scene as Scene
    from foveate.tiny.scenes import make_scene as make_scene

_WHERE = {
    "CLIP_TASKS": "clips",
    "Clip": "clips",
    "HARD_STYLE": "harder",
    "HARD_TASKS": "harder",
    "LARGE_TASKS": "large",
    "LONG_TASKS": "questions",
    "PAIR_TASKS": "pairs",
    "Question": "questions",
    "SHORT_TASKS": "questions",
    "Scene": "scenes",
    "TASKS": "questions",
    "ask": "questions",
    "ask_hard": "harder",
    "evidence_tokens": "questions",
    "held_out": "questions",
    "held_out_clips": "clips",
    "held_out_hard": "harder",
    "held_out_large": "large",
    "held_out_pairs": "pairs",
    "load": "model",
    "make_scene": "scenes",
    "prompt": "model",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    if name in {"clips", "drawing", "harder", "large", "pairs", "questions", "scenes", "textures", "vocabulary"}:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
