"""For `sitecustomize.py` of an environment with a torch for CPUs: what its torchvision lacks.

torchvision's wheel is built for CUDA, and its import fails where two of its operators are unknown.
"""

import torch

_LIBRARY = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _LIBRARY.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
