"""Responses as OpenAI's clients read them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from foveate.serve.jobs import Done, TokenScore


class Wording:
    """Makes the bodies of one request's response.

    Parameters
    ----------
    identity
        Of the response.
    model
        Its name for clients.
    tokenizer
        Of the model, for the tokens that probabilities are told of.
    top
        Whether likely tokens are told of, too.
    """

    def __init__(self, identity: str, model: str, tokenizer: Any, scored: bool) -> None:
        self.identity, self.model, self.tokenizer, self.scored = identity, model, tokenizer, scored
        self.created = int(time.time())

    def whole(self, done: Sequence[Done], usage: dict[str, Any], pruning: dict[str, Any]) -> dict[str, Any]:
        """Return a response that is not streamed."""
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": one.text, "refusal": None},
                "finish_reason": one.reason,
                "logprobs": self._scores(one.scores),
            }
            for number, one in enumerate(done)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage, "foveate": pruning}

    def chunk(
        self,
        number: int,
        delta: dict[str, Any],
        reason: str | None = None,
        scores: Sequence[TokenScore] = (),
        **more: Any,
    ) -> str:
        """Return an event of a stream."""
        logprobs = self._scores(scores) if scores else None
        choice = {"index": number, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **more})

    def last(self, usage: dict[str, Any]) -> str:
        """Return the event with the usage, after all choices."""
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.identity, "object": kind, "created": self.created, "model": self.model}

    def _scores(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if not self.scored:
            return None
        content = []
        for one in scores:
            top = [self._token(token, value) for token, value in one.top]
            content.append({**self._token(one.token, one.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token: int, value: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token])
        # JSON has no infinity, which an impossible token has
        return {"token": text, "logprob": max(value, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}


def event(body: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def usage(prompt_tokens: int, done: Sequence[Done]) -> dict[str, Any]:
    """Return what a request used: the visual tokens of its prompt, dense and kept, too."""
    new = sum(one.tokens for one in done)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new,
        "total_tokens": prompt_tokens + new,
        "visual_tokens": {"dense": done[0].pruned.dense, "kept": done[0].pruned.kept},
    }
