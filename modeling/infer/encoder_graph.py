"""The sentence encoder ``use-multilingual-v3`` as a graph of OpenVINO, with the weights of its library.

The library computes in float32 with numpy, where half of the time goes into copies; this takes a third of its time. The
layers are those of Cer et al., "Universal
Sentence Encoder", 2018, with convolutions over windows of 2, 3 and 5 pieces of words.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from modeling.infer.errors import import_optional
from modeling.infer.runtimes import in_each_thread

_PIECES_IN_BATCH, _ROWS_IN_BATCH, _LENGTH_STEP = 4_096, 64, 8
"""A batch has at most so many pieces and rows. A new shape takes longer than the batch, so lengths go up by steps."""


def compile_encoder(encoder: Any, threads: int) -> Callable[[list[str]], np.ndarray]:
    """Texts → embeddings, float32 [N, E], in bfloat16.

    Args:
        encoder: the library's ``USE``.
        threads: the most CPU threads; each reads texts of its own.

    Raises:
        AttributeError: the library's encoder is built in another way than expected.
    """
    openvino = import_optional("openvino", "openvino")
    layers, tokenize = encoder._model, encoder._tokenizer.encode
    hints = {"INFERENCE_PRECISION_HINT": "bf16", "ENABLE_CPU_PINNING": False}
    hints |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads}
    run = in_each_thread(openvino.Core().compile_model(_build_encoder(openvino, layers), "CPU", hints))

    def read(batch: list[list[int]]) -> np.ndarray:
        longest = max(map(len, batch))
        rows = 2 ** (len(batch) - 1).bit_length()
        pieces = np.zeros((rows, longest + -longest % _LENGTH_STEP), np.int64)
        mask = np.zeros((*pieces.shape, 1), np.float32)
        mask[:, 0] = 1  # a row of nothing has a length, too
        for row, piece in enumerate(batch):
            pieces[row, : len(piece)], mask[row, : len(piece)] = piece, 1
        return run({"pieces": pieces, "mask": mask})[: len(batch)]

    def encode(texts: list[str]) -> np.ndarray:
        tokens = [tokenize(text, out_type=int, add_bos=True, add_eos=True) for text in texts]
        order = sorted(range(len(texts)), key=lambda row: len(tokens[row]))
        batches = list(_cut_batches([tokens[row] for row in order]))
        found = np.zeros((len(texts), layers.d3.shape[1]), np.float32)
        if len(batches) > 1 and threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                read_batches = list(pool.map(read, batches))
        else:
            read_batches = list(map(read, batches))
        if read_batches:
            found[order] = np.concatenate(read_batches)
        return found

    return encode


def _cut_batches(ordered: list[list[int]]) -> Any:
    """Rows of similar length, shortest first, cut into batches."""
    start = 0
    while start < len(ordered):
        end = min(start + _ROWS_IN_BATCH, len(ordered))
        while end - start > 1 and (end - start) * len(ordered[end - 1]) > _PIECES_IN_BATCH:
            end = start + (end - start) // 2
        yield ordered[start:end]
        start = end


def _build_encoder(openvino: Any, layers: Any) -> Any:
    """``pieces`` [B, T] and ``mask`` [B, T, 1] → embeddings [B, E]."""
    ops = openvino.opset13
    pieces = ops.parameter([-1, -1], np.int64, name="pieces")
    mask = ops.parameter([-1, -1, 1], np.float32, name="mask")
    chunk = ops.mod(pieces, ops.constant(np.int64(len(layers.scale))))

    def look_up(table: np.ndarray, rows: Any) -> Any:
        return ops.gather(ops.constant(table), rows, ops.constant(0))

    def normalize(x: Any, scale: np.ndarray, shift: np.ndarray) -> Any:
        centered = ops.mvn(x, ops.constant([-1]), True, layers.eps, "inside_sqrt")
        return centered * ops.constant(scale) + ops.constant(shift)

    def dense(x: Any, weights: np.ndarray) -> Any:
        return ops.matmul(x, ops.constant(weights), False, False)

    def convolve(x: Any, weights: np.ndarray, bias: np.ndarray, left: int) -> Any:
        width = len(weights) // channels
        padded = ops.pad(x, [0, left, 0], [0, width - 1 - left, 0], "constant", ops.constant(np.float32(0)))
        shifted = [ops.slice(padded, [place], [place - width + 1 or _LAST_PLACE], [1], [1]) for place in range(width)]
        return ops.relu(dense(ops.concat(shifted, 2), weights) + ops.constant(bias))

    raw = ops.convert(look_up(layers.table, pieces), np.float32)
    # The shift first: after the scale, a small value would be the difference of two that are rounded.
    shifted = raw + look_up((layers.lo / layers.scale)[:, None], chunk)
    embedded = shifted * look_up(layers.scale[:, None], chunk)
    projected = normalize(
        dense(embedded, layers.proj_W) + ops.constant(layers.proj_b), layers.ln_g_all, layers.ln_b_all
    )
    channels, features = layers.w1[0].shape[1], [embedded]
    for branch, part in enumerate(ops.split(projected, ops.constant(2), len(layers.w1)).outputs()):
        inside = ops.multiply(part, mask)
        left = (len(layers.w1[branch]) // channels - 1) // 2
        hidden = (convolve(inside, layers.w1[branch], layers.b1[branch], left) + inside) * mask
        features.append(convolve(hidden, layers.w2[branch], layers.b2[branch], left) + hidden)
    kept = normalize(ops.concat(features, 2), layers.ln_g, layers.ln_b) * mask
    length = ops.reduce_sum(mask, ops.constant([1]), False)
    mean = dense(ops.reduce_sum(kept, ops.constant([1]), False), layers.cnn_W) + length * ops.constant(layers.cnn_b)
    mean = mean / ops.sqrt(length)
    first = ops.relu(dense(mean, layers.d0))
    second = ops.relu(dense(mean, layers.p1) + dense(first, layers.d1))
    third = ops.relu(dense(second, layers.d2))
    last = ops.tanh(dense(second, layers.p3) + dense(third, layers.d3))
    embedding = ops.normalize_l2(last, ops.constant([-1]), layers.eps, "max")
    return openvino.Model([embedding], [pieces, mask])


_LAST_PLACE = np.iinfo(np.int64).max
