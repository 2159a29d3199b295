"""Claims of the papers, measured on the made world with their ablations: `vidllm bench claim`."""
