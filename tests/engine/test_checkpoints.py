"""Layers that checkpoint themselves in their `__call__`, as those of older transformers: hooks stay outside."""

from __future__ import annotations

import pytest
from torch import nn

from foveate.engine.compat import hooks_around_checkpoints


class Layer(nn.Module):
    """Has a `__call__` of its own, which is what tells such a layer."""

    def __init__(self, checkpointed=True):
        super().__init__()
        self.gradient_checkpointing, self.seen = checkpointed, []
        self._gradient_checkpointing_func = self.checkpoint

    def checkpoint(self, function, *args):
        self.seen.append("checkpoint")
        return function(*args)

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)

    def forward(self, hidden, use_cache=True, past_key_values=None, other=None):
        self.seen.append((use_cache, past_key_values, other))
        return 2 * hidden


class Plain(Layer):
    __call__ = nn.Module.__call__


def test_within_its_hooks_a_layer_is_checkpointed_without_its_cache():
    layer = Layer()
    layer.register_forward_hook(lambda *_: layer.seen.append("hook"))
    with hooks_around_checkpoints([layer]):
        assert layer.gradient_checkpointing is False
        assert layer(3, use_cache=True, past_key_values="cache", other=1) == 6
        assert layer(3, other=1) == 6
    assert layer.seen == ["checkpoint", (False, None, 1), "hook", "checkpoint", (True, None, 1), "hook"]
    assert layer.gradient_checkpointing is True
    assert "forward" not in vars(layer)


def test_also_after_an_error_a_layer_is_as_it_was():
    layer = Layer()
    own = layer.forward = layer.forward
    with pytest.raises(RuntimeError), hooks_around_checkpoints([layer]):
        raise RuntimeError
    assert layer.gradient_checkpointing is True
    assert layer.forward is own


@pytest.mark.parametrize("layer", [Plain(), Layer(checkpointed=False), Layer().eval()], ids=["plain", "off", "eval"])
def test_others_are_left_alone(layer):
    flag = layer.gradient_checkpointing
    with hooks_around_checkpoints([layer]):
        assert layer.gradient_checkpointing is flag
        assert "forward" not in vars(layer)
    assert layer.gradient_checkpointing is flag
