"""Seconds and peak memory against the length of one text.

    python tests/benchmarks/text_length.py PACKAGE [COMMAND …] [--most BYTES] [--picture FILE]

COMMANDs (default: predict):

- ``predict``: ``EmotionClassifier(PACKAGE).predict([text])``
- ``infer.py``: the package's ``infer.py --input FILE``, the text on one line
- ``page``: a click on the demo page's button
- ``check``: ``hub_release check`` of a package one of whose golden texts is the text, with the probabilities it gives

Each command reads texts of 1 kB, 10 kB, … up to BYTES (default: 10 MB) in a fresh process of its own, and prints one
JSON line for each: seconds of CPU time, which other programs on the machine hardly change; the same without what an
empty text takes (start and load of the model); seconds on the clock; peak memory in MiB; and the exit status, which is
not 0 if the command refuses the text (the page answers a refusal with status 0).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from timing import emit

mpl.use("agg")
from matplotlib import pyplot as plt

from hub_release.package import LAYOUT, seal
from modeling.infer import EmotionClassifier

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
PREDICT = """
import sys
from pathlib import Path
from modeling.infer import EmotionClassifier
EmotionClassifier(sys.argv[1]).predict([Path(sys.argv[2]).read_text()])
"""
PAGE = """
import sys
from pathlib import Path
from hub_release.demo.page.app import build_page
from modeling.infer import EmotionClassifier
page = build_page(EmotionClassifier(sys.argv[1]), Path(sys.argv[1]), "a package")
click = next(function.fn for function in page.fns.values() if function.name == "classify")
click(Path(sys.argv[2]).read_text(), "", 0.5)
"""


def write_text(folder: Path, length: int) -> Path:
    """A file with one line of English words."""
    rows = (ROOT / "training" / "data" / "starter" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    words = " ".join(json.loads(row)["text"] for row in rows).encode("ascii", "ignore").decode()
    path = folder / f"{length}.txt"
    path.write_text((words * (length // len(words) + 1))[:length])
    return path


def golden(package: str, text: Path) -> str:
    """A sealed copy of the package; the text, with its probabilities, is a golden text that is no example of the card."""
    copy = shutil.copytree(package, text.with_suffix(""))
    content = json.loads((copy / LAYOUT.golden).read_text())
    said = EmotionClassifier(package).predict_proba([text.read_text()])[0].tolist()
    examples = json.loads((copy / LAYOUT.details).read_text())["examples"]
    row = next(index for index, row in enumerate(content["rows"]) if row["text"] not in examples)
    content["rows"][row] = {"text": text.read_text(), "probabilities": said}
    (copy / LAYOUT.golden).write_text(json.dumps(content))
    seal(copy)
    return str(copy)


COMMANDS: dict[str, Callable[[str, Path], list[str]]] = {
    "predict": lambda package, text: [sys.executable, "-c", PREDICT, package, str(text)],
    "infer.py": lambda package, text: [sys.executable, f"{package}/infer.py", "--input", str(text)],
    "page": lambda package, text: [sys.executable, "-c", PAGE, package, str(text)],
    "check": lambda package, text: [sys.executable, "-m", "hub_release.cli", "check", golden(package, text)],
}


def run(command: list[str]) -> dict[str, float]:
    """What a process, or the largest that it waited for, takes."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    _, status, used = os.wait4(process.pid, 0)
    return {
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "clock_seconds": time.perf_counter() - started,
        "peak_mib": used.ru_maxrss / 1024,
        "status": os.waitstatus_to_exitcode(status),
    }


def draw(lines: list[dict[str, float | str]], picture: str) -> None:
    """Seconds and memory against length, a line for each command."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for name in dict.fromkeys(str(line["command"]) for line in lines):
        own = [line for line in lines if line["command"] == name]
        lengths = [float(line["bytes"]) for line in own]
        axes[0].loglog(lengths, [float(line["cpu_seconds"]) for line in own], "o-", label=name)
        axes[1].semilogx(lengths, [float(line["peak_mib"]) for line in own], "o-", label=name)
    highest = max(float(line["peak_mib"]) for line in lines)
    axes[0].set(title="CPU time, with the start of the process", ylabel="seconds")
    axes[1].set(title="Peak memory", ylabel="MiB", ylim=(0, 1.2 * highest))
    for panel in axes:
        panel.set_xlabel("length of the text, bytes")
    axes[0].legend()
    figure.savefig(picture, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package")
    parser.add_argument("commands", nargs="*", default=["predict"], help=", ".join(COMMANDS))
    parser.add_argument("--most", type=int, default=LENGTHS[-1])
    parser.add_argument("--picture")
    given = parser.parse_args()
    lines: list[dict[str, float | str]] = []
    for name in given.commands:
        empty = 0.0
        for length in (0, *(length for length in LENGTHS if length <= given.most)):
            with tempfile.TemporaryDirectory() as folder:
                found = run(COMMANDS[name](given.package, write_text(Path(folder), length)))
            empty = empty or found["cpu_seconds"]
            if length:
                found["cpu_seconds_of_text"] = max(found["cpu_seconds"] - empty, 0.01)
                lines.append({"command": name, "bytes": length, **{key: round(v, 2) for key, v in found.items()}})
                emit("text_length", **lines[-1])
    if given.picture:
        draw(lines, given.picture)


if __name__ == "__main__":
    main()
