"""docs/models.md is what `tested.json` says."""

from __future__ import annotations

import re

from foveate.families import FAMILIES
from tests.ways.page import PAGE, page


def test_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.ways.page`"


def test_no_cell_is_blank_and_every_note_is_there():
    text = PAGE.read_text(encoding="utf-8")
    tables, notes = text.split("## Notes")
    for line in tables.split("## Attention backends")[1].splitlines():
        if line.startswith("| "):
            assert all(cell.strip() for cell in line.strip("|").split("|")), line
    numbers = {int(number) for number in re.findall(r"[✗–] (\d+) \|", tables)}
    assert numbers == {int(number) for number in re.findall(r"^(\d+)\. .", notes, flags=re.MULTILINE)}
    assert all(f"`{name}`" in text for name in FAMILIES)
