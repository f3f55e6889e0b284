"""Metrics against the examples and formulas of their papers and reference scripts."""

import pytest

from foveate.measure.eval.metrics import (
    METRICS,
    MetricError,
    anls,
    check_mode,
    choice,
    contains,
    exact,
    f1,
    meant,
    parse_metrics,
    relaxed,
    scores,
    vqa,
    vqa_text,
)


@pytest.mark.parametrize(
    ("answer", "truths", "score"),
    [
        # the examples of the SQuAD paper's metric: articles, case and punctuation are nothing
        ("The Denver Broncos.", ["Denver Broncos"], 1),
        ("denver  broncos", ["Carolina Panthers", "Denver Broncos"], 1),
        ("Broncos", ["Denver Broncos"], 0),
        ("35", ["3.5"], 0),
        ("3.5", ["3.5"], 1),
        ("1,000", ["1000"], 1),
        ("", ["no"], 0),
    ],
)
def test_exact(answer, truths, score):
    assert exact(answer, truths) == score


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [("It is the Eiffel Tower.", "Eiffel tower", 1), ("a category", "cat", 0), ("cat", "cat sat", 0), ("x", "the", 0)],
)
def test_containment_is_of_whole_words(answer, truth, score):
    assert contains(answer, [truth]) == score


def test_f1_is_of_shared_words():
    # SQuAD's script: 2 of 3 words said are right, 2 of 2 right ones were said
    assert f1("in Denver Broncos", ["the Denver Broncos"]) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert f1("red red", ["red"]) == pytest.approx(2 * 0.5 * 1 / 1.5)  # a word counts as often as it stands
    assert f1("blue", ["red", "dark blue"]) == pytest.approx(2 / 3)
    assert f1("the", ["a"]) == 1
    assert f1("", ["red"]) == 0


@pytest.mark.parametrize(
    ("answer", "truths", "score"),
    [
        # Biten et al., sec. 4: 1 - NL where NL < 0.5, the best of all right answers
        ("hello", ["hallo"], 0.8),
        ("Hello World", ["hello world"], 1),
        ("abc", ["abd", "xyz"], 1 - 1 / 3),
        ("abcd", ["abxy"], 0),  # NL is 0.5, which is not less
        ("abcd", ["abcx"], 0.75),
        ("", ["abc"], 0),
    ],
)
def test_anls(answer, truths, score):
    pytest.importorskip("rapidfuzz")
    assert anls(answer, truths) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        # the docstring of the published script: 5 % of the right number; text must be the same
        ("10.5", "10", 1),
        ("10.51", "10", 0),
        ("9.5", "10", 1),
        ("52%", "50%", 1),
        ("0.5", "50%", 1),
        ("2019", "2020", 1),
        ("Yes", "yes", 1),
        ("yes.", "yes", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),  # as in the script, a truth of 0 is text
        ("ten", "10", 0),
    ],
)
def test_relaxed_numbers(answer, truth, score):
    assert relaxed(answer, [truth]) == score


@pytest.mark.parametrize(("same", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_over_ten_answers(same, score):
    """min(1, n / 3) of the nine others, averaged over the ten: the known values of the server."""
    assert vqa("yes", ["yes"] * same + ["no"] * (10 - same)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "as_compared"),
    [
        ("The dog.", "dog"),
        ("two dogs", "2 dogs"),
        ("dont know", "don't know"),
        ("red, white & blue", "red white & blue"),
        ("1,000", "1000"),
        ("yes/no", "yes no"),
        ("None", "0"),
        ("couldnt've", "couldn't've"),
    ],
)
def test_vqa_normalisation(text, as_compared):
    assert vqa_text(text) == as_compared


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("(b)", "B"), ("B.", "B"), ("B. a dog", "B"), ("The answer is B.", "B"), ("Answer: C", "C"),
        ("option (C)", "C"), ("dog", "B"), ("A dog.", "B"), ("I see a bird.", "C"), ("a cat or a dog", None),
        ("A", "A"), ("D", None), ("", None), ("neither", None),
    ],
)  # fmt: skip
def test_a_choice_by_letter_and_by_text(answer, letter):
    choices = ("cat", "dog", "a bird")
    assert meant(answer, choices) == letter
    assert choice(answer, ("B", "dog"), choices) == (letter == "B")


def test_scores_by_name():
    found = scores(["f1", "agreement", "identical", "kl"], "The dog.", ["dog"], (), "dog")
    assert found == {"f1": 1, "agreement": 1, "identical": 0}


def test_metrics_by_task_and_for_all():
    metrics = parse_metrics(["anls,f1", "charts=relaxed"])
    assert metrics.of("charts", True, False, "generate") == ("relaxed",)
    assert metrics.of("pages", True, False, "generate") == ("anls", "f1")
    usual = parse_metrics([])
    assert usual.of("x", True, False, "generate") == ("exact",)
    assert usual.of("x", True, True, "score") == ("choice",)
    assert usual.of("x", False, False, "generate") == ("agreement", "identical", "kl")


@pytest.mark.parametrize("given", [["nope"], ["=anls"], ["f1,f1"], ["f1", "f1"], ["kl"], ["f1,"], [""]])
def test_metrics_that_make_no_sense(given):
    with pytest.raises(MetricError):
        parse_metrics(given)


def test_a_mode_without_answers_has_no_metric_of_answers():
    with pytest.raises(MetricError, match="anls"):
        check_mode("score", parse_metrics(["anls"]), True)
    with pytest.raises(MetricError, match="--data"):
        check_mode("generate", parse_metrics(["f1"]), False)
    with pytest.raises(MetricError, match="nope"):
        check_mode("nope", parse_metrics([]), True)


def test_every_metric_says_what_it_needs():
    assert {one.needs for one in METRICS.values()} == {"truth", "dense", "logits"}
