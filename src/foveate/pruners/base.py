"""What a pruning method is given and what it must return; the engine knows methods only through this file."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from foveate.errors import BudgetError
from foveate.pruners import saving, shares
from foveate.pruners.budget import check_keep, keep_behind, tokens_to_keep
from foveate.pruners.by_image import chosen_by_image
from foveate.pruners.options import option as option
from foveate.pruners.options import settle
from foveate.select import top_k

if TYPE_CHECKING:
    from foveate.families import Grid


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


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """The visual tokens that reach a stage, gathered in prompt order; rows are samples, short rows padded at the end.

    Attributes
    ----------
    layer
        The cut lies before this decoder layer, counted from 0; 0 is before the language model.
    features
        (B, N, D) hidden states that would enter the layer.
    valid
        (B, N) bool, False for padding.
    dense
        (B,) long, visual tokens of the row before any pruning; budgets refer to it. On the CPU wherever the rest is: a
        budget worked out of it, such as the `k` of `foveate.select`, costs no wait for the device.
    present
        (B,) long, visual tokens of the row that reach this stage, the sum of `valid`; on the CPU too.
    position
        (B, N) long, place in the dense prompt, left padding counted.
    image
        (B, N) long, which image or video of its sample a token belongs to, from 0; -1 for padding.
    grid
        (B, N) long, which grid of its sample a token lies on, from 0: `grids[sample][grid]`; -1 for padding and for
        separators, such as the newline tokens of LLaVA-NeXT.
    row, column
        (B, N) long, its place on that grid, from 0; -1 likewise.
    grids
        For each sample the grids of all its images: one an image, or one for each crop, tile or video frame.
    grids_known
        False where the layout of some image is unknown: its tokens then stand in one row.
    query
        (B, D) hidden state of the last prompt token.
    mean_text
        (B, D) mean hidden state of the prompt's text tokens.
    attention
        (B, H, R, N) attention from the R rows that `attention_rows` asked for to the visual tokens, from the layer
        before the cut, softmaxed over the whole prompt or as `attention_form` says, fp32; None where none was asked
        for.
    extra
        (B, G, D) hidden states of the tokens that the method added.
    vision
        For each block of the vision encoder that `vision_layers` named, in that order, (B, N, C) what it put out for
        these tokens: the mean of the patches that a visual token is made of, detached. Zeros for padding and for
        separators. Empty where none was asked for.
    received
        For each block that `vision_attention` named, (B, N) the attention these tokens received there from all patches
        of their image, mean over heads and over the patches that a visual token is made of, in fp32.
    class_received
        The same from the encoder's class token alone; where it has none, from all patches, divided by their number.
    keys, values
        (B, G, N, E) of these tokens in the layer before the cut, for its G key-value heads, keys with their rotary
        positions; zeros for padding. None unless `kv` asked for them.
    text_keys, text_values
        (B, G, T, E) of the text tokens after the first visual token, in the order of `PromptRows.text`; zeros where a
        sample has fewer. None unless `kv` asked for them.
    previous
        (B, N, D) hidden states with which these tokens entered the layer before the cut; zeros for padding. None
        unless `wants_previous`.
    text
        (B, T, D) hidden states that would enter the layer of the text tokens after the first visual token, in the
        order of `PromptRows.text`; zeros where a sample has fewer. None unless `wants_text`.
    dense_image
        (B, L) long, for each place of the prompt the image that the visual token there belonged to before any pruning,
        -1 for all else; None: all tokens of each image are there.
    rotary, text_rotary
        Cosines and sines (B, N, E) and (B, T, E) by which the layer before the cut turns these tokens' queries and
        keys, and those of the text tokens in `text`; zeros for padding. Models may turn only some of the channels, and
        give each angle once or twice. None unless `wants_rotary`.
    carried
        (B, ...) what the method's last stage in this prefill left for this one, see `Selection.carry`.
    """

    layer: int
    features: Tensor
    valid: Tensor
    dense: Tensor
    present: Tensor
    position: Tensor
    image: Tensor
    grid: Tensor
    row: Tensor
    column: Tensor
    grids: tuple[tuple[Grid, ...], ...]
    grids_known: bool
    query: Tensor
    mean_text: Tensor
    attention: Tensor | None
    extra: Tensor
    vision: tuple[Tensor, ...] = ()
    received: tuple[Tensor, ...] = ()
    class_received: tuple[Tensor, ...] = ()
    keys: Tensor | None = None
    values: Tensor | None = None
    text_keys: Tensor | None = None
    text_values: Tensor | None = None
    previous: Tensor | None = None
    text: Tensor | None = None
    dense_image: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    text_rotary: tuple[Tensor, Tensor] | None = None
    carried: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Selection:
    """Which visual tokens stay, and what becomes of the others: a method may merge them into tokens that stay.

    A survivor s with hidden state h_s, into which tokens i with weights w_i go, becomes

        (h_s + sum of w_i h_i) / (1 + sum of w_i)    with `how="average"`, the weighted mean in which s counts once,
        h_s + sum of w_i h_i                         with `how="add"`,

    in fp32. Its position stays its own. Weights of zero change nothing.

    Attributes
    ----------
    keep
        (B, N) bool; entries outside `VisualTokens.valid` are ignored.
    into
        (B, N) long, for each token that leaves the column of the survivor that it goes into; -1: it is dropped. None:
        all are dropped. What is said of survivors and of padding is ignored.
    weight
        (B, N) its weight, not negative; None: 1. A weight or an `into` that makes no sense raises `ValueError` on the
        CPU; on another device, where looking would wait for it, that token is dropped, and the report says so.
    how
        See above.
    carry
        (B, ...) what the method's next stages of this prefill are to know, as `VisualTokens.carried`; None: they are
        shown what they would have been.
    """

    keep: Tensor
    into: Tensor | None = None
    weight: Tensor | None = None
    how: Literal["average", "add"] = "average"
    carry: Tensor | None = None


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
