"""Scores of the evaluation harness, one benchmark family a file; numpy only.

Every score is honest by default: a failed or missing answer counts 0 and stays in the denominator,
a tie is no luck, nothing is rounded. `official=True` gives what the benchmark's own script gives;
each docstring names what is wrong there. All scores are shares in [0, 1] (`common.percent` prints
them as the scripts do), and a share of nothing is None.

| file | scores |
|---|---|
| `spans` | tIoU, R1@m, mIoU (Charades-STA, ActivityNet, TimeLens); P@0.5 (ActivityNet-RTL) |
| `gqa` | IoP, IoU, Acc@GQA (NExT-GQA) |
| `moments` | R1, mAP by length (QVHighlights moments) |
| `highlights` | HL mAP, HIT@1 (QVHighlights highlights) |
| `summaries` | top-5 mAP, Kendall tau, Spearman rho (TVSum) |
| `captions`, `matched_captions`, `caption_scorers` | localisation, SODA_c, CIDEr, METEOR |
| `alignment`, `retrieval` | R@1 of sentences (HTM-Align); R@k, MdR, MnR (MSR-VTT) |
| `letters`, `choices` | letters of answers, accuracy, means over tasks, log-probabilities |
| `statistics` | bootstrap and paired bootstrap by video, McNemar |
"""
