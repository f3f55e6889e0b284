"""Calibration of BTP: curve, harmless depth, and the schedule whose answers are nearest to the dense model's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from foveate.errors import BudgetError
from foveate.families import family_of
from foveate.learn.btp import candidates
from foveate.learn.btp import candidates as choice
from foveate.learn.btp.candidates import Candidate
from foveate.learn.btp.curve import Curve, TurnCurve, stages_from_curve
from foveate.learn.btp.divergence import Forced, dense_answer, divergence, force, next_words
from foveate.learn.btp.samples import Sample, Samples
from foveate.learn.btp.sums import PassSums
from foveate.learn.errors import CalibrationError
from foveate.learn.plots import draw_calibration
from foveate.measure import environment
from foveate.measure.loading import LoadedModel
from foveate.measure.processes import Processes
from foveate.pruners import Pruner
from foveate.pruners.btp.method import BTP, BTPStage

STATE, RESULT, PICTURE = "state.json", "calibration.json", "curve.png"
HEAT = 64  # samples on which all candidates are measured
FINAL = 6  # candidates that are measured on all samples
SAME_LAYERS = 3  # of them at most with the same stage layers
NEAR = 5.0  # a drop whose KL in the heat is more than so many times the tolerance is not measured further
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CalibrationSettings:
    """How to calibrate.

    Parameters
    ----------
    keep
        Budget: mean share of visual tokens per decoder layer.
    stages
        Stages wanted; some candidates have one more, before layer 0.
    tau
        Threshold of the curve.
    rule
        "measured": the schedule whose answers are nearest to the dense model's. "paper": stages where the curve jumps,
        each keeping half of the one before, attention's share from 0.6 to 1, and no schedule is measured.
    final
        "auto" lets candidates drop what is left where that was measured to be harmless; "keep" does not.
    answer_tokens
        First tokens of the answer that are compared.
    tolerance, agreement
        A drop is harmless at a KL of at most `tolerance` nats with at least `agreement` of the tokens unchanged.
    seed
        Of the samples; kept in the result.
    batch_size
        Samples in one forward pass.
    """

    keep: float = 0.22
    stages: int = 3
    tau: float = 0.93
    rule: Literal["measured", "paper"] = "measured"
    final: Literal["auto", "keep"] = "auto"
    answer_tokens: int = 4
    tolerance: float = 0.01
    agreement: float = 0.99
    seed: int = 1000
    batch_size: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise BudgetError(f"--keep takes a share over 0 and under 1, got {self.keep:g}")
        if not -1 < self.tau < 1:
            raise CalibrationError(f"tau is a cosine, over -1 and under 1, got {self.tau:g}")
        if self.rule not in ("measured", "paper"):
            raise CalibrationError(f"rule must be measured or paper, got {self.rule!r}")
        if self.final not in ("auto", "keep"):
            raise CalibrationError(f"final must be auto or keep, got {self.final!r}")
        if not self.tolerance >= 0:
            raise CalibrationError(f"tolerance is a KL in nats, from 0, got {self.tolerance:g}")
        if not 0 <= self.agreement <= 1:
            raise CalibrationError(f"agreement is a share of the words, in [0, 1], got {self.agreement:g}")
        if min(self.stages, self.answer_tokens, self.batch_size) < 1:
            raise CalibrationError("stages, answer tokens and batch size must be at least 1")


def calibrate_btp(
    loaded: LoadedModel,
    samples: Samples,
    settings: CalibrationSettings,
    folder: Path,
    fresh: bool = False,
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Find BTP's stages for a model, and write them to a folder that `foveate.load` takes.

    1. One dense pass a sample gives the curve (`TurnCurve`) and, by a rule, layers from it (`stages_from_curve`).
       Everything is dropped before one layer after the other, which gives the depth where that is harmless.
       The depth above which most of the image has been read (`reading_depth`) comes of the same figures.
    2. Candidates are measured on the first 64 samples: KL of the dense to the pruned next-token distributions over
       the first tokens of the dense model's own greedy answer (`divergence`). First all layers with all ladders of
       keep, and of layers that these samples cannot distinguish the preferred ones are taken, see `choice.choose` and
       `candidates.layer_sets`; the best so far is then varied in attention's share, in seed and rebalancing, which are
       kept where they are clearly better; at last the six best, at most three of the same layers, are tried with a
       drop where that is harmless.
    3. The six best again are measured on all samples: layers are taken by the same rule, and of those with these
       layers the one of least KL.

    With `rule="paper"` the curve alone decides, as in the paper, which does not say how large a jump must be
    (`stages_from_curve`); its last stage, which drops all, is left out.

    Nothing but sums, and the few tokens of its answer, is kept of a sample. After each batch the sums are on disk, and
    the same call continues from there.

    Parameters
    ----------
    loaded
        The model; it is left as it was.
    samples
        What it is asked, see `from_suite` and `from_folder`.
    settings
        How.
    folder
        Gets config.json, calibration.json, curve.png and the sums.
    fresh
        Start over instead of continuing.
    progress
        Called with what is done, how many samples and of how many, after each batch.
    processes
        Those that share the work.

    Returns
    -------
    dict
        Plain data for JSON, as in calibration.json.

    Raises
    ------
    UnsupportedModelError
        The model's parts are not known.
    CalibrationError
        The folder holds a calibration of another configuration, or no prompt has visual tokens.
    BudgetError
        No candidate reaches the budget.
    """
    # 1. where a run that was stopped had come to
    processes = processes or Processes()
    depth = len(family_of(loaded.model).parts(loaded.model).layers)
    configuration = _configuration(loaded, samples, settings)
    state = PassSums(folder / STATE, configuration, fresh, processes)
    work = _Work(loaded, samples.items, settings, depth, state, progress)
    # 2. the schedule
    pruner, curve, record = _by_the_paper(work) if settings.rule == "paper" else _by_measuring(work)
    # 3. the record
    result = {
        "format": "foveate-calibration-1",
        "command": environment.command(),
        "configuration": configuration,
        "machine": {**environment.machine(loaded.model.device), "processes": processes.number},
        "depth": depth,
        "curve": {
            "tau": curve.tau,
            "asked": curve.asked,
            "note": curve.note,
            "samples": curve.samples,
            "turned": {f"{tau:g}": row for tau, row in curve.shares.items()},
            "cosine": curve.cosines,
        },
        "rule": {
            "layers": list(stages_from_curve(curve.turned, settings.stages)),
            "text": _line(stages_from_curve.__doc__),
        },
        **record,
    }
    if processes.main:
        write(folder, pruner, result)
    return result


