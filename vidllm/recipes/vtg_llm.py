"""VTG-LLM (arXiv 2405.13382): learned slots that know frame and second, times digit by digit."""

from .recipe import Lora, Recipe

RECIPE = Recipe(
    "vtg-llm",
    "tokens mix into learned slots that know frame and second; times are digit tokens",
    "VTG-LLM, arXiv 2405.13382",
    claim="slots beat sampling and cross-attention at equal count; knowing frame and second helps",
    compressors="vtg-llm",
    keep=0.125,
    time_code="absolute",
    course="video-llm",
    trained=("projector", "compressor", "embeddings", "lora"),
    lora=Lora(32, 32, ("q_proj", "k_proj", "v_proj", "o_proj"), dropout=0.1),
    mixture=(
        ("none", 0.1),
        ("vtg-llm:keep=0.25", 0.2),
        ("vtg-llm:keep=0.125", 0.45),
        ("vtg-llm:keep=0.05", 0.25),
    ),
    steps=1500,
    lr=2e-3,
    tasks=("stage", "charades", "qvhighlights-highlights", "youcook2"),
)
