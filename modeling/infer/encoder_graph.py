"""The sentence encoder ``use-multilingual-v3`` as an ONNX graph, with the weights of its library.

The library computes in float32 with numpy, where half of the time goes into copies. The layers are those of Cer et al.,
"Universal Sentence Encoder", 2018, with convolutions over windows of 2, 3 and 5 pieces of words.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from modeling.infer.graph_writer import GraphWriter
from modeling.infer.runtimes import onnx_session, openvino_session

_PIECES_IN_BATCH = 4_096
_RUNTIMES = {"int8": (onnx_session, None, 8, 1), "bfloat16": (openvino_session, "bfloat16", 64, 8)}
"""What computes in a precision, what it calls it, the most rows of a batch, and the step in which lengths go up. OpenVINO
takes longer for a new shape than for a batch, and ONNX Runtime longer for padding than for another batch."""


def compile_encoder(encoder: Any, threads: int, precision: str) -> Callable[[list[str]], np.ndarray]:
    """Texts → embeddings, float32 [N, E].

    Args:
        encoder: the library's ``USE``.
        threads: the most CPU threads; each reads texts of its own.
        precision: ``bfloat16`` (OpenVINO) or ``int8`` (ONNX Runtime).

    Raises:
        AttributeError: the library's encoder is built in another way than expected.
    """
    layers, tokenize = encoder._model, encoder._tokenizer.encode
    make_session, own_precision, most_rows, step = _RUNTIMES[precision]
    session = make_session("the sentence encoder", EncoderGraph(layers, precision == "int8").content, own_precision)

    def read(batch: list[list[int]]) -> np.ndarray:
        longest = max(map(len, batch))
        rows = len(batch) if step == 1 else 2 ** (len(batch) - 1).bit_length()
        pieces = np.zeros((rows, longest + -longest % step), np.int64)
        mask = np.zeros((*pieces.shape, 1), np.float32)
        mask[:, 0] = 1  # a row of nothing has a length, too
        for row, piece in enumerate(batch):
            pieces[row, : len(piece)], mask[row, : len(piece)] = piece, 1
        chunk = pieces % len(layers.scale)
        words = layers.table[pieces] * layers.scale[chunk][..., None] + layers.lo[chunk][..., None]
        return session.run({"words": words, "mask": mask})[: len(batch)]

    def encode(texts: list[str]) -> np.ndarray:
        tokens = [tokenize(text, out_type=int, add_bos=True, add_eos=True) for text in texts]
        order = sorted(range(len(texts)), key=lambda row: len(tokens[row]))
        batches = list(_cut_batches([tokens[row] for row in order], most_rows))
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


def _cut_batches(ordered: list[list[int]], most_rows: int) -> Iterator[list[list[int]]]:
    """Rows of similar length, shortest first, cut into batches."""
    start = 0
    while start < len(ordered):
        end = min(start + most_rows, len(ordered))
        while end - start > 1 and (end - start) * len(ordered[end - 1]) > _PIECES_IN_BATCH:
            end = start + (end - start) // 2
        yield ordered[start:end]
        start = end


class EncoderGraph:
    """``words`` [B, T, E] and ``mask`` [B, T, 1] → embeddings [B, E].

    In int8 each output of a matrix has a scale of its own, and its input one for all rows.

    Attributes:
        content: the graph.
    """

    def __init__(self, layers: Any, int8: bool) -> None:
        self.graph, self.layers, self.int8 = GraphWriter(), layers, int8
        self.epsilon = self.graph.constant(np.float32(layers.eps))
        width = layers.proj_W.shape[0]
        words = self.graph.input("words", [None, None, width])
        mask = self.graph.input("mask", [None, None, 1])
        self.content = self.graph.finish(self._embed(self._mean(words, mask)), [None, layers.d3.shape[1]])

    def _mean(self, words: str, mask: str) -> str:
        """Mean of a text's features, [B, E]; its length's root divides, not its length."""
        add, layers = self.graph.add, self.layers
        # One scale for all words would leave the small ones some steps only; the normalization would enlarge these.
        largest = add("Max", add("ReduceMax", add("Abs", words), self.graph.constant(np.array([-1]))), self.epsilon)
        scaled = self._dense(add("Div", words, largest), layers.proj_W)
        projected = add("Add", add("Mul", scaled, largest), self.graph.constant(layers.proj_b))
        projected = self._normalize(projected, layers.ln_g_all, layers.ln_b_all)
        branches = len(layers.w1)
        features = [words]
        for branch, part in enumerate(add("Split", projected, outputs=branches, axis=2, num_outputs=branches)):
            inside = add("Mul", part, mask)
            first = self._convolve(inside, layers.w1[branch], layers.b1[branch])
            hidden = add("Mul", add("Add", first, inside), mask)
            features.append(add("Add", self._convolve(hidden, layers.w2[branch], layers.b2[branch]), hidden))
        kept = add("Mul", self._normalize(add("Concat", *features, axis=2), layers.ln_g, layers.ln_b), mask)
        of_texts = self.graph.constant(np.array([1]))
        length = add("ReduceSum", mask, of_texts, keepdims=0)
        root = add("Sqrt", length)
        mean = add("Div", add("ReduceSum", kept, of_texts, keepdims=0), root)
        bias = add("Mul", root, self.graph.constant(layers.cnn_b))
        return str(add("Add", self._dense(mean, layers.cnn_W), bias))

    def _embed(self, mean: str) -> str:
        """Embeddings of length 1."""
        add, layers = self.graph.add, self.layers
        first = add("Relu", self._dense(mean, layers.d0))
        second = add("Relu", add("Add", self._dense(mean, layers.p1), self._dense(first, layers.d1)))
        third = add("Relu", self._dense(second, layers.d2))
        last = add("Tanh", add("Add", self._dense(second, layers.p3), self._dense(third, layers.d3)))
        squared = add("ReduceSum", add("Mul", last, last), self.graph.constant(np.array([1])))
        return str(add("Div", last, add("Sqrt", add("Max", squared, self.epsilon))))

    def _normalize(self, x: str, scale: np.ndarray, shift: np.ndarray) -> str:
        add, last = self.graph.add, self.graph.constant(np.array([-1]))
        centered = add("Sub", x, add("ReduceMean", x, last))
        variance = add("ReduceMean", add("Mul", centered, centered), last)
        normalized = add("Div", centered, add("Sqrt", add("Add", variance, self.epsilon)))
        return str(add("Add", add("Mul", normalized, self.graph.constant(scale)), self.graph.constant(shift)))

    def _convolve(self, x: str, weights: np.ndarray, bias: np.ndarray) -> str:
        """Windows of words around each; without a neighbor there is 0."""
        add, constant = self.graph.add, self.graph.constant
        width = len(weights) // weights.shape[1]
        left = (width - 1) // 2
        padded = add("Pad", x, constant(np.array([0, left, 0, 0, width - 1 - left, 0])))
        ends = [place - width + 1 or np.iinfo(np.int64).max for place in range(width)]
        shifted = [
            add("Slice", padded, constant(np.array([place])), constant(np.array([end])), constant(np.array([1])))
            for place, end in enumerate(ends)
        ]
        return str(add("Relu", self._dense(add("Concat", *shifted, axis=2), weights, bias)))

    def _dense(self, x: str, weights: np.ndarray, bias: np.ndarray | None = None) -> str:
        add, constant = self.graph.add, self.graph.constant
        if self.int8:
            largest = np.abs(weights).max(axis=0) / 127
            steps = np.round(weights / largest).astype(np.int8)
            quantized, scale, zero = add("DynamicQuantizeLinear", x, outputs=3)
            product = add("Cast", add("MatMulInteger", quantized, constant(steps), zero), to=1)
            found = add("Mul", product, add("Mul", scale, constant(largest)))
        else:
            found = add("MatMul", x, constant(weights))
        return str(found if bias is None else add("Add", found, constant(bias)))