def _by_the_paper(work: _Work) -> tuple[BTP, Curve, dict[str, Any]]:
    """The schedule of the curve alone, the curve, and what is told of it."""
    curve, _ = work.curve([])
    layers = stages_from_curve(curve.turned, work.settings.stages)
    chosen = candidates.by_the_paper(layers, work.settings.keep, work.depth)
    told: dict[str, Any] = {"reading": None, "harmless": None, "heats": [], "left_out": []}
    return chosen.pruner, curve, told | {"final": [_told(chosen)], "chosen": _told(chosen)}


def _by_measuring(work: _Work) -> tuple[BTP, Curve, dict[str, Any]]:
    """The schedule nearest to the dense model, the curve, and what was measured."""
    settings = work.settings
    # 1. look at the model: the curve, and how deep it reads the image
    curve, drops = work.look()
    harmless = choice.depth_of_harmless_drop(drops["kl"], drops["same"], settings.tolerance, settings.agreement)
    reading = choice.reading_depth(drops["kl"])
    # 2. candidates against one another, the best of them on all samples
    best, rounds, left_out = work.heats(stages_from_curve(curve.turned, settings.stages), reading, harmless)
    final = _finalists(best, rounds)
    found = work.measure("final", final, work.samples)
    chosen = choice.choose(found, [candidate.layers for candidate in final])
    record = {
        "reading": reading,
        "harmless": {
            "layer": harmless,
            "tolerance": settings.tolerance,
            "agreement": settings.agreement,
            "drop_before": drops,
        },
        "heats": [_told(candidate) | numbers for candidate, numbers in rounds],
        "left_out": left_out,
        "final": [_told(candidate) | _numbers(found, at) for at, candidate in enumerate(final)],
        "chosen": _told(final[chosen]) | _numbers(found, chosen),
    }
    return final[chosen].pruner, curve, record


