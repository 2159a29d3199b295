"""Compressors: fewer video tokens with their places and seconds kept.

`build("temporal-pool,uniform", keep=0.25)` gives a method or a chain to call on `VideoTokens`;
`names()` and `describe()` list what there is. One file a method.
"""

from .aim import Aim
from .base import Compressor, Scorer
from .chain import Chain
from .frame_sample import FrameSample
from .none import NoCompression
from .random import Random
from .registry import build, describe, find, get, names, register
from .spatial_pool import SpatialPool
from .temporal_pool import TemporalPool
from .uniform import Uniform

__all__ = [
    "Aim",
    "Chain",
    "Compressor",
    "FrameSample",
    "NoCompression",
    "Random",
    "Scorer",
    "SpatialPool",
    "TemporalPool",
    "Uniform",
    "build",
    "describe",
    "find",
    "get",
    "names",
    "register",
]
