"""What a pruning method is: the engine knows methods, and what they are shown and return, only through this file."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from foveate.errors import BudgetError
from foveate.pruners import saving, shares
from foveate.pruners.budget import check_keep, keep_behind, tokens_to_keep
from foveate.pruners.by_image import chosen_by_image
from foveate.pruners.options import option as option
from foveate.pruners.options import settle
from foveate.pruners.selection import Selection as Selection
from foveate.pruners.visual_tokens import VisualTokens as VisualTokens
from foveate.select import top_k

AttentionForm = Literal["softmax", "log_softmax", "logits"]
KeyOrValue = Literal["keys", "values"]


# kinds of decoder layers, in `config.layer_types`, that have a running state or a convolution in place of attention
STATES = frozenset({"linear_attention", "conv", "mamba", "hybrid"})


def depth_of(config: Any) -> int:
    """Decoder layers of a model, by its config."""
    return int(config.get_text_config().num_hidden_layers)


def attends(config: Any, layer: int) -> bool:
    """Whether a decoder layer of a model has attention, by its config."""
    kinds = getattr(config.get_text_config(), "layer_types", None)
    return not kinds or not 0 <= layer < len(kinds) or kinds[layer] not in STATES


@dataclass(frozen=True, eq=False)
class PromptRows:
    """Rows of the current hidden states that a method may ask attention for; all (B, ...) long indices.

    Attributes
    ----------
    last
        (B,) row of the last prompt token.
    extra
        (B, G) rows of the tokens that the method itself added to the prompt; G = 0 without any.
    text
        (B, T) rows of the text tokens after the first visual token, -1 where a sample has fewer; the attention of
        such a row is all zeros.
    """

    last: Tensor
    extra: Tensor
    text: Tensor


@dataclass(frozen=True, kw_only=True)
class Pruner:
    """A pruning method with its options: plain data, comparable, printable, without state of a run.

    A method names its stages in `layers` and selects in `select`; the rest has defaults. One with a single cut and a
    budget derives from `SingleStagePruner`, one that only gives a score from `ScorePruner`. Use it as a context, or
    through `foveate.attach`.

    Examples
    --------
    >>> with foveate.GreedyPrune(keep=0.22)(model) as pruned:
    ...     model.generate(**inputs)
    >>> print(pruned.report)
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    url: ClassVar[str] = ""
    summary: ClassVar[str]
    needs: ClassVar[str] = ""
    uses_grids: ClassVar[bool] = False
    keep_is_mean: ClassVar[bool] = False  # `keep` is a mean share of visual tokens per layer
    by_class_token: ClassVar[bool] = False  # the report says where the vision encoder has none
    needs_all_tokens: ClassVar[bool] = False  # it reads whole grids: nothing may be cut before it
    finds_budget: ClassVar[bool] = False  # how much is kept is the method's own choice, unless `keep` is given
    shipped: ClassVar[Mapping[str, Path]] = MappingProxyType({})  # trained pruners in the package: name -> folder

    compact_cache: bool = option(
        False, "also cut the KV cache of the layers before a stage to that stage's survivors (GlimpsePrune does)"
    )

    min_visual: int = option(
        0,
        "prompts with fewer visual tokens than this run dense: where choosing costs more than it saves",
        at_least=0,
    )

    def __post_init__(self) -> None:
        settle(self, self.name)

    def layers(self, depth: int) -> tuple[int, ...]:
        """Decoder layers (from 0) before which the method cuts, ascending, in a model of `depth` layers."""
        raise NotImplementedError

    def resolved(self, config: Any) -> Pruner:
        """The same method with all that depends on the model worked out: this is what the engine asks and runs.

        Doing it again changes nothing.

        Parameters
        ----------
        config
            The model's; of its language model, `config.get_text_config()`, the layers are those that are cut between.
        """
        return self

    @property
    def members(self) -> tuple[Pruner, ...]:
        """The methods that this one is made of: itself alone, unless it is a `Chain`."""
        return (self,)

    def member(self, layer: int) -> Pruner:
        """That of the `members` which cuts before `layer`; asked of a method that was `resolved`."""
        return self

    def select(self, tokens: VisualTokens) -> Tensor | Selection:
        """Keep mask (B, N) bool for the visual tokens at one stage, or a `Selection`, with which tokens merge.

        Entries outside `tokens.valid` are ignored.
        """
        raise NotImplementedError

    def kept(self, layer: int, dense: Tensor, present: Tensor) -> Tensor | None:
        """How many tokens (B,) `select` keeps before `layer`, where that is known without looking at them.

        The engine then need not wait for the device. None, the default: it looks. A method whose choice is of exactly
        this many tokens may say so.

        Parameters
        ----------
        dense, present
            (B,) long on the CPU, as in `VisualTokens`.
        """
        return None

    def planned(self, layer: int, dense: Tensor, present: Tensor) -> Tensor | None:
        """How many tokens (B,) the budget lets stay before `layer`, whatever the prompt is.

        What `kept` says, else the share or count that `keep` is. A prompt may be left with fewer, or with more where a
        method leaves images alone. None where it depends on the prompt.

        Parameters
        ----------
        dense, present
            (B,) long on the CPU, as in `VisualTokens`.
        """
        known, keep = self.kept(layer, dense, present), getattr(self, "keep", None)
        if known is not None or keep is None or self.keep_is_mean:
            return known
        return torch.minimum(tokens_to_keep(keep, dense), present)

    def attention_rows(self, layer: int, rows: PromptRows) -> Tensor | None:
        """Rows (B, R) whose attention at layer - 1 the stage before `layer` wants, or None."""
        return None

    def attention_form(self) -> AttentionForm:
        """Whether those rows are softmaxed, its logarithm, or the scaled products of query and key.

        What the mask hides is -inf in the last two.
        """
        return "softmax"

    def sums_rows(self, layer: int) -> bool:
        """Whether the stage before `layer` wants their sum alone, as one row, which takes little memory."""
        return False

    def kv(self, layer: int) -> tuple[KeyOrValue, ...]:
        """Whether the stage before `layer` wants the keys, the values, or both, of layer - 1."""
        return ()

    def wants_previous(self, layer: int) -> bool:
        """Whether the stage before `layer` wants the hidden states that entered layer - 1."""
        return False

    def wants_text(self, layer: int) -> bool:
        """Whether the stage before `layer` wants the hidden states of the text tokens after the first visual token."""
        return False

    def wants_rotary(self, layer: int) -> bool:
        """Whether the stage before `layer` wants the cosines and sines by which layer - 1 turns queries and keys."""
        return False

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        """Blocks of the vision encoder, of `depth`, counted from 0, whose outputs `select` wants, in this order."""
        return ()

    def vision_attention(self, depth: int) -> tuple[int, ...]:
        """Blocks of the vision encoder in which `select` wants to know how much attention each token received.

        From all patches (`VisualTokens.received`) and from the class token (`class_received`). The attention map is
        never made whole: its columns are summed a few rows at a time.
        """
        return ()

    def notes(self, depth: int) -> tuple[str, ...]:
        """What a user of a model of `depth` layers should be warned of; goes into the report."""
        return ()

    @classmethod
    def brings_budget(cls, options: Mapping[str, Any]) -> bool:
        """Whether these options say how much is kept, as published stages do: `keep` is then not set for all alike."""
        return False

    def with_mean(self, share: float, config: Any) -> Pruner:
        """The same method with its budget set so that layers hold `share` of the visual tokens on average.

        Parameters
        ----------
        config
            The model's.

        Raises
        ------
        BudgetError
            When no budget of the method gives that in such a model; the message says what can be reached.
        """
        depth = depth_of(config)
        if share == 1.0 and hasattr(self, "keep"):
            return dataclasses.replace(self, keep=share)  # type: ignore[call-arg]
        return shares.solve(
            self.name,
            lambda setting: self.set_to(setting, config),
            lambda one: shares.mean(one.resolved(config), depth),
            share,
        )

    def set_to(self, setting: float, config: Any) -> Pruner:
        """The same method with a budget that grows with `setting`, by which budgets are solved.

        Parameters
        ----------
        setting
            Over 0, where next to nothing is kept, and up to 1, where all is kept that the stages can leave.

        Raises
        ------
        BudgetError
            When the method has no budget.
        """
        if not hasattr(self, "keep"):
            raise BudgetError(f"{self.name} has no option keep, so no share can be set")
        if self.keep_is_mean:
            return dataclasses.replace(self, keep=None).scaled(2.0 ** (40 * setting - 20), config)  # type: ignore[call-arg]
        return dataclasses.replace(self, keep=setting)  # type: ignore[call-arg]

    def scaled(self, factor: float, config: Any) -> Pruner:
        """The same method with its budget times `factor`, and at most all tokens: how a chain's budget is set.

        Raises
        ------
        BudgetError
            When the budget is not a share of the visual tokens.
        """
        keep = getattr(self, "keep", None)
        if not isinstance(keep, float):
            what = "finds its budget itself" if keep is None else f"keeps a count, {keep}"
            raise BudgetError(f"{self.name} {what}: only shares, such as keep=0.5, can be scaled to a mean per layer")
        return dataclasses.replace(self, keep=min(1.0, factor * keep))  # type: ignore[call-arg]

    def for_bench(self, model: nn.Module, vision: bool) -> Pruner:
        """The method as it is timed on a model: what it lacks and its time depends on is made up.

        Parameters
        ----------
        vision
            Whether the vision encoder runs; else images come encoded.
        """
        return self

    def extra_tokens(self, model: nn.Module) -> Tensor | None:
        """Embeddings (G, D) of tokens added after the prompt and taken out at the last stage, or None.

        Of (S, G, D), the first are the embeddings, and row s is added to their hidden states before layer s.
        """
        return None

    def save_weights(self, folder: Path) -> dict[str, Any]:
        """Write learned weights to a folder; what its config says of them."""
        return {}

    @classmethod
    def recognises(cls, config: Any) -> bool:
        """Whether a folder's `config.json` is that of the method's authors, and not of `save_pretrained`."""
        return False

    @classmethod
    def from_authors(cls, config: dict[str, Any], name: str) -> Self:
        """The pruner of such a folder, by its config and its name or Hub id.

        Raises
        ------
        IncompatibleWeightsError
            When the folder does not hold what its config says.
        """
        raise NotImplementedError

    @classmethod
    def load_weights(cls, config: dict[str, Any], name: str) -> dict[str, Any]:
        """Learned weights, as options, of a saved pruner's config and its folder or Hub id."""
        return {}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the method's name and options, and learned weights, to a folder that `foveate.load` takes."""
        saving.save_pretrained(self, folder)

    def push_to_hub(self, repository: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes to the Hub; the address of the commit."""
        return saving.push_to_hub(self, repository, private=private, token=token)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> Self:
        """`foveate.load`, for this method only.

        Raises
        ------
        BudgetError
            When the folder holds another method.
        """
        import foveate  # whose registry imports this file

        loaded = foveate.load(name_or_folder)
        if not isinstance(loaded, cls):
            raise BudgetError(f"{name_or_folder} holds {loaded.name}, not {cls.name}")
        return loaded

    def __call__(self, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Context in which `model` runs with this method; gives the handle, and undoes all on exit, errors too."""
        return self._attached(model)

    @contextlib.contextmanager
    def _attached(self, model: nn.Module) -> Iterator[Any]:
        from foveate import attach  # the public name: the engine imports this file

        handle = attach(model, self)
        try:
            yield handle
        finally:
            handle.detach()


@dataclass(frozen=True, kw_only=True)
class SingleStagePruner(Pruner):
    """A method with one cut and a budget: a subclass gives `choose` and perhaps a default `layer`.

    Raises
    ------
    BudgetError
        When `keep`, `layer` or `per` makes no sense.
    """

    keep: float | int = option(
        0.22, "share (0, 1] or count of visual tokens kept; 1.0 switches pruning off", check=check_keep
    )
    layer: int = option(2, "cut before this decoder layer, counted from 0; 0 is before the language model", at_least=0)
    per: Literal["prompt", "image"] = option("prompt", "one budget for the whole prompt, or one for each image")

    lowest_layer: ClassVar[int] = 0
    keeps_exactly: ClassVar[bool] = False  # `choose` never keeps fewer than k

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < self.lowest_layer:
            raise BudgetError(
                f"{self.name}: layer must be an integer of at least {self.lowest_layer}, got {self.layer!r}"
            )

    @property
    def keeps_all(self) -> bool:
        """True for keep=1.0, the setting that switches the method off."""
        return isinstance(self.keep, float) and self.keep == 1.0

    def layers(self, depth: int) -> tuple[int, ...]:
        if self.layer >= depth:
            raise BudgetError(f"{self.name}: layer {self.layer} is not in a model of {depth} decoder layers")
        return (self.layer,)

    def with_mean(self, share: float, config: Any) -> SingleStagePruner:
        depth = depth_of(config)
        return dataclasses.replace(self, keep=keep_behind(self.name, share, self.layers(depth)[0], depth))

    def kept(self, layer: int, dense: Tensor, present: Tensor) -> Tensor | None:
        if self.keeps_all:
            return present
        if self.per == "image" or not self.keeps_exactly:
            return None
        return torch.minimum(tokens_to_keep(self.keep, dense), present)

    def select(self, tokens: VisualTokens) -> Tensor | Selection:
        if self.keeps_all:
            return tokens.valid
        if self.per == "prompt":
            return self.choose(tokens, tokens_to_keep(self.keep, tokens.dense))
        return chosen_by_image(tokens, lambda shown: self.choose(shown, tokens_to_keep(self.keep, shown.dense)))

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor | Selection:
        """Keep mask (B, N) bool with at most k (B,) valid tokens a row, or a `Selection`; k is on the CPU."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ScorePruner(SingleStagePruner):
    """A method that keeps the tokens with the highest scores: a subclass gives `score`.

    Budget, padding, several images, ties (the lowest index) and the exact count follow.
    """

    keeps_exactly: ClassVar[bool] = True

    def score(self, tokens: VisualTokens) -> Tensor:
        """How much each token is worth, (B, N) real numbers; entries outside `tokens.valid` are ignored."""
        raise NotImplementedError

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        return top_k(self.score(tokens), k, tokens.valid)
