"""What an answer scores: from 0 to 1 against the truth, or against the dense model's answer where none is known."""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from foveate.errors import FoveateError

ALL = ""  # the metrics of every task that has none of its own


class MetricError(FoveateError, ValueError):
    """No metric of this name, or one that cannot be computed; the message says why."""


@dataclass(frozen=True)
class Metric:
    """One way to score answers.

    Parameters
    ----------
    name
        On the command line.
    score
        `(answer, right answers, choices) -> score from 0 to 1`; `None` where the score is not of texts.
    needs
        "truth", the "dense" model's answer, or "logits" of the model.
    lower
        Less is better.
    """

    name: str
    score: Callable[[str, Sequence[str], Sequence[str]], float] | None
    needs: str = "truth"
    lower: bool = False


# normalisation ---------------------------------------------------------------------------------------------------

ARTICLES = re.compile(r"\b(a|an|the)\b")
POINT = re.compile(r"(?<=\d)\.(?=\d)")  # of a number


def squad_words(text: str) -> list[str]:
    """Return the words of a text as SQuAD compares them: lower case, without punctuation and articles.

    A point within a number stays, which in SQuAD's own script it does not: 3.5 is not 35.
    """
    kept = {match.start() for match in POINT.finditer(text)}
    bare = "".join(sign for at, sign in enumerate(text.lower()) if sign not in string.punctuation or at in kept)
    return ARTICLES.sub(" ", bare).split()


NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll let's ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've
somebody'd somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
they've wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd
who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
you'd you'd've you'll you're you've
"""
APOSTROPHES = {
    "".join(parts).lower(): word
    for word in CONTRACTIONS.split()
    for parts in itertools.product(*(("'", "") if sign == "'" else (sign,) for sign in word))
}
VQA_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
VQA_COMMA = re.compile(r"(\d)(,)(\d)")
VQA_POINT = re.compile(r"(?!<=\d)(\.)(?!\d)")  # as it stands in VQA's own script


def vqa_text(text: str) -> str:
    """Return a text as VQA's evaluation compares it: punctuation, number words, articles and contractions.

    Antol et al., VQA: Visual Question Answering, ICCV 2015, the script of its server.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    comma = VQA_COMMA.search(text) is not None
    bare = text
    for sign in VQA_SIGNS:
        apart = f"{sign} " in text or f" {sign}" in text
        bare = bare.replace(sign, "" if apart or comma else " ")
    words = [NUMBERS.get(word, word) for word in VQA_POINT.sub("", bare).lower().split()]
    return " ".join(APOSTROPHES.get(word, word) for word in words if word not in ("a", "an", "the"))


# against the truth -----------------------------------------------------------------------------------------------


