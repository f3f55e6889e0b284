"""The methods, a line each: all that is imported here is a public name of `foveate`, and what is a `Pruner` a method.

`foveate` reads these lines instead of importing them, as running them loads torch: each must be
`from module import Name as Name`.
"""

from foveate.pruners.agilepruner import AgilePruner as AgilePruner
from foveate.pruners.anchorprune import AnchorPrune as AnchorPrune
from foveate.pruners.apet import ApET as ApET
from foveate.pruners.btp.method import BTP as BTP
from foveate.pruners.btp.stages import BTPStage as BTPStage
from foveate.pruners.cdpruner import CDPruner as CDPruner
from foveate.pruners.dart import DART as DART
from foveate.pruners.divprune import DivPrune as DivPrune
from foveate.pruners.evs import EVS as EVS
from foveate.pruners.fastervlm import FasterVLM as FasterVLM
from foveate.pruners.fastv import FastV as FastV
from foveate.pruners.glimpseprune.method import GlimpsePrune as GlimpsePrune
from foveate.pruners.greedyprune import GreedyPrune as GreedyPrune
from foveate.pruners.hiprune import HiPrune as HiPrune
from foveate.pruners.holov import HoloV as HoloV
from foveate.pruners.ivcprune import IVCPrune as IVCPrune
from foveate.pruners.mmtok import MMTok as MMTok
from foveate.pruners.ocvtp.method import OCVTP as OCVTP
from foveate.pruners.pool import Pool as Pool
from foveate.pruners.prunesid import PruneSID as PruneSID
from foveate.pruners.pyramiddrop import PyramidDrop as PyramidDrop
from foveate.pruners.random import Random as Random
from foveate.pruners.scope import SCOPE as SCOPE
from foveate.pruners.sparsevlm import SparseVLM as SparseVLM
from foveate.pruners.tome import ToMe as ToMe
from foveate.pruners.uniform import Uniform as Uniform
from foveate.pruners.v2drop import V2Drop as V2Drop
from foveate.pruners.vidcom2 import VidCom2 as VidCom2
from foveate.pruners.visionzip import VisionZip as VisionZip
from foveate.pruners.vispruner import VisPruner as VisPruner
from foveate.pruners.vlmpruner import VLMPruner as VLMPruner
from foveate.pruners.vtw import VTW as VTW
