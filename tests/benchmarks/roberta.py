"""RoBERTa-base as a sequence classifier for comparison, with random weights, which are enough for timing."""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from onnxruntime import InferenceSession, SessionOptions
from timing import alternate
from transformers import AutoTokenizer, RobertaConfig, RobertaForSequenceClassification

from modeling.infer import bundled

THREADS = torch.get_num_threads()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Roberta:
    """RoBERTa-base with 28 labels and random weights: texts in, labels out."""

    def __init__(self) -> None:
        gguf = bundled._find_gguf()
        self.tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        config = RobertaConfig(vocab_size=50_265, num_labels=28, max_position_embeddings=514)
        config._attn_implementation = "sdpa"
        model = RobertaForSequenceClassification(config).eval()
        self.models = {name: copy.deepcopy(model).to(dtype) for name, dtype in DTYPES.items()}

    def classify(self, texts: list[str], batch_size: int, dtype: str, threads: int) -> list[list[int]]:
        """The labels of each text, in the order of the texts."""
        torch.set_num_threads(threads)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        labels: list[list[int]] = [[] for _ in texts]
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = self.tokenizer([texts[index] for index in chosen], padding=True, truncation=True, max_length=512)
            inputs = {name: torch.tensor(batch[name]) for name in ("input_ids", "attention_mask")}
            reached = self.models[dtype](**inputs).logits.float().sigmoid().numpy() >= 0.5
            for index, row in zip(chosen, reached, strict=True):
                labels[index] = np.flatnonzero(row).tolist()
        torch.set_num_threads(THREADS)
        return labels

    def best(self, texts: list[str], batch_size: int) -> tuple[str, Callable[[], object]]:
        """Its fastest setting in one round over 64 of the texts: its name, and a function over all texts."""
        settings = {
            f"{dtype}, {threads} threads": (batch_size, dtype, threads)
            for dtype, threads in itertools.product(DTYPES, sorted({1, THREADS}))
        }
        some = texts[:64]
        seconds = alternate({name: partial(self.classify, some, *setting) for name, setting in settings.items()}, 1)
        fastest = min(seconds, key=lambda name: seconds[name])
        return fastest, partial(self.classify, texts, *settings[fastest])


# In the runtimes that people use

Run = Callable[[dict[str, np.ndarray], int], object]
"""A batch, and threads → logits."""
_CALIBRATION_TEXTS = 128


class Texts:
    """Texts for RoBERTa-base, and a model of it with random weights."""

    def __init__(self, texts: Sequence[str]) -> None:
        whole = Roberta()
        self.tokenizer, self.model = whole.tokenizer, whole.models["float32"]
        self.texts = texts

    def batch(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Token ids and mask of a batch, padded to its longest text."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=512, return_tensors="np")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def sample(self) -> dict[str, torch.Tensor]:
        """A batch of two texts."""
        return {name: torch.from_numpy(value) for name, value in self.batch(self.texts[:2]).items()}

    def with_runtime(self, run: Run) -> Callable[[Sequence[str], int, int], None]:
        """Texts, batch size and threads → probabilities, in batches of similar length."""

        def classify(texts: Sequence[str], batch_size: int, threads: int) -> None:
            ordered = sorted(texts, key=len)
            for start in range(0, len(ordered), batch_size):
                run(self.batch(ordered[start : start + batch_size]), threads)

        return classify

    def shapes(self) -> dict[str, Any]:
        """Any number of rows and tokens."""
        return {name: dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC) for name in ("input_ids", "attention_mask")}


def by_torch(texts: Texts) -> Callable[[Sequence[str], int, int], None]:
    """PyTorch in bfloat16."""
    model = copy.deepcopy(texts.model).to(torch.bfloat16)

    @torch.inference_mode()
    def run(batch: dict[str, np.ndarray], threads: int) -> object:
        return model(**{name: torch.from_numpy(value) for name, value in batch.items()}).logits.float().numpy()

    return texts.with_runtime(run)


def by_onnxruntime(texts: Texts) -> Callable[[Sequence[str], int, int], None]:
    """ONNX Runtime, dynamic int8."""
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter
    from transformers.exporters.quantizers.quantizer_onnxruntime import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(per_channel=True))
    config = OnnxConfig(dynamic_shapes=texts.shapes(), quantizer=quantizer)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        OnnxExporter().export(texts.model, texts.sample(), config=config).save_pretrained(folder)
        path, sessions = str(next(Path(folder).glob("*.onnx"))), {}
        for threads in (1, THREADS):
            options = SessionOptions()
            options.intra_op_num_threads = threads
            sessions[threads] = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return texts.with_runtime(lambda batch, threads: sessions[threads].run(["logits"], batch))


def by_openvino(texts: Texts) -> Callable[[Sequence[str], int, int], None]:
    """OpenVINO, int8 by NNCF, calibrated on some of the texts."""
    from transformers.exporters.configs import OpenVINOConfig
    from transformers.exporters.exporter_openvino import OpenVINOExporter
    from transformers.exporters.quantizers.quantizer_nncf import NNCFOpenVINOQuantizer

    samples = [
        {name: torch.from_numpy(value) for name, value in texts.batch([text]).items()}
        for text in texts.texts[:_CALIBRATION_TEXTS]
    ]
    quantizer = NNCFOpenVINOQuantizer(calibration_dataset=samples)
    config = OpenVINOConfig(dynamic_shapes=texts.shapes(), quantizer=quantizer)
    with torch.no_grad():
        program = OpenVINOExporter().export(texts.model, texts.sample(), config=config).program
    hints = {"PERFORMANCE_HINT": "LATENCY"}
    compiled = {
        threads: openvino.Core().compile_model(program, "CPU", {"INFERENCE_NUM_THREADS": threads, **hints})
        for threads in (1, THREADS)
    }
    return texts.with_runtime(lambda batch, threads: compiled[threads](batch)[0])


RUNTIMES = {"torch": by_torch, "onnx-int8": by_onnxruntime, "openvino int8": by_openvino}
