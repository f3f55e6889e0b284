"""`--device auto`, on builds of torch and machines that are not here."""

import pytest
import torch

from foveate.measure.loading import device_named


@pytest.mark.parametrize(("there", "found"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_accelerator_that_is_there_and_not_the_one_torch_was_built_for(monkeypatch, there, found):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert device_named("auto") == torch.device(found)


def test_auto_where_torch_was_built_for_no_accelerator(monkeypatch):
    def none():
        raise RuntimeError("Cannot access accelerator device when none is available.")  # of torch 2.6

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", none)
    assert device_named("auto") == torch.device("cpu")
