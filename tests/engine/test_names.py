"""Arguments are asked for by the names that the model has; one that is not found is never taken for absent."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings

import pytest
import torch
import transformers
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

import foveate
from foveate import FastV, Random
from foveate.engine.arguments import CACHE, NAMES, cache_name, cache_of, find_arguments, with_cache
from foveate.errors import UnsupportedModelError
from foveate.families import family_of, tested
from tests.models.build import BUILDERS, build, build_anew, generate, inputs

MODULES = {
    "base": lambda parts: parts.base,
    "decoder": lambda parts: parts.decoder,
    "layer": lambda parts: parts.layers[3],
    "attention": lambda parts: parts.attention[3],
}


def renamed(module, old, new):
    """`module` takes the argument `old` by the name `new` only, as after a release that renamed it."""
    inner = module.forward
    signature = inspect.signature(inner)
    parameters = [one.replace(name=new) if one.name == old else one for one in signature.parameters.values()]

    @functools.wraps(inner)
    def forward(*args, **kwargs):
        if new in kwargs:
            kwargs[old] = kwargs.pop(new)
        return inner(*args, **kwargs)

    forward.__signature__ = signature.replace(parameters=parameters)
    module.forward = forward


@pytest.mark.oldest
@pytest.mark.parametrize("family", BUILDERS)
def test_names_are_found_in_every_family(family):
    model = build(family)
    names = find_arguments(family_of(model).parts(model))
    assert names.cache in CACHE
    assert cache_name(model) == names.cache
    assert all(own[0] == "hidden_states" for own in names.layer)


@pytest.mark.parametrize("where", MODULES)
@pytest.mark.parametrize("what", ["KV cache", "attention mask"])
def test_a_name_that_nobody_knows_is_refused(where, what):
    model = build_anew("llava")
    parts = family_of(model).parts(model)
    module = MODULES[where](parts)
    old = next(name for name in NAMES[what] if name in inspect.signature(module.forward).parameters)
    renamed(module, old, "hoard")
    before = [len(one._forward_pre_hooks) + len(one._forward_hooks) for one in model.modules()]
    with pytest.raises(UnsupportedModelError) as caught:
        foveate.attach(model, Random(keep=0.3))
    message = str(caught.value)
    assert f"takes no argument for the {what}" in message
    assert "hoard" in message
    assert transformers.__version__ in message
    assert tested.newest_tested() in message
    assert "\n" not in message
    assert before == [len(one._forward_pre_hooks) + len(one._forward_hooks) for one in model.modules()]


@pytest.mark.parametrize("what", ["hidden states", "rotary tables"])
def test_a_layer_must_take_what_is_cut(what):
    model = build_anew("llava")
    renamed(model.get_decoder().layers[0], NAMES[what][0], "hoard")
    with pytest.raises(UnsupportedModelError, match=f"LlamaDecoderLayer takes no argument for the {what}"):
        foveate.attach(model, Random(keep=0.3))


def test_a_cache_under_an_unknown_name_is_refused():
    """A decoder that takes anything may be given its cache by a name that is in no signature."""
    model, batch = build_anew("llava"), inputs("llava", "one image")
    decoder, name = model.get_decoder(), cache_name(build("llava"))
    inner = decoder.forward

    @functools.wraps(inner)
    def forward(*args, hoard=None, **kwargs):
        return inner(*args, **{**kwargs, **({name: hoard} if hoard is not None else {})})

    decoder.forward = forward

    def base(module, args, kwargs):
        return args, {("hoard" if key == name else key): value for key, value in kwargs.items()}

    with Random(keep=0.3, layer=2)(model):
        handle = decoder.register_forward_pre_hook(base, with_kwargs=True, prepend=True)
        with pytest.raises(UnsupportedModelError, match="a KV cache as 'hoard'"):
            generate(model, batch, 2)
        handle.remove()
        generate(model, batch, 2)


@pytest.mark.parametrize("pruner", [Random(keep=0.3), Random(keep=0.3, layer=2), FastV(keep=0.3)])
def test_a_layer_that_hides_its_cache_gives_no_answer(pruner):
    """The proof after a prefill: a layer's cache must hold what the report says."""
    model, batch = build_anew("llava"), inputs("llava", "one image")
    attention = model.get_decoder().layers[3].self_attn
    inner = attention.forward

    @functools.wraps(inner)
    def twice(*args, **kwargs):
        cache = cache_of(kwargs)
        out = inner(*args, **kwargs)
        layer = cache.layers[attention.layer_idx]
        layer.keys, layer.values = torch.cat([layer.keys] * 2, -2), torch.cat([layer.values] * 2, -2)
        return out

    attention.forward = twice
    with pruner(model), pytest.raises(UnsupportedModelError, match="KV cache of layer 3 holds"):
        generate(model, batch, 1)


