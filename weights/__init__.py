"""The shipped weights, sample videos and their manifest, installed as ``vidllm.weights``.

One folder a model (``config.json``, ``model.safetensors``, tokenizer, card), ``samples/`` with
the sample videos and ``manifest.json`` with the sha256 of every file. Read it through
``vidllm.models.shipped``.
"""