class _Work:
    """The passes over the samples."""

    def __init__(
        self,
        loaded: LoadedModel,
        samples: Sequence[Sample],
        settings: CalibrationSettings,
        depth: int,
        state: PassSums,
        progress: Progress | None,
    ) -> None:
        self.loaded, self.samples, self.settings, self.depth = loaded, samples, settings, depth
        self.state, self.progress = state, progress
        self.answers: dict[tuple[int, ...], Tensor] = {}  # a few numbers a sample, which every pass needs

    def look(self) -> tuple[Curve, dict[str, Any]]:
        """Curve, and what dropping everything before each layer does.

        The drop is measured on the first samples at every layer, and then on all of them at the layers that could be
        harmless.
        """
        drops = [drop_everything(layer) for layer in range(self.depth)]
        first = self.measure("drops", drops, self.samples[:HEAT])
        near = [layer for layer in range(self.depth) if first.kl[layer] <= NEAR * self.settings.tolerance]
        curve, sums = self.curve(near)
        kl, error, same = first.kl.clone(), first.error.clone(), first.same.clone()
        if near:
            all_samples = choice.scores(sums)
            kl[near], error[near], same[near] = all_samples.kl, all_samples.error, all_samples.same
        told = {
            "layer": list(range(self.depth)),
            "kl": kl.tolist(),
            "error": error.tolist(),
            "same": same.tolist(),
            "samples": [len(self.samples if layer in near else self.samples[:HEAT]) for layer in range(self.depth)],
        }
        return curve, told

    def curve(self, near: list[int]) -> tuple[Curve, dict[str, Tensor]]:
        """The curve, and sums of what dropping everything before each of the `near` layers does."""
        drops = [drop_everything(layer) for layer in near]
        counts = TurnCurve(self.depth, self.settings.tau)

        def measure(batch: list[Sample]) -> dict[str, Tensor]:
            forced = self.forced(batch)
            for value in counts.sums.values():
                value.zero_()
            with counts.watch(self.loaded.model, forced.inputs):
                dense = next_words(self.loaded.model, forced)
            found = {f"curve {name}": value.clone() for name, value in counts.sums.items()}
            if near:
                found |= self._compare(forced, dense, drops)
            return found

        sums = self.state.run(
            "curve", self.samples, self.settings.batch_size, measure, self.progress, [counts.taus, near]
        )
        counts.sums = {name: sums[f"curve {name}"] for name in counts.sums}
        if not counts.sums["samples"]:
            raise CalibrationError("no prompt of these samples has a visual token: there is nothing to calibrate")
        return counts.result(), sums

    def heats(
        self, layers: Sequence[int], reading: int, harmless: int | None
    ) -> tuple[Candidate, list[tuple[Candidate, dict[str, Any]]], list[str]]:
        """The best on the first samples, all that were measured there, round by round, and those left out."""
        budget = self.settings.keep
        field, left_out = candidates.first_round(layers, reading, self.settings.stages, budget, self.depth)
        if not field:
            raise BudgetError(
                f"no candidate reaches a mean of {budget:.1%} of the visual tokens per layer with "
                f"{self.settings.stages} stages in {self.depth} layers: {'; '.join(left_out)}"
            )
        measured: list[tuple[Candidate, dict[str, Any]]] = []
        found = self._heat("layers", field, measured)
        best = field[choice.choose(found, [candidate.layers for candidate in field])]
        for name, vary in (
            ("attention shares", candidates.attention_round),
            ("seed and rebalancing", candidates.seed_round),
        ):
            field = [best, *vary(best, budget)]
            found = self._heat(name, field, measured)
            best = field[choice.least(found)] if choice.beaten(found, 0) else best
        if harmless is not None and self.settings.final == "auto":
            drops = [candidates.drop_round(one, budget, harmless) for one in _finalists(best, measured)]
            if any(drops):
                self._heat("drop", [one for some in drops for one in some], measured)
        return best, measured, left_out

    def _heat(
        self, name: str, field: list[Candidate], measured: list[tuple[Candidate, dict[str, Any]]]
    ) -> choice.Scores:
        found = self.measure(name, field, self.samples[:HEAT])
        known = {candidate.pruner for candidate, _ in measured}
        entries = [(one, {"round": name} | _numbers(found, at)) for at, one in enumerate(field)]
        measured += [entry for entry in entries if entry[0].pruner not in known]
        return found

    def measure(self, name: str, field: Sequence[Candidate | Pruner], samples: Sequence[Sample]) -> choice.Scores:
        """Scores of candidates on these samples."""
        pruners = [one.pruner if isinstance(one, Candidate) else one for one in field]

        def measure(batch: list[Sample]) -> dict[str, Tensor]:
            forced = self.forced(batch)
            return self._compare(forced, next_words(self.loaded.model, forced), pruners)

        size = self.settings.batch_size
        return choice.scores(self.state.run(name, samples, size, measure, self.progress, pruners))

    def forced(self, batch: list[Sample]) -> Forced:
        """The batch with the dense model's answers, which are asked for once."""
        key = tuple(map(id, batch))
        if key not in self.answers:
            self.answers[key] = dense_answer(self.loaded, batch, self.settings.answer_tokens)
        return force(self.loaded, batch, self.answers[key])

    def _compare(self, forced: Forced, dense: Tensor, pruners: Sequence[Pruner]) -> dict[str, Tensor]:
        found = [divergence(self.loaded.model, forced, dense, pruner) for pruner in pruners]
        return choice.batch_sums(torch.stack([kl for kl, _ in found]), torch.stack([same for _, same in found]))


