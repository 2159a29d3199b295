"""The question about a video: `VideoLLM`, and `compress` around a model of one's own."""
