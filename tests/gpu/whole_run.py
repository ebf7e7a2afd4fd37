"""A whole run of ``goemotions_tokens`` on the GPU, by the command that users give: its score and its minutes.

What it scores on two CPU cores is in tests/benchmarks/README.md.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

from tests.gpu import OUT, TINY, emit

RUN = OUT / "run"
TINY_FLAGS = ("--num_hidden_layers", "1", "--epochs", "1", "--lora_rank", "4", "--bf16", "false")


def main() -> None:
    # So that a run that is cut off by the time limit still says how far it came.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    corpus = os.environ.get("GOEMOTIONS_DIR")
    flags = ["--data_dir", corpus] if corpus else ["--dataset", "starter"]
    command = [sys.executable, "training/run.py", "--recipe", "goemotions_tokens", *flags, "--output_dir", str(RUN)]
    with subprocess.Popen([*command, "--overwrite", *(TINY_FLAGS if TINY else ())]) as training:
        try:
            code = training.wait()
        finally:  # it must not go on beside the next part
            training.kill()
            emit("whole_run", "progress", last_step=last_step())
    if code:
        sys.exit(code)
    scores = json.loads((RUN / "metrics.json").read_text(encoding="utf-8"))["test"]
    timing = json.loads((RUN / "timing.json").read_text(encoding="utf-8"))
    emit(
        "whole_run",
        "scores",
        corpus="goemotions" if corpus else "starter",
        test_macro_f1={name: scores[name]["macro_f1"] for name in ("fixed", "global", "per_label")},
        minutes_of_training=round(timing["seconds_of_training"] / 60, 2),
        minutes_of_preparation=round(timing["seconds_of_preparation"] / 60, 2),
    )


def last_step() -> str:
    """The last step that the log tells of, such as ``5400/5428``."""
    log = RUN / "train.log"
    found = re.findall(r"step (\d+/\d+)", log.read_text(encoding="utf-8")) if log.is_file() else []
    return found[-1] if found else ""


if __name__ == "__main__":
    main()
