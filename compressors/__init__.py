"""Compressors: fewer video tokens with their places and seconds kept.

`build("temporal-pool,uniform", keep=0.25)` gives a method or a chain to call on `VideoTokens`;
`build("per-scene(aim)", keep=0.25)` wraps one. `names()` and `describe()` list what there is. One
file a method.
"""

from .aim import Aim
from .aim_prune import AimPrune
from .base import LATE, STAGES, Compressor, Scorer
from .chain import Chain
from .dart import Dart
from .divprune import DivPrune
from .dycoke import DyCoke
from .dycoke_cache import DyCokeCache
from .evs import Evs
from .fastv import FastV
from .fastvid import FastVid
from .flashvid import FlashVid
from .flextok import FlexTok
from .frame_sample import FrameSample
from .framefusion import FrameFusion
from .holitom import HoliTom
from .lita import Lita
from .mrt5 import Mrt5
from .mustdrop import MustDrop
from .mustdrop_cache import MustDropCache
from .mustdrop_filter import MustDropFilter
from .nasva import Nasva
from .none import NoCompression
from .pyra import Pyra
from .pyramiddrop import PyramidDrop
from .random import Random
from .registry import describe, find, get, names, register
from .semvid import SemVid
from .spatial_pool import SpatialPool
from .spec import build, parse_wrapped
from .storm import Storm
from .tempme import Tempme
from .temporal_pool import TemporalPool
from .timesuite import TimeSuite
from .tome import Tome
from .uniform import Uniform
from .vidcom2 import VidCom2
from .visionzip import VisionZip
from .vtg_llm import VtgLlm
from .wrappers import WRAPPERS, FrameBudget, PerScene, Protect

__all__ = [
    "LATE",
    "STAGES",
    "WRAPPERS",
    "Aim",
    "AimPrune",
    "Chain",
    "Compressor",
    "Dart",
    "DivPrune",
    "DyCoke",
    "DyCokeCache",
    "Evs",
    "FastV",
    "FastVid",
    "FlashVid",
    "FlexTok",
    "FrameBudget",
    "FrameFusion",
    "FrameSample",
    "HoliTom",
    "Lita",
    "Mrt5",
    "MustDrop",
    "MustDropCache",
    "MustDropFilter",
    "Nasva",
    "NoCompression",
    "PerScene",
    "Protect",
    "Pyra",
    "PyramidDrop",
    "Random",
    "Scorer",
    "SemVid",
    "SpatialPool",
    "Storm",
    "Tempme",
    "TemporalPool",
    "TimeSuite",
    "Tome",
    "Uniform",
    "VidCom2",
    "VisionZip",
    "VtgLlm",
    "build",
    "describe",
    "find",
    "get",
    "names",
    "parse_wrapped",
    "register",
]
