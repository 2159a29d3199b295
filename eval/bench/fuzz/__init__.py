"""``vidllm bench fuzz``: damaged and crafted inputs, and what becomes of them."""
