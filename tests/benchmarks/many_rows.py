"""Time and memory of each stage of a training against the number of rows.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/many_rows.py [ROWS …]
    python tests/benchmarks/many_rows.py PICTURE LINES …

The verb ``train`` runs from files to a finished run; only the number of steps is fixed. Rows are drawn from the words of
the starter corpus, with its labels; a tenth more are validation, and a tenth test. A tiny Mistral reads embeddings of 512
numbers and words; the embeddings are made by a function that hashes words, in place of an encoder, whose time is its own
(tests/benchmarks/encoder.py) and whose memory does not depend on the rows. Each number of rows is a process of its own.
Prints one JSON line for each stage: seconds, the peak of resident memory, and how much of it is anonymous (the rest are
pages of files, which the system takes back when it needs them). The second form draws such lines.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROWS = (10_000, 100_000, 1_000_000)
LABELS = ("joy", "anger", "fear", "sadness", "surprise", "love")
STEPS = 20
"""Optimizer steps that are timed; a step does not depend on the number of rows."""
PEAKS: list[int] = []
"""The peak within the innermost stage that is still open, in MiB, but for what the system itself has counted since."""


def status(field: str) -> int:
    """A field of the process's memory, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{field}:"))


@contextmanager
def stage(name: str, rows: int) -> Iterator[None]:
    """Measure what is done within; stages may lie in another."""
    outer, PEAKS[:] = [*PEAKS, status("VmHWM")], []
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    started = time.perf_counter()
    yield
    seconds, peak = round(time.perf_counter() - started, 2), max([*PEAKS, status("VmHWM")])
    memory = {"peak_mib": peak, "anonymous_mib_after": status("RssAnon")}
    print(json.dumps({"figure": "many_rows", "stage": name, "rows": rows, "seconds": seconds, **memory}), flush=True)
    PEAKS[:] = [max([*outer, peak])]


def write_rows(folder: Path, rows: int) -> None:
    """Three files of generated rows."""
    starter = Path(__file__).parents[2] / "training" / "data" / "starter" / "train.jsonl"
    words = " ".join(json.loads(line)["text"] for line in starter.read_text(encoding="utf-8").splitlines()).split()
    generator = np.random.default_rng(0)
    for split, number in (("train", rows), ("validation", rows // 10), ("test", rows // 10)):
        with (folder / f"{split}.csv").open("w", encoding="utf-8") as file:
            file.write("text,labels\n")
            for _ in range(number):
                text = " ".join(
                    words[place] for place in generator.integers(len(words), size=generator.integers(4, 30))
                )
                label = LABELS[generator.integers(len(LABELS))]
                file.write(f'"{text.replace(chr(34), "")}",{label}\n')


def hash_words(texts: list[str]) -> np.ndarray:
    """Embeddings, float32 [N, 512]: each word adds 1 where its hash says."""
    found = np.zeros((len(texts), 512), np.float32)
    for row, text in enumerate(texts):
        for word in text.split():
            found[row, zlib.crc32(word.encode()) % 512] += 1
    return found


def measure(rows: int, folder: Path) -> None:
    """The verb ``train``, from files to a finished run, with few steps."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import MistralConfig, MistralModel, PreTrainedTokenizerFast

    from modeling.infer import LoadedEncoder, encoders
    from training import corpora
    from training.commands import train as stages
    from training.fit import prepare, results
    from training.options import parse

    write_rows(folder, rows)
    encoders.ENCODERS["minilm"] = encoders.EncoderSource(
        lambda name, threads: LoadedEncoder(name, "hashed words", hash_words), 512, ""
    )
    shapes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 4_096}
    backbone = folder / "backbone"
    MistralModel(MistralConfig(**shapes, num_attention_heads=4, num_key_value_heads=2)).save_pretrained(backbone)
    vocabulary = {"<unk>": 0} | {f"{number}": number for number in range(1, 4_096)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(backbone)
    flags = (
        f"--recipe goemotions_tokens --dataset files --data_dir {folder} --labels {' '.join(LABELS)} --encoder minilm "
    )
    flags += f"--model_name {backbone} --num_hidden_layers 2 --bf16 false --lora_rank 4 --output_dir {folder / 'run'}"
    build = stages.build_trainer

    def build_short(*arguments: Any) -> Any:
        trainer = build(*arguments)
        trainer.args.max_steps, trainer.args.eval_strategy, trainer.args.save_strategy = STEPS, "no", "no"
        trainer.args.load_best_model_at_end = False
        wrap(trainer, "train", rows, f"{STEPS} steps")
        wrap(trainer, "evaluate", rows, "evaluation")
        train = trainer.train
        trainer.train = lambda **options: (train(**options), trainer.evaluate())
        return trainer

    stages.build_trainer = build_short
    for module, name, title in (
        (corpora, "load_corpus", "read"),
        (corpora, "audit_corpus", "copies"),
        (corpora, "encode", "encode"),
        (prepare, "balance", "balance"),
        (prepare, "audit_rows", "audit of training rows"),
        (prepare, "_suspects", "exchanged labels"),
        (prepare, "tokenize_rows", "tokens"),
        (stages, "build_trainer", "build"),
        (results, "calibrate", "read validation and test, calibrate"),
        (results, "build_report", "scores"),
        (results, "score_bag_of_words", "bag of words"),
        (results, "draw", "plots"),
    ):
        wrap(module, name, rows, title)
    command = parse(flags.split())
    with stage("everything", rows):
        stages.train(command.recipe, command.options, stages.Corpora())


def wrap(owner: Any, name: str, rows: int, title: str) -> None:
    """Measure each call of a function of a module or an object."""
    function = getattr(owner, name)

    def measured(*arguments: Any, **options: Any) -> Any:
        with stage(title, rows):
            return function(*arguments, **options)

    setattr(owner, name, measured)


def main() -> None:
    if sys.argv[1:] and sys.argv[1].endswith(".png"):
        lines = [line for name in sys.argv[2:] for line in Path(name).read_text(encoding="utf-8").splitlines()]
        draw(Path(sys.argv[1]), [json.loads(line) for line in lines if line.startswith('{"figure"')])
        return
    for rows in map(int, sys.argv[1:] or ROWS):
        with tempfile.TemporaryDirectory() as folder:
            process = multiprocessing.get_context("spawn").Process(target=run, args=(rows, folder))
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(process.exitcode)


def draw(picture: Path, lines: list[dict[str, Any]]) -> None:
    """Seconds and peak memory of each stage against the number of rows."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    stages = [
        name for name in dict.fromkeys(line["stage"] for line in lines) if name not in ("balance", "bag of words")
    ]
    for panel, (field, title) in zip(panels, (("seconds", "seconds"), ("peak_mib", "peak memory, MiB")), strict=True):
        for name, color in zip(stages, plt.get_cmap("tab20").colors, strict=False):  # type: ignore[attr-defined]
            own = sorted((line["rows"], line[field]) for line in lines if line["stage"] == name)
            panel.loglog(*zip(*own, strict=True), "o-", label=name, color=color)
        panel.set_xlabel("training rows")
        panel.set_title(title)
    panels[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(picture, dpi=80)


def run(rows: int, folder: str) -> None:
    """A process of its own, with a cache of its own."""
    os.environ["GOEMOTIONS_MISTRAL_CACHE"] = f"{folder}/cache"
    measure(rows, Path(folder))


if __name__ == "__main__":
    main()