def exact(answer: str, truths: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return 1 where the answer is one of the right ones, both as SQuAD normalises them."""
    return float(any(squad_words(answer) == squad_words(truth) for truth in truths))


def contains(answer: str, truths: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return 1 where the words of a right answer follow each other in the answer, both as SQuAD normalises them."""
    words = squad_words(answer)

    def within(part: list[str]) -> bool:
        if not part:
            return not words
        return any(words[at : at + len(part)] == part for at in range(len(words) - len(part) + 1))

    return float(any(within(squad_words(truth)) for truth in truths))


def f1(answer: str, truths: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return the F1 of the words shared with the right answer that fits best, as SQuAD counts them."""

    def one(truth: str) -> float:
        said, right = squad_words(answer), squad_words(truth)
        if not said or not right:
            return float(said == right)
        shared = sum((Counter(said) & Counter(right)).values())
        return 2 * shared / (len(said) + len(right))

    return max(map(one, truths), default=0.0)


def anls(answer: str, truths: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return the normalised Levenshtein similarity to the right answer that fits best, 0 under one half.

    Biten et al., Scene Text Visual Question Answering, ICCV 2019; letters of either case are the same.
    """
    from rapidfuzz.distance import Levenshtein

    def one(truth: str) -> float:
        distance = Levenshtein.normalized_distance(_plain(answer), _plain(truth))
        return 1 - distance if distance < 0.5 else 0.0

    return max(map(one, truths), default=0.0)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def relaxed(answer: str, truths: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return 1 where a number is within 5 % of the right one, or other text is the same but for case.

    Masry et al., ChartQA, Findings of ACL 2022; 50 % is 0.5, and a truth of 0 is compared as text.
    """
    return float(any(_relaxed(answer.strip(), truth.strip()) for truth in truths))


def _relaxed(answer: str, truth: str) -> bool:
    said, right = _value(answer), _value(truth)
    if said is not None and right:
        return abs(said - right) / abs(right) <= 0.05
    return answer.lower() == truth.lower()


def _value(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def vqa(answer: str, truths: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return VQA's accuracy over ten people's answers: a third for each who says the same, averaged over any nine.

    Antol et al., VQA: Visual Question Answering, ICCV 2015, with the normalisation of its server. Answers that are not
    ten are taken likewise; one alone counts as said by all.
    """
    if len(truths) == 1:
        return float(vqa_text(answer) == vqa_text(truths[0]))
    same = [vqa_text(answer) == vqa_text(truth) for truth in truths]
    return sum(min(1.0, (sum(same) - one) / 3) for one in same) / len(same) if same else 0.0


LETTER = re.compile(r"\(?([A-Za-z])(?:[).:,]|\s*$)")
SAYS = re.compile(r"\b(?i:answer|option|choice)\b(?:\s+is)?\s*:?\s*\(?([A-Z])\b")


def choice(answer: str, truths: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return 1 where the answer means the right choice, by its letter or by its text.

    Parameters
    ----------
    answer
        "B", "(b)", "B. a cat", "The answer is B.", "a cat", or a sentence with the text of one choice only.
    truths
        Letter and text of the right choice.
    choices
        The texts of all.
    """
    return float(bool(truths) and meant(answer, choices) == truths[0])


def meant(answer: str, choices: Sequence[str]) -> str | None:
    """Return the letter of the choice that an answer means, or `None`."""
    letters = string.ascii_uppercase[: len(choices)]
    text = answer.strip()
    words = squad_words(text)
    for letter, one in zip(letters, choices, strict=True):
        if words and words == squad_words(one):
            return letter
    for found in (LETTER.match(text), SAYS.search(text)):
        if found and found.group(1).upper() in letters:
            return found.group(1).upper()
    named = [
        letter for letter, one in zip(letters, choices, strict=True) if squad_words(one) and contains(text, [one])
    ]
    return named[0] if len(named) == 1 else None


# against the dense model's answer ----------------------------------------------------------------------------------


def identical(answer: str, truths: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return 1 where the answer is the dense model's to the letter."""
    return float(answer in truths)


METRICS: Mapping[str, Metric] = {
    one.name: one
    for one in (
        Metric("exact", exact),
        Metric("contains", contains),
        Metric("f1", f1),
        Metric("anls", anls),
        Metric("relaxed", relaxed),
        Metric("choice", choice),
        Metric("vqa", vqa),
        Metric("agreement", exact, needs="dense"),
        Metric("identical", identical, needs="dense"),
        Metric("kl", None, needs="logits", lower=True),
        Metric("same-tokens", None, needs="logits"),
    )
}
EXACT, CHOICE, UNLABELLED, SCORED = ("exact",), ("choice",), ("agreement", "identical", "kl"), ("same-tokens", "kl")


def usual(labelled: bool, choices: bool, mode: str) -> tuple[str, ...]:
    """Return the metrics of a question where nobody named one.

    Parameters
    ----------
    labelled
        The truth is known.
    choices
        The question has choices.
    mode
        "generate" or "score".
    """
    if labelled and choices:
        return CHOICE
    if mode == "score":
        return SCORED
    return EXACT if labelled else UNLABELLED


@dataclass(frozen=True)
class Metrics:
    """Which metrics count for which task.

    Parameters
    ----------
    by_task
        Names by task, the first of them decides whether an answer is right; under `ALL` those of the other tasks.
    """

    by_task: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def named(self, task: str) -> tuple[str, ...]:
        """Return the metrics that were named for a task, if any."""
        return self.by_task.get(task) or self.by_task.get(ALL, ())

    def of(self, task: str, labelled: bool, choices: bool, mode: str) -> tuple[str, ...]:
        """Return the metrics of a question, the one that decides first; the arguments are those of `usual`."""
        return self.named(task) or usual(labelled, choices, mode)

    @staticmethod
    def needs(names: Sequence[str], what: str) -> bool:
        """Say whether one of these metrics needs the "truth", the "dense" answer, or "logits"."""
        return any(METRICS[name].needs == what for name in names)

    def to_dict(self) -> dict[str, list[str]]:
        """Return plain data for JSON."""
        return {task or "all tasks": list(names) for task, names in self.by_task.items()}


def check_mode(mode: str, metrics: Metrics, own: bool) -> None:
    """Refuse a mode that does not exist, or in which a metric cannot be computed.

    Parameters
    ----------
    mode
        "generate" or "score".
    metrics
        Those that were named.
    own
        The questions are one's own.

    Raises
    ------
    MetricError
        It is so.
    """
    if mode not in ("generate", "score"):
        raise MetricError(f"--mode is 'generate' or 'score', got '{mode}'")
    if not own and (mode == "score" or metrics.by_task):
        raise MetricError("--metric and --mode score are for own questions: give them with --data")
    if mode == "score":
        texts = {name for names in metrics.by_task.values() for name in names} - {"choice", "kl", "same-tokens"}
        if texts:
            raise MetricError(
                f"--mode score generates no answers, which '{min(texts)}' compares; there are choice, "
                "kl and same-tokens"
            )


def parse_metrics(texts: Sequence[str]) -> Metrics:
    """Return the metrics of `anls` or `anls,f1` for all tasks, and `charts=relaxed` for one.

    Raises
    ------
    MetricError
        No metric of such a name, one given twice, or one whose library is not installed.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        task, equals, names = text.rpartition("=")
        task = task.strip()
        if equals and not task:
            raise MetricError(f"--metric {text}: a task and a metric are written as charts=relaxed")
        for name in (one.strip() for one in names.split(",")):
            if name not in METRICS:
                raise MetricError(f"no metric '{name}'; there are {', '.join(METRICS)}")
            if name in found.get(task, ()):
                raise MetricError(f"--metric {text}: '{name}' is given twice")
            found[task] = (*found.get(task, ()), name)
    for names_of in found.values():
        if METRICS[names_of[0]].lower:
            raise MetricError(f"the first metric of a task says how much is right, and '{names_of[0]}' is a distance")
    if any("anls" in one for one in found.values()):
        _need_rapidfuzz()
    return Metrics(found)


def _need_rapidfuzz() -> None:
    try:
        import rapidfuzz  # noqa: F401
    except ImportError as error:
        raise MetricError("the metric 'anls' needs rapidfuzz: pip install 'foveate[eval]'") from error


def scores(
    names: Sequence[str], answer: str, truths: Sequence[str], choices: Sequence[str], dense: str
) -> dict[str, float]:
    """Return the scores of an answer by those metrics that compare texts.

    Parameters
    ----------
    names
        Of the metrics.
    answer
        What was said.
    truths, choices
        Right answers, and the choices there were.
    dense
        What the dense model said.
    """
    found: dict[str, float] = {}
    for name in names:
        metric = METRICS[name]
        if metric.score is not None:
            found[name] = metric.score(answer, [dense] if metric.needs == "dense" else truths, choices)
    return found
