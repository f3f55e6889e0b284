import contextlib

import pytest
import torch

from foveate.errors import UnsupportedModelError
from foveate.learn.btp.curve import TurnCurve
from tests.models.build import IMAGE, build, inputs
from tests.models.sizes import LAYERS

NEAR = 1e-5  # of a threshold: on which side of it a cosine lies depends on the rounding of one processor


def by_hand(model, batch, taus):
    """From every layer's states at once.

    Returns
    -------
    least, most : Tensor (T, layers)
        The share of tokens under each threshold, without and with those at it.
    cosines : Tensor (layers,)
        Means.
    """
    states = []
    layers = model.get_decoder().layers
    handles = [
        layer.register_forward_hook(
            lambda layer, args, kwargs, output: states.append(
                (
                    args[0] if args else kwargs["hidden_states"],
                    output[0] if isinstance(output, tuple) else output,
                )
            ),
            with_kwargs=True,
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    rows = [row for row in range(len(batch["input_ids"])) if (batch["input_ids"][row] == IMAGE).any()]
    least, most = torch.zeros(2, len(taus), len(layers))
    cosines = torch.zeros(len(layers))
    for number, (before, after) in enumerate(states):
        for row in rows:
            visual = batch["input_ids"][row] == IMAGE
            x, y = before[row, visual].double(), after[row, visual].double()
            cosine = (x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1)
            for shares, side in ((least, -NEAR), (most, NEAR)):
                shares[:, number] += torch.stack([(cosine < tau + side).float().mean() for tau in taus]) / len(rows)
            cosines[number] += cosine.mean() / len(rows)
    return least, most, cosines


def watched(model, batches, tau=0.93):
    curve = TurnCurve(LAYERS, tau)
    for batch in batches:
        with torch.no_grad(), curve.watch(model, batch):
            model(**batch)
    return curve


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("layout", ["ragged", "ragged with text only"])
def test_the_curve_is_what_is_counted_by_hand(family, layout):
    model, batch = build(family), inputs(family, layout)
    curve = watched(model, [batch])
    found = curve.result()
    least, most, cosines = by_hand(model, batch, curve.taus)
    assert found.samples == (2 if layout == "ragged with text only" else 3)
    shares = torch.tensor(list(found.shares.values()))
    assert (shares >= least - 1e-6).all()
    assert (shares <= most + 1e-6).all()
    assert (most - least).mean() < 0.01  # so that this says something
    assert torch.allclose(torch.tensor(found.cosines), cosines, atol=1e-6)
    assert 0 < shares.mean() < 1  # there is something to count


def test_batches_add_up_to_the_whole():
    model = build("llava")
    batches = [inputs("llava", "one image", seed) for seed in (1, 2, 3)]
    parts = watched(model, batches).result()
    whole = {
        "input_ids": torch.cat([batch["input_ids"] for batch in batches]),
        "attention_mask": torch.cat([batch["attention_mask"] for batch in batches]),
        "pixel_values": torch.cat([batch["pixel_values"] for batch in batches]),
    }
    together = watched(model, [whole]).result()
    assert parts.samples == together.samples == 3
    assert parts.cosines == pytest.approx(together.cosines)
    for tau, row in parts.shares.items():
        assert row == pytest.approx(together.shares[tau])


def test_sums_do_not_grow_with_the_samples():
    model = build("llava")
    one, many = (watched(model, [inputs("llava", "one image")] * number) for number in (1, 5))
    assert {name: value.shape for name, value in one.sums.items()} == {
        name: value.shape for name, value in many.sums.items()
    }


def test_the_model_is_left_as_it_was_also_after_an_error():
    model, batch = build("llava"), inputs("llava", "one image")
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    curve = TurnCurve(LAYERS)
    with torch.no_grad():
        dense = model(**batch).logits
        with contextlib.suppress(ZeroDivisionError), curve.watch(model, batch):
            model(**batch)
            raise ZeroDivisionError
        assert torch.equal(model(**batch).logits, dense)
    assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert curve.result().samples == 0  # half a batch does not count


def test_a_pruned_model_has_no_such_curve():
    import foveate

    model, batch = build("llava"), inputs("llava", "one image")
    with (
        foveate.Random(keep=0.5, layer=2)(model),
        TurnCurve(LAYERS).watch(model, batch),
        torch.no_grad(),
        pytest.raises(RuntimeError, match="detach"),
    ):
        model(**batch)


def test_an_unknown_model_is_refused():
    with pytest.raises(UnsupportedModelError), TurnCurve(2).watch(torch.nn.Linear(2, 2), inputs("llava", "one image")):
        pass


def test_a_flat_curve_is_read_elsewhere_and_says_so():
    curve = TurnCurve(3, tau=0.93)
    curve.sums["samples"] += 1
    curve.sums["under"][curve.taus.index(0.98)] += torch.tensor([0.125, 0.5, 0.25])
    curve.sums["under"][curve.taus.index(0.99)] += torch.tensor([0.25, 0.625, 0.25])
    found = curve.result()
    assert found.tau == 0.98  # 0.99 varies as much, but lies farther off
    assert found.turned == pytest.approx([0.125, 0.5, 0.25])
    assert "0.93" in found.note
    assert "0.98" in found.note


def test_a_curve_that_is_not_flat_is_read_where_it_was_asked_for():
    curve = TurnCurve(3, tau=0.9)
    curve.sums["samples"] += 1
    curve.sums["under"][curve.taus.index(0.9)] += torch.tensor([0.0, 0.03, 0.0])
    curve.sums["under"][curve.taus.index(0.98)] += torch.tensor([0.1, 0.5, 0.2])
    assert curve.result().tau == 0.9
    assert curve.result().note is None
