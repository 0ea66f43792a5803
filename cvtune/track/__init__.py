"""Weights & Biases: a process of its own that replays the journal of a study into runs, online or as offline files.

Training never waits for it and no worker knows of it. It may be killed and started again at any time, on any machine
that sees the study's folder: what W&B has is asked of W&B (or read from the files), not remembered.

`runs.py` says what W&B is told of each trial, `study_run.py` of the study; `client.py` tells it; `syncer.py` decides
what is still to be told; `launch.py` starts that beside a running study.
"""
