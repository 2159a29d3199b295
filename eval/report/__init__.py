"""``vidllm report``: runs of the harness as one HTML page, pictures and tables.

``load`` reads folders of runs, ``study`` puts comparable runs side by side, ``tables`` and
``plots`` and ``frames`` show them, ``page`` binds it all into one file.
"""
