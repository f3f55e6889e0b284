"""Pruning methods by name; one file each."""

from foveate.pruners.base import PromptRows as PromptRows
from foveate.pruners.base import Pruner as Pruner
from foveate.pruners.base import ScorePruner as ScorePruner
from foveate.pruners.base import Selection as Selection
from foveate.pruners.base import SingleStagePruner as SingleStagePruner
from foveate.pruners.base import VisualTokens as VisualTokens
from foveate.pruners.chain import Chain as Chain
from foveate.pruners.methods import *  # noqa: F403
from foveate.pruners.registry import METHODS as METHODS
from foveate.pruners.registry import load as load
from foveate.pruners.registry import make as make
