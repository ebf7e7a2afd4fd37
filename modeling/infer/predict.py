"""Features → logits and probabilities, shared among a CPU's cores."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from modeling.infer.config import EmotionConfig
from modeling.infer.cores import at_most
from modeling.infer.explanation import Shares
from modeling.infer.features import Features, cut_into_windows, read_in_windows, to_arrays
from modeling.infer.gradients import integrate_gradients

SMALL_PRODUCT, SMALL_MATRIX = 2**27, 2**22
"""One CPU thread is fastest below this many multiplications in a layer's largest product, and weights in its matrix.

Waking another thread takes longer than its share of such a small product. A larger matrix needs several threads to be
read. The first bound was measured with products on both sides of it.
"""

ROWS_OF_A_WORKER = 8
"""From this many texts it pays to give a CPU core its own texts, for which it reads all weights."""

_one_reader = threading.Lock()
"""PyTorch's number of threads is per process: only one caller may change it at a time."""


def suits_one_thread(model: Any, vectors: int) -> bool:
    """Are a layer's matrix products with this many vectors small enough that one CPU thread is fastest?"""
    inner = getattr(getattr(model.backbone, "config", None), "intermediate_size", model.config.embed_dim)
    matrix = model.config.hidden_size * inner
    return bool(matrix <= SMALL_MATRIX and vectors * matrix < SMALL_PRODUCT)


@contextmanager
def share_cores(
    model: PreTrainedModel, texts: int, batch_size: int, threads: int | None = None
) -> Iterator[tuple[Callable[..., Iterator[int]], int]]:
    """Share texts among a CPU's cores: yield a ``map`` over batches, and the number of texts in a batch.

    Cores that read their own texts need not wait for each other at every operation. Together they read at most
    ``batch_size`` texts at once, with at most ``threads`` of PyTorch's threads. bitsandbytes changes its layers as they compute, so it gets only one worker.
    """
    config, at_once = cast(EmotionConfig, model.config), max(min(batch_size, texts), 1)
    with _one_reader:
        available = torch.get_num_threads()
        threads, workers = min(available, threads or available), 1
        if next(model.parameters()).device.type == "cpu" and config.quantization == "none":
            workers = min(threads, max(at_once // ROWS_OF_A_WORKER, 1))
        size, each = at_once // workers, threads // workers
        if config.reads_one_token and suits_one_thread(model, size):
            each = 1
        with at_most(each if workers == 1 else threads):
            if workers == 1:
                yield map, size
            else:
                with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
                    yield pool.map, size


@torch.inference_mode()
def predict_logits(
    model: PreTrainedModel, features: Features, batch_size: int = 64, threads: int | None = None
) -> np.ndarray:
    """Logits, float32 [N, L], of N texts, in the model's own precision; texts of similar length share a batch."""
    was_training = model.training
    model.eval()
    config, device = cast(EmotionConfig, model.config), next(model.parameters()).device

    def read(batch: Features) -> np.ndarray:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):  # threads do not inherit them
            tensors = {name: tensor.to(device) for name, tensor in to_tensors(batch).items()}
            return np.asarray(model(**tensors).logits.float().cpu().numpy())

    with share_cores(model, len(cut_into_windows(features, config)[0]), batch_size, threads) as (map_batches, size):
        logits = read_in_windows(features, config, read, size, map_batches)
    model.train(was_training)
    return logits


def to_tensors(features: Features) -> dict[str, torch.Tensor]:
    """Arguments of :meth:`EmotionModel.forward`; tokens are padded on the right to the longest text."""
    return {name: torch.from_numpy(array) for name, array in to_arrays(features).items()}


class ModelEngine:
    """Probabilities by a model.

    Args:
        model: it computes on its own device.
        dtype: the precision of its backbone; None is that of its first weights.
    """

    precision = "float32"
    """The encoder is computed as its library does."""

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        self.model, self.config = model.eval(), model.config
        self.empty_token = getattr(getattr(model.backbone, "config", None), "bos_token_id", None) or 0
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, dtype or parameter.dtype

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, which may be set later."""
        return cast(Tokenizer | None, self.model.tokenizer)

    def __str__(self) -> str:
        return f"on {self.device} in {self.dtype}"

    def probabilities(self, features: Features, batch_size: int, threads: int) -> np.ndarray:
        """Probabilities, float32 [N, L], of N texts."""
        return predict_probabilities(self.model, features, batch_size, threads)

    def shares(self, features: Features, label: int, steps: int, batch_size: int, threads: int) -> Shares:
        """Shares of a text's tokens in the logit of a label, see :func:`integrate_gradients`."""
        with _one_reader, at_most(threads):
            return integrate_gradients(self.model, features, label, steps, batch_size)


def predict_probabilities(
    model: PreTrainedModel, features: Features, batch_size: int = 64, threads: int | None = None
) -> np.ndarray:
    """Sigmoid probabilities, float32 [N, L], of N texts."""
    return torch.sigmoid(torch.from_numpy(predict_logits(model, features, batch_size, threads))).numpy()