@pytest.mark.parametrize("pruner", [FastV(keep=0.3), Random(keep=0.3, layer=2, compact_cache=True)])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_checkpointed_layers_need_no_cache(family, pruner):
    """In training transformers takes the cache away from them: that it stays empty is no fault."""
    model, batch = build_anew(family), inputs(family, "ragged")
    model.train()
    with pruner(model):
        expected = model(**batch).logits
        for layer in model.get_decoder().layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
        cache = DynamicCache(config=model.config.get_text_config())
        found = model(**batch, **with_cache(model, cache)).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CACHE)
def test_a_user_may_go_on_with_an_older_name(name):
    """transformers takes the old name with a warning; the engine must see the cache then, too."""
    model, batch = build("llava"), inputs("llava", "one image")
    if name == "cache" and cache_name(model) != "cache":
        pytest.skip("this transformers does not know the new name")
    word = torch.tensor([[7]])
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    logits = []
    for given in (cache_name(model), name):
        cache = DynamicCache(config=model.config.get_text_config())
        with Random(keep=0.3, layer=2)(model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model(**batch, **{given: cache})
            logits.append(model(input_ids=word, attention_mask=mask, **{given: cache}).logits)
        assert cache.layers[3].keys.shape[-2] < cache.layers[0].keys.shape[-2]
    assert torch.equal(*logits)


@pytest.mark.parametrize("use_cache", [True, False])
def test_no_name_is_used_that_is_deprecated(monkeypatch, use_cache):
    """transformers only logs that a field of its outputs has a new name, so that no filter of warnings sees it."""
    said = []
    for module in [*sys.modules.values()]:
        logger = getattr(module, "logger", None)
        if getattr(module, "__name__", "").startswith("transformers.") and hasattr(logger, "warning_once"):
            monkeypatch.setattr(logger, "warning_once", lambda text, *_: said.append(text), raising=False)
    model, batch = build("llava"), inputs("llava", "ragged")
    with FastV(keep=0.3)(model):
        generate(model, batch, 2, use_cache=use_cache)
        with torch.no_grad():
            model(**batch, use_cache=use_cache)
    assert not [one for one in said if "past_key_values" in one]


def test_with_cache_sees_through_wrappers():
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    model = build("llava")
    assert with_cache(Wrapper(model), 1) == with_cache(model, 1) == {cache_name(model): 1}
    with pytest.raises(UnsupportedModelError, match="no argument for the KV cache"):
        cache_name(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(("version", "warned"), [("99.0.0", True), (tested.newest_tested(), False), ("5.4.0", False)])
def test_a_newer_release_is_named_once(monkeypatch, version, warned):
    model = build("llava")  # transformers replaces its own module when it loads one of its models
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    tested.warn_of_untested.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            foveate.attach(model, Random(keep=0.3)).detach()
    said = [str(one.message) for one in caught if "foveate check" in str(one.message)]
    assert len(said) == warned
    assert all("\n" not in one and "99.0.0" in one for one in said)
    tested.warn_of_untested.cache_clear()
