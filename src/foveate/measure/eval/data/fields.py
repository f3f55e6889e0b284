"""What a row says: its fields by our names or by others, and whether they hold what they should."""

from __future__ import annotations

import json
import math
import re
import reprlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveate.measure.eval.data.errors import DataError, RowError

FIELDS = ("image", "images", "video", "videos", "question", "answer", "answers", "choices", "boxes", "task")
LETTERS = string.ascii_uppercase
ASK = "Answer with the option's letter from the given choices directly."  # as LLaVA's and MMMU's prompts end


@dataclass(frozen=True)
class Row:
    """What a row says, before its images are opened.

    Parameters
    ----------
    question
        With the choices below it, where it did not have them.
    images, videos
        As they are named, see `Media`.
    answers
        All that count as right; of a choice its letter, then its text. Empty where the truth is not known.
    choices
        The texts of the choices.
    boxes
        (x1, y1, x2, y2) each, as they stand there: shares of the image, or pixels.
    task
        Kind of question.
    """

    question: str
    images: tuple[Any, ...] = ()
    videos: tuple[Any, ...] = ()
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    task: str = "all"


@dataclass(frozen=True)
class Names:
    """What the fields are called in the data.

    Parameters
    ----------
    given
        Our name to theirs; several of theirs for `choices`, a column each.
    question
        For rows that have none.
    """

    given: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    question: str | None = None

    def value(self, fields: Mapping[str, Any], name: str) -> Any:
        """Return what a row has under one of our names, or `None`.

        Raises
        ------
        RowError
            The name was given, and the row has no such field.
        """
        theirs = self.given.get(name)
        if theirs is None:
            return fields.get(name)
        found = [fields.get(one) for one in theirs]
        if len(theirs) > 1:
            return [value for value in found if value is not None] or None
        if theirs[0] not in fields and name in ("question", "image", "images", "video", "videos"):
            raise RowError(f"there is no field '{theirs[0]}'; there are {', '.join(map(str, fields))}")
        return found[0]


def parse_names(pairs: Sequence[str], question: str | None = None) -> Names:
    """Return names of `ours=theirs`; for choices in columns of their own `choices=A,B,C,D`.

    Raises
    ------
    DataError
        One of them is none, names no field of ours, or one that was named already.
    """
    given: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        ours = ours.strip()
        columns = tuple(one.strip() for one in theirs.split(",")) if ours == "choices" else (theirs.strip(),)
        if not equals or not all(columns):
            raise DataError(f"--field is written as question=query, not '{pair}'")
        if ours not in FIELDS:
            raise DataError(f"--field {pair}: no field '{ours}'; there are {', '.join(FIELDS)}")
        if ours in given:
            raise DataError(f"--field {ours} is given twice")
        given[ours] = columns
    return Names(given, question)


def read_row(fields: Mapping[str, Any], names: Names) -> Row:
    """Return what the fields of a row say.

    Raises
    ------
    RowError
        A field is missing, or does not hold what it should.
    """
    value = {name: names.value(fields, name) for name in FIELDS}
    images = (*_media(value["image"], "image"), *_media(value["images"], "images"))
    # a list is the frames of one video
    videos = (*((value["video"],) if value["video"] is not None else ()), *_media(value["videos"], "videos"))
    if not images and not videos:
        raise RowError(_absent("image", fields))
    question = value["question"] if value["question"] is not None else names.question
    if question is None:
        raise RowError(_absent("question", fields))
    if not isinstance(question, str) or not question.strip():
        raise RowError(f"the field 'question' holds no text, but {question!r}")
    if value["answer"] is not None and value["answers"] is not None:
        raise RowError("it has both 'answer' and 'answers'")
    choices = _choices(value["choices"])
    given = value["answer"] if value["answers"] is None else value["answers"]
    answers = (_chosen(given, choices),) if choices and given is not None else _answers(given)
    task = value["task"]
    return Row(
        _with_choices(question.strip(), choices),
        images,
        videos,
        tuple(one for pair in answers for one in pair) if choices else answers,  # type: ignore[arg-type]
        choices,
        _boxes(value["boxes"]),
        "all" if task is None else _text(task, "task"),
    )


