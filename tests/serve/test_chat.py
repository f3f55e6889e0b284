"""The official client against a real server: answers, streams, several images and turns, overrides, errors."""

from __future__ import annotations

import openai
import pytest

import foveate
from foveate.measure.eval.answers import run_batch
from tests.serve.conftest import running, turn, until, uri

GREEDY = {"model": "tiny", "temperature": 0}


def alone(loaded, scene, keep=0.3):
    """The answer to a scene without any server."""
    from foveate.serve.media import decode_image, from_data_uri
    from foveate.serve.settings import Settings

    settings = Settings(served_name="tiny")
    image = decode_image(from_data_uri(scene[0], settings.max_image_bytes), settings)
    pruner = None if keep == 1.0 else foveate.GreedyPrune(keep=keep)
    return run_batch(loaded, [scene[1]], [[image]], pruner).texts[0]


def test_an_answer_is_that_of_the_pruned_model(client, loaded, scenes):
    for scene in scenes[:3]:
        found = client.chat.completions.create(**GREEDY, messages=[turn(scene[1], scene[0])])
        assert found.choices[0].message.content.strip() == alone(loaded, scene)
        assert found.choices[0].finish_reason == "stop"
        assert found.usage.model_extra["visual_tokens"] == {"dense": 256, "kept": 77}
        assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
        assert found.model_extra["foveate"] == {"method": "greedyprune", "keep": 0.3, "skipped": None}


