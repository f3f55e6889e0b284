"""A process that runs for weeks: what a report holds and what reading it costs do not grow with the requests."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
import tracemalloc
import weakref

import pytest
import torch
from transformers.modeling_utils import AttentionInterface

from foveate import FastV, Random
from foveate.engine import attach
from foveate.engine import attention_rows as rows
from foveate.engine.history import LAST, History
from foveate.engine.report import summarise
from tests.models.build import build, inputs
from tests.vision_probe import Look

TEXT_ONLY = {"input_ids": torch.arange(5, 12)[None]}


def test_the_last_prefills_are_there_and_all_are_counted():
    model, batch = build("llava"), inputs("llava", "one image")
    with attach(model, Random(keep=0.3)) as handle, torch.no_grad():
        model(**batch)
        for _ in range(LAST + 4):
            model(**TEXT_ONLY)
        with handle.paused():
            model(**batch)
        report = handle.report
        assert (len(report.prefills), report.seen) == (LAST, LAST + 6)
        assert sum(report.skips.values()) == LAST + 5
        assert report.skips["the pruner was paused"] == 1
        assert f"{LAST + 6} prefills" in repr(report)
        report.clear()
        assert (len(handle.report.prefills), handle.report.seen, handle.report.skips) == (0, 0, {})
        assert report.seen == LAST + 6
        model(**batch)
        assert handle.report.stages[0].kept[0].numel() > 0
    assert handle.report.seen == 1  # it stays after detaching


def test_a_report_is_equal_to_another_reading_of_it_and_copies_forget_nothing():
    model, batch = build("llava"), inputs("llava", "one image")
    with attach(model, Random(keep=0.3)) as handle, torch.no_grad():
        model(**batch)
        first, second = handle.report, handle.report
        assert first == second
        for twin in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
            assert twin == first
            twin.clear()
            assert handle.report.seen == 1


def test_only_the_newest_prefill_holds_tensors_of_its_device():
    model, batch = build("llava"), inputs("llava", "one image")
    with attach(model, FastV(keep=0.3)) as handle, torch.no_grad():
        for _ in range(3):
            model(**batch)
        records = handle._history.records
        moved = [type(record.stages[0].elapsed).__name__ for record in records]  # read once, when tensors move
        assert moved[:2] == ["partial", "partial"]
        assert moved[2] != "partial"
        kept = [handle.report.prefills[at].stages[0].kept[0].tolist() for at in range(3)]
        assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize("read", [False, True])
def test_memory_is_flat_over_twenty_thousand_prefills(read):
    """With records of a real prefill: the model itself would take minutes."""
    model, batch = build("llava"), inputs("llava", "one image")
    with attach(model, Random(keep=0.3)) as handle, torch.no_grad():
        model(**batch)
        record, about = copy.deepcopy(handle._history.records[0]), handle._summarise
    history, sizes = History(), []
    tracemalloc.start()
    for number in range(20_000):
        history.to_host()
        history.append(copy.copy(record))
        if read and number % 500 == 0:
            assert history.report(about).seen == number + 1
        if number in (2_000, 19_999):
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[1] - sizes[0] < 20_000
    assert history.counts[None] == 20_000
    assert len(history.records) == LAST


def test_reading_makes_each_entry_once():
    model, batch = build("llava"), inputs("llava", "one image")
    with attach(model, Random(keep=0.3)) as handle, torch.no_grad():
        model(**batch)
        made = []

        def counted(record):
            made.append(record)
            return summarise(record, model.config.get_text_config(), 6)

        for _ in range(5):
            handle._history.report(counted)
        assert len(made) == 1


@pytest.mark.parametrize("interrupted", [False, True])
def test_threads_that_ended_leave_nothing(interrupted):
    """A server has a thread for each request; with a table by their idents those that were interrupted would stay."""
    model, batch = build("llava"), inputs("llava", "one image")
    lookup, left = AttentionInterface.get_interface, []

    def stop(module, args):
        raise KeyboardInterrupt

    def prefill():
        with torch.no_grad(), contextlib.suppress(KeyboardInterrupt):
            model(**batch)
        own = here.forwards.own, here.vision.threads.own, rows._taps.own
        left.extend(weakref.ref(one) for one in own if one is not None)

    with attach(model, Look(blocks=(1,), attended=(1,))) as handle:
        here = handle._hooks.attachment
        broken = here.vision.attention[1].register_forward_pre_hook(stop) if interrupted else None
        for _ in range(6):
            thread = threading.Thread(target=prefill)
            thread.start()
            thread.join()
        if broken is not None:
            broken.remove()
        gc.collect()
        assert len(left) == 6 * (3 if interrupted else 2)
        assert not [one() for one in left if one() is not None]
        assert AttentionInterface.get_interface is lookup
