"""TempMe (arXiv 2409.01156): text–video retrieval with tokens merging across joined clips."""

from .recipe import Lora, Recipe

RECIPE = Recipe(
    "tempme",
    "text–video retrieval; tokens merge inside frames, then across joined clips",
    "TempMe, arXiv 2409.01156",
    claim="retrieval is kept or better at half the tower's FLOPs and 95 % fewer tokens, and faster",
    frames=12,
    vision="clip_vision_model",
    compressors="tempme:inside=0.6",
    keep=0.035,  # of the patches: with the 12 CLS tokens a twentieth of the tower's tokens
    course="retrieval",
    start="nothing",
    trained=("lora",),
    lora=Lora(8, 8, ("q_proj", "k_proj", "v_proj"), where="tower"),
    steps=1500,
    lr=6e-4,
    tasks=("stage-retrieval", "msrvtt"),
)
