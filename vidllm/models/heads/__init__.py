"""Systems without an LLM: a trained head on frozen features that answers one kind of question."""
