"""The project's own video-LLM, composed from parts of transformers."""
