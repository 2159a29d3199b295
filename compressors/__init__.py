"""Compressors: fewer video tokens with their places and seconds kept.

`build("temporal-pool,uniform", keep=0.25)` gives a method or a chain to call on `VideoTokens`;
`names()` and `describe()` list what there is. One file a method.
"""

from .aim import Aim
from .base import LATE, STAGES, Compressor, Scorer
from .chain import Chain
from .divprune import DivPrune
from .dycoke import DyCoke
from .evs import Evs
from .fastvid import FastVid
from .frame_sample import FrameSample
from .holitom import HoliTom
from .none import NoCompression
from .pyra import Pyra
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
    "Chain",
    "Compressor",
    "DivPrune",
    "DyCoke",
    "Evs",
    "FastVid",
    "FrameSample",
    "HoliTom",
    "NoCompression",
    "Pyra",
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
