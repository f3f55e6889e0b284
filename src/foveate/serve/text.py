"""An answer's text, token by token: no half characters, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"  # the first bytes of a character whose others are still to come


class AnswerText:
    """Text of the tokens so far.

    A piece of text is the difference that new tokens make after those before them, since many tokenizers write a token
    differently at the beginning of a text.

    Parameters
    ----------
    tokenizer
        Of the model.
    stop
        Strings at which the answer ends; they are not part of it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._context = self._read = 0  # decoded again, to see what comes after it; decoded for good
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> None:
        """Take in a token."""
        if not self.stopped:
            self._ids.append(token)
            self._extend(unfinished=False)

    def end(self) -> None:
        """No more tokens will come."""
        if not self.stopped:
            self._extend(unfinished=True)

    @property
    def certain(self) -> int:
        """How many characters of the text no later token can take back."""
        if self.stopped:
            return len(self.text)
        held = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self.text)), held, -1):
                if self.text.endswith(stop[:length]):
                    held = length
                    break
        return len(self.text) - held

    def _extend(self, unfinished: bool) -> None:
        before = self._decode(self._ids[self._context : self._read])
        after = self._decode(self._ids[self._context :])
        if len(after) <= len(before) or (after.endswith(UNFINISHED) and not unfinished):
            return
        known = len(self.text)
        self.text += after[len(before) :]
        self._context, self._read = self._read, len(self._ids)
        found = [self.text.find(stop, max(0, known - len(stop) + 1)) for stop in self._stop]
        places = [place for place in found if place >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""
