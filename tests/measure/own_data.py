"""Files of questions, in every form that is read."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.measure.folders import picture


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def rows(folder: Path, number: int = 6) -> list[dict[str, Any]]:
    """Rows with paths to images of several sizes; the answers are words that the random model may well say."""
    found = []
    for at in range(number):
        picture(at, 40 + 8 * (at % 3), 30).save(folder / f"{at}.png")
        question = "what is this ?" if at % 2 else "where is this colour ? what is this ?"
        found.append(
            {"image": f"{at}.png", "question": question, "answer": "word1", "task": ["first", "second"][at % 2]}
        )
    return found


def write_jsonl(path: Path, given: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return path


def write_csv(path: Path, given: list[dict[str, Any]], sign: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(given[0]), delimiter=sign)
        writer.writeheader()
        writer.writerows(given)
    return path
