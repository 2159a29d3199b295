"""Compressors: fewer video tokens with their places and seconds kept.

`build("temporal-pool,uniform", keep=0.25)` gives a method or a chain to call on `VideoTokens`;
`names()` and `describe()` list what there is. One file a method.
"""

from .aim import Aim
from .aim_prune import AimPrune
from .base import LATE, STAGES, Compressor, Scorer
from .chain import Chain
from .dart import Dart
from .divprune import DivPrune
from .dycoke import DyCoke
from .evs import Evs
from .fastv import FastV
from .fastvid import FastVid
from .frame_sample import FrameSample
from .holitom import HoliTom
from .mustdrop import MustDrop
from .mustdrop_cache import MustDropCache
from .mustdrop_filter import MustDropFilter
from .none import NoCompression
from .pyra import Pyra
from .pyramiddrop import PyramidDrop
from .random import Random
from .registry import build, describe, find, get, names, register
from .spatial_pool import SpatialPool
from .tempme import Tempme
from .temporal_pool import TemporalPool
from .tome import Tome
from .uniform import Uniform
from .vidcom2 import VidCom2
from .visionzip import VisionZip

__all__ = [
    "LATE",
    "STAGES",
    "Aim",
    "AimPrune",
    "Chain",
    "Compressor",
    "Dart",
    "DivPrune",
    "DyCoke",
    "Evs",
    "FastV",
    "FastVid",
    "FrameSample",
    "HoliTom",
    "MustDrop",
    "MustDropCache",
    "MustDropFilter",
    "NoCompression",
    "Pyra",
    "PyramidDrop",
    "Random",
    "Scorer",
    "SpatialPool",
    "Tempme",
    "TemporalPool",
    "Tome",
    "Uniform",
    "VidCom2",
    "VisionZip",
    "build",
    "describe",
    "find",
    "get",
    "names",
    "register",
]