def test_a_stream_has_the_same_answer(client, scenes):
    asked = {**GREEDY, "messages": [turn(scenes[3][1], scenes[3][0])], "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(one.delta.content or "" for one in choices) == whole.choices[0].message.content
    assert choices[0].delta.role == "assistant"
    assert [one.finish_reason for one in choices if one.finish_reason] == ["stop"]
    scores = [token for one in choices if one.logprobs for token in one.logprobs.content]
    assert [one.token for one in scores] == [one.token for one in whole.choices[0].logprobs.content]
    assert all(len(one.top_logprobs) == 2 and one.logprob == one.top_logprobs[0].logprob for one in scores)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == len(scores)


def test_several_images_and_turns(client, loaded, scenes):
    (first, question), (second, _) = scenes[:2]
    two = client.chat.completions.create(**GREEDY, messages=[turn(question, first, second)])
    assert two.usage.model_extra["visual_tokens"]["dense"] == 2 * 256
    before = client.chat.completions.create(**GREEDY, messages=[turn(question, first)])
    said = before.choices[0].message.content
    later = client.chat.completions.create(
        **GREEDY, messages=[turn(question, first), turn(said, role="assistant"), turn("how many stars ?")]
    )
    assert later.usage.model_extra["visual_tokens"]["dense"] == 256
    assert later.usage.prompt_tokens > before.usage.total_tokens


def test_text_alone_says_why_nothing_is_pruned(client):
    found = client.chat.completions.create(**GREEDY, messages=[turn("how many stars ?")], max_tokens=2)
    assert found.usage.model_extra["visual_tokens"] == {"dense": 0, "kept": 0}
    assert "visual" in found.model_extra["foveate"]["skipped"]


@pytest.mark.parametrize(
    ("asked", "kept", "method"),
    [
        ({"keep": 0.5}, 128, "greedyprune"),
        ({"keep": 40}, 40, "greedyprune"),
        ({"method": "random"}, 77, "random"),
        ({"method": "dense"}, 256, "dense"),
        ({"keep": 1.0}, 256, "dense"),
    ],
)
def test_a_request_may_choose(client, scenes, asked, kept, method):
    image, question = scenes[0]
    found = client.chat.completions.create(**GREEDY, messages=[turn(question, image)], extra_body={"foveate": asked})
    assert found.usage.model_extra["visual_tokens"] == {"dense": 256, "kept": kept}
    assert found.model_extra["foveate"]["method"] == method


def test_not_beyond_the_operators_limits(client, scenes, loaded):
    def ask(whom, **asked):
        message = turn(scenes[0][1], scenes[0][0])
        whom.chat.completions.create(**GREEDY, messages=[message], extra_body={"foveate": asked})

    with pytest.raises(openai.BadRequestError, match="between 0.1 and 1.0"):
        ask(client, keep=0.05)
    with pytest.raises(openai.BadRequestError, match="between 0.1 and 1.0"):
        ask(client, keep=4)
    with pytest.raises(openai.BadRequestError, match="ambiguous"):
        ask(client, keep=1)
    with pytest.raises(openai.PermissionDeniedError, match="does not allow the method 'fastv'"):
        ask(client, method="fastv")
    with running(loaded) as closed:
        for asked in ({"keep": 0.5}, {"method": "dense"}, {"method": "random"}):
            with pytest.raises(openai.PermissionDeniedError, match="does not allow"):
                ask(closed.client(), **asked)
        ask(closed.client(), method="greedyprune")


def test_where_pruning_cannot_pay_it_runs_dense_and_says_so(loaded, scenes):
    image, question = scenes[0]
    with running(loaded, keep=0.3, min_visual=257) as server:
        found = server.client().chat.completions.create(**GREEDY, messages=[turn(question, image)])
        both = server.client().chat.completions.create(**GREEDY, messages=[turn(question, image, image)])
    assert found.usage.model_extra["visual_tokens"] == {"dense": 256, "kept": 256}
    assert "fewer than min_visual=257" in found.model_extra["foveate"]["skipped"]
    assert found.choices[0].message.content.strip() == alone(loaded, scenes[0], keep=1.0)
    assert both.usage.model_extra["visual_tokens"] == {"dense": 512, "kept": 154}
    assert both.model_extra["foveate"]["skipped"] is None


def test_samples_by_seed(client, scenes):
    image, question = scenes[11]  # a list of colours, of which the model is not sure
    asked = {"model": "tiny", "messages": [turn(question, image)], "temperature": 2.0, "n": 4, "max_tokens": 12}
    first, same, other = (client.chat.completions.create(**asked, seed=seed) for seed in (1, 1, 9))
    texts = [[one.message.content for one in found.choices] for found in (first, same, other)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 1
    coldest = client.chat.completions.create(**asked | {"top_p": 1e-6})
    assert len({one.message.content for one in coldest.choices}) == 1


def test_stop_and_length(client, scenes):
    asked = {**GREEDY, "messages": [turn(scenes[3][1], scenes[3][0])]}  # a number of two digits
    whole = client.chat.completions.create(**asked)
    text = whole.choices[0].message.content
    short = client.chat.completions.create(**asked, max_completion_tokens=1)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 1)
    stopped = client.chat.completions.create(**asked, stop=[text[-1]])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == text[: text.index(text[-1])]


def image():
    from PIL import Image

    return uri(Image.new("RGB", (8, 8)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 5}, "n is at most 4"),
        ({"max_tokens": 10**9}, "1024 new tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop is"),
        ({"stop": list("abcde")}, "stop is"),
        ({"top_logprobs": 2}, "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "needs stream"),
        ({"model": "gpt"}, "has the model 'tiny'"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages"),
        ({"messages": [turn("what is <image> ?")]}, "marks its images"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": image()}}]}]},
            "'user'",
        ),
        ({"messages": [turn("x")] * 300}, "256 messages"),
        ({"messages": [turn("how " * 2100)]}, "2047 are allowed"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": one} for one in ("<ima", "ge>")]}]},
            "marks",
        ),
        ({"messages": [turn("x", *[image()] * 17)]}, "16 images"),
    ],
)
def test_every_wrong_request_gets_a_reason(client, change, message):
    asked = {**GREEDY, "messages": [turn("how many stars ?")], **change}
    named = {name: asked.pop(name) for name in ("model", "messages")}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**named, extra_body=asked)
    body = error.value.body
    assert message in body["message"]
    assert {"message", "type", "param", "code"} == set(body)
    assert "/" not in body["message"].replace("image/png", "")


def test_the_model_is_listed(client):
    (found,) = client.models.list().data
    assert (found.id, found.model_extra["foveate"]["keep"]) == ("tiny", 0.3)
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.models.retrieve("org/other")


def test_nothing_is_left_on_the_model(client, server, scenes):
    client.chat.completions.create(**GREEDY, messages=[turn(scenes[0][1], scenes[0][0])])
    until(lambda: not any(module._forward_pre_hooks for module in server.service.loaded.model.modules()))
