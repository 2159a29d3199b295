"""Our methods inside vLLM, as one of its general plug-ins.

vLLM calls `plugin.register` in each of its processes, and only what stands behind that call imports
vLLM, beside `vllm_engine`, which starts it for `VideoLLM`. `choice` says which method keeps how
much, `places` where the tokens that stay stand among the prompt's positions; both know nothing of
vLLM.
"""
