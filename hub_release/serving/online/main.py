"""Serve a package without this project: one file, ``server.py``, beside it in a container.

    python server.py package --backend onnx --host 0.0.0.0

It needs what ``requirements.txt`` names, and neither PyTorch nor transformers.
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from hub_release.serving.online.options import TEXTS_AT_ONCE, Limits
from hub_release.serving.online.server import listen, serve, to_model
from modeling.infer.cores import check_threads
from modeling.infer.files import read_json
from modeling.infer.graph_classifier import EmotionClassifier
from modeling.infer.package import CONFIG_FILE, VERSION_KEY


def read_arguments(given: Sequence[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description="Serve a package over HTTP. SIGTERM stops it; what has begun is answered."
    )
    parser.add_argument("package", type=Path, help="folder of the package")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--backend", default="onnx", help="onnx or openvino")
    parser.add_argument("--quantization", help="none or int8: which of the package's graphs")
    parser.add_argument("--threads", type=int, help="the most CPU threads; default: all usable cores")
    for limit in fields(Limits):
        parser.add_argument(f"--{limit.name}", type=type(limit.default), default=limit.default)
    return parser.parse_args(given)


def main(given: Sequence[str]) -> int:
    """Serve until a signal; 2 after wrong use."""
    asked = read_arguments(given)
    logging.basicConfig(level=logging.WARNING)
    try:
        limits = Limits(**{limit.name: getattr(asked, limit.name) for limit in fields(Limits)})
        version = read_json(asked.package, CONFIG_FILE).get(VERSION_KEY, "")
        listening = listen(asked.host, asked.port)
        workers = check_threads(asked.threads)
        named = {"backend": asked.backend, "quantization": asked.quantization}
        # Several threads use a graph's session, each with a batch of its own.
        classifier = EmotionClassifier(asked.package, batch_size=TEXTS_AT_ONCE, threads=1, **named)
        model = to_model(classifier, asked.package.resolve().name, version, workers)
    except (OSError, ValueError, OverflowError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{model.name}, computed {model.about}, answers at {asked.host}:{asked.port}\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has stopped by now, and raises the signal again
        serve(model, limits, listening)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
