import torch

from foveate.learn.btp.sums import PassSums


def total(numbers):
    return {"sum": torch.tensor(float(sum(numbers)), dtype=torch.float64)}


def test_sums_over_batches(tmp_path):
    seen = []
    state = PassSums(tmp_path / "state.json", {"a": 1})
    sums = state.run("one", range(10), 4, total, lambda *told: seen.append(told))
    assert sums["sum"] == 45
    assert seen == [("one", 4, 10), ("one", 8, 10), ("one", 10, 10)]


def test_what_is_done_is_not_measured_again(tmp_path):
    PassSums(tmp_path / "state.json", {"a": 1}).run("one", range(10), 4, total, about=["x"])
    again = PassSums(tmp_path / "state.json", {"a": 1})
    assert again.run("one", range(10), 4, lambda _: 1 / 0, about=["x"])["sum"] == 45


def test_sums_of_other_candidates_are_not_used(tmp_path):
    PassSums(tmp_path / "state.json", {"a": 1}).run("one", range(10), 4, lambda _: total([100]), about=["x"])
    again = PassSums(tmp_path / "state.json", {"a": 1})
    assert again.run("one", range(10), 4, total, about=["y"])["sum"] == 45