def _absent(name: str, fields: Mapping[str, Any]) -> str:
    there = ", ".join(str(one) for one in fields)[:200] or "none"
    return f"the field '{name}' is missing; there are {there}"


def _text(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise RowError(f"the field '{name}' holds no text, but {value!r}")
    return str(value).strip()


def _listed(value: Any) -> Any:
    """A list that a cell of text holds, as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _media(value: Any, name: str) -> tuple[Any, ...]:
    value = _listed(value)
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        if not value:
            raise RowError(f"the field '{name}' is an empty list")
        return tuple(value)
    if isinstance(value, str) and not value.strip():
        raise RowError(f"the field '{name}' is empty")
    return (value,)


def _answers(value: Any) -> tuple[str, ...]:
    """Texts; also of a list of `{"answer": …}`, as VQA has them, and of `{"text": […]}`, as SQuAD has them."""
    value = _listed(value)
    if isinstance(value, Mapping) and isinstance(value.get("text"), list | tuple):
        value = value["text"]
    if value is None or (isinstance(value, list | tuple) and not value):
        return ()
    every = value if isinstance(value, list | tuple) else [value]
    return tuple(_text(one.get("answer") if isinstance(one, Mapping) else one, "answer") for one in every)


def _choices(value: Any) -> tuple[str, ...]:
    value = _listed(value)
    if value is None:
        return ()
    if isinstance(value, Mapping):
        if list(value) != list(LETTERS[: len(value)]):
            raise RowError(f"the field 'choices' has the letters {list(value)}, not A, B, C …")
        value = list(value.values())
    if not isinstance(value, list | tuple):
        raise RowError(f"the field 'choices' is no list, but {reprlib.repr(value)}")
    texts = tuple(_text(one, "choices") for one in value)
    if not 2 <= len(texts) <= len(LETTERS) or len(set(texts)) < len(texts):
        raise RowError(f"the field 'choices' holds 2 to {len(LETTERS)} different texts, not {list(texts)}")
    return texts


def _chosen(value: Any, choices: tuple[str, ...]) -> tuple[str, str]:
    """Letter and text of the right choice, from its letter, its text, or its number from 0."""
    value = _listed(value)
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    text = _text(value, "answer")
    if text in choices:
        at = choices.index(text)
    elif len(text.strip("().")) == 1 and text.strip("().").upper() in LETTERS[: len(choices)]:
        at = LETTERS.index(text.strip("().").upper())
    elif isinstance(value, int) and 0 <= value < len(choices):
        at = value
    else:
        raise RowError(f"the answer {value!r} is none of the choices, their letters, or their numbers from 0")
    return LETTERS[at], choices[at]


def _with_choices(question: str, choices: tuple[str, ...]) -> str:
    pairs = list(zip(LETTERS, choices, strict=False))
    if all(re.search(rf"\b{letter}\W{{1,3}}{re.escape(choice)}", question) for letter, choice in pairs):
        return question  # also without choices
    lines = [f"{letter}. {choice}" for letter, choice in pairs]
    return "\n".join([question, *lines, ASK])


def _boxes(value: Any) -> tuple[tuple[float, ...], ...]:
    value = _listed(value)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise RowError(f"the field 'boxes' is no list of boxes, but {value!r}")
    for box in value:
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(_number(one) for one in box):
            raise RowError(f"a box is four numbers x1, y1, x2, y2, not {box!r}")
        if box[2] <= box[0] or box[3] <= box[1] or min(box) < 0:
            raise RowError(f"the box {list(box)} is empty or reaches beyond the image")
    return tuple(tuple(float(one) for one in box) for box in value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