def drop_everything(layer: int) -> BTP:
    """BTP that keeps every visual token up to a layer, and none from there on."""
    return BTP(stages=(BTPStage(layer, 0.0),), final="drop")


def _finalists(best: Candidate, measured: Sequence[tuple[Candidate, dict[str, Any]]]) -> list[Candidate]:
    """The best one, and those of least KL."""
    final = [best]
    for candidate, _ in sorted(measured, key=lambda entry: float(entry[1]["kl"])):
        alike = [_kept(one) for one in final].count(_kept(candidate))
        if candidate not in final and len(final) < FINAL and alike < SAME_LAYERS:
            final.append(candidate)
    return final


def _kept(candidate: Candidate) -> tuple[int, ...]:
    return tuple(stage.layer for stage in candidates.kept_stages(candidate))


def write(folder: Path, pruner: BTP, result: dict[str, Any]) -> None:
    """Write the pruner, the result and the figure."""
    import json

    pruner.save_pretrained(folder)
    (folder / RESULT).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draw_calibration(result, folder / PICTURE)


def _told(candidate: Candidate) -> dict[str, Any]:
    return {
        "where": candidate.where,
        "how": candidate.how,
        "layers": list(candidate.layers),
        "stages": [asdict(stage) for stage in candidate.pruner.schedule(candidate.depth)],
        "mean_tokens_per_layer": candidate.pruner.mean_tokens(candidate.depth),
    }


def _numbers(found: choice.Scores, at: int) -> dict[str, float]:
    return {"kl": float(found.kl[at]), "error": float(found.error[at]), "same": float(found.same[at])}


def _line(text: str | None) -> str:
    return " ".join((text or "").partition("Parameters")[0].split())


def _configuration(loaded: LoadedModel, samples: Samples, settings: CalibrationSettings) -> dict[str, Any]:
    """What the sums of a run must share."""
    return {
        "model": loaded.name,
        "model_type": loaded.model.config.model_type,
        "revision": getattr(loaded.model.config, "_commit_hash", None),
        "weights": environment.model_fingerprint(loaded.model),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": loaded.model.device.type,
        "samples": len(samples.items),
        "from": samples.name,
        "questions": samples.fingerprint,
        **dataclasses.asdict(settings),
        "code": environment.code_fingerprint(),
        "versions": environment.versions(),
    }
