"""Training of native models on the `stage` world: `vidllm train stage`.

`words` builds the tokenizer, `data` draws batches, `losses` says what is learnt, `loop` runs it.
"""
