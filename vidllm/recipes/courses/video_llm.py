"""Course "video-llm": a model is tuned from a trained one, as one whole system."""
