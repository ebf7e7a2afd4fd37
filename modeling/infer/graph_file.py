"""The graph of a package, an ONNX file written by strangers: read as data, and refused before a session is made of it.

A file is read more strictly than runtimes read it: what a field's number or form makes ambiguous is refused, so that
nothing is hidden from this reading. The numbers are those of onnx.proto
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling.infer.errors import PackageError
from modeling.infer.files import read_bytes

GRAPH_FILE = "onnx/model.onnx"
INT8_GRAPH_FILE = "onnx/model_quantized.onnx"
"""Names of a graph in float32 and of one in int8, as other libraries and Transformers.js have them."""
MAX_GRAPH_BYTES = 2**31 - 1
"""A protocol buffer cannot be larger."""
_MAX_NODES = 2**16
_MAX_SHAPE = 2**24
"""Values in a tensor that a constant shape makes; what depends on the batch has no constant shape."""

_DOMAINS = {"": "", "ai.onnx": "", "com.microsoft": "com.microsoft"}
_OPERATORS = {
    *(
        "Abs",
        "Add",
        "And",
        "Attention",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "Cos",
        "CumSum",
        "DequantizeLinear",
        "Div",
    ),
    *("DynamicQuantizeLinear", "Einsum", "Equal", "Erf", "Expand", "Flatten", "Gather", "GatherND", "Gelu", "Gemm"),
    *("Greater", "GreaterOrEqual", "Identity", "LayerNormalization", "Less", "LessOrEqual", "MatMul", "MatMulInteger"),
    *("Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "QuantizeLinear", "Range", "Reciprocal", "ReduceMax"),
    *("ReduceMean", "ReduceSum", "Reshape", "RMSNormalization", "RotaryEmbedding", "Shape", "Sigmoid"),
    *("SimplifiedLayerNormalization", "Sin", "SkipSimplifiedLayerNormalization", "Slice", "Softmax", "Split", "Sqrt"),
    *("Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where", "ArgMax", "Trilu", "IsNaN", "Tile"),
}
"""What exported graphs consist of. Control flow is not among them, nor anything that reads files or other code."""
_OF_A_SHAPE = {"Expand": (1,), "Tile": (1,), "Range": (0, 1, 2)}
"""Operators that make a tensor of a size that inputs say: the indices of these."""
_NO_SHAPE = 2**62
"""The size that a constant of other numbers than int64 says."""
_MAX_FIELDS = 2**20
"""Of a file; a graph of thirty layers has 10,348 in float32 and 15,064 in int8."""
_MAX_NAME, _MAX_DIMENSIONS, _MAX_DIMENSION = 256, 16, 2**40
_TYPE_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""Bytes of a value, by the number of its type."""
_INT64 = 7


def read_graph(folder: Path, name: str) -> bytes:
    """The content of one of a package's graphs.

    Raises:
        PackageError: it is missing, too large, or could lead to other files, other code or endless work; or it says that
            a tensor is larger than there are bytes, or that an operator makes a huge one. What operators make of each
            other's results is not bounded: a stranger's graph can still fill the memory.
    """
    content = read_bytes(folder, name, MAX_GRAPH_BYTES)
    for problem in graph_problems(content):
        raise PackageError(name, problem, "export the run again")
    return content


def graph_problems(content: bytes) -> Iterator[str]:
    """Why no session may be made of a file."""
    try:
        yield from _Reader().model_problems(memoryview(content))
    except ValueError as error:
        yield f"is not an ONNX file as exports write it: {error!s:.200}"


@dataclass(frozen=True)
class _Message:
    """The fields that exports write in a kind of message, by number: those that may come once, and those that repeat.

    ``numbers`` are of these; the others are bytes: texts, messages, or packed lists. A list may also be written number
    by number, so ``lists`` are either.
    """

    name: str
    once: frozenset[int]
    repeated: frozenset[int] = frozenset()
    numbers: frozenset[int] = frozenset()
    lists: frozenset[int] = frozenset()
    floats: frozenset[int] = frozenset()


_MODEL = _Message("model", frozenset({1, 2, 3, 4, 5, 6, 7}), frozenset({8, 14}), frozenset({1, 5}))
_OPERATOR_SET = _Message("operator set", frozenset({1, 2}), numbers=frozenset({2}))
_GRAPH = _Message("graph", frozenset({2, 10}), frozenset({1, 5, 11, 12, 13, 14, 16}))
_NODE = _Message("operator", frozenset({3, 4, 6, 7}), frozenset({1, 2, 5, 9}))
_ATTRIBUTE = _Message(
    "attribute",
    frozenset({1, 2, 3, 4, 5, 13, 20}),
    frozenset({7, 8, 9}),
    frozenset({3, 20}),
    frozenset({8}),
    frozenset({2, 7}),
)
_TENSOR = _Message(
    "tensor",
    frozenset({2, 8, 9, 12, 14}),
    frozenset({1, 4, 5, 7, 10, 11, 16}),
    frozenset({2, 14}),
    frozenset({1, 5, 7, 11}),
    frozenset({4, 10}),
)


class _Reader:
    """Reads one file; what it read is counted, so that reading ends."""

    def __init__(self) -> None:
        self.left = _MAX_FIELDS

    def model_problems(self, model: memoryview) -> Iterator[str]:
        graphs = 0
        for number, value in self.fields(model, _MODEL):
            if number == 7:
                graphs += 1
                yield from self.graph_problems(value)
            elif number == 8:
                domain = next((_text(part) for key, part in self.fields(value, _OPERATOR_SET) if key == 1), "")
                if domain not in _DOMAINS:
                    yield f"uses operators of {domain!r:.80}"
        if graphs != 1:
            yield f"has {graphs} graphs, not one"

    def graph_problems(self, graph: memoryview) -> Iterator[str]:
        nodes: list[memoryview] = []
        constants: dict[str, int] = {}
        for number, value in self.fields(graph, _GRAPH):
            if number == 1:
                nodes.append(value)
            elif number == 5:
                name, problem, size = self.read_tensor(value)
                constants[name] = size
                if problem:
                    yield f"has the tensor {name!r:.80}, which {problem}"
        if len(nodes) > _MAX_NODES:
            yield f"has {len(nodes):,} operators, more than {_MAX_NODES:,}"
            return
        for node in nodes:
            yield from self.node_problems(node, constants)

    def node_problems(self, node: memoryview, constants: dict[str, int]) -> Iterator[str]:
        inputs: list[str] = []
        outputs: list[str] = []
        operator, domain = "", ""
        sizes: list[int] = []
        for number, value in self.fields(node, _NODE):
            if number in (1, 2):
                (inputs if number == 1 else outputs).append(_text(value))
            elif number == 4:
                operator = _text(value)
            elif number == 7:
                domain = _text(value)
            elif number == 5:
                for problem, size in self.read_attribute(value):
                    sizes.append(size)
                    if problem:
                        yield f"has an operator {operator!r:.80} {problem}"
        if operator not in _OPERATORS or domain not in _DOMAINS:
            yield f"has the operator {operator!r:.80} of {domain!r:.80}, which exported graphs do not have"
        if operator == "Constant" and outputs:
            constants[outputs[0]] = max(sizes, default=0)
        for place in _OF_A_SHAPE.get(operator, ()):
            size = constants.get(inputs[place], 0) if place < len(inputs) else 0
            if size > _MAX_SHAPE:
                yield f"makes a tensor of {size:,} values" if size < _NO_SHAPE else f"has a {operator} of other numbers"

    def read_attribute(self, attribute: memoryview) -> Iterator[tuple[str, int]]:
        """What is wrong with an attribute ("" if nothing is), and the size of the shape that it could be."""
        ints: list[int] = []
        for number, value in self.fields(attribute, _ATTRIBUTE):
            if number == 5:
                _, problem, size = self.read_tensor(value)
                yield (f"with a tensor that {problem}" if problem else ""), size
            elif number in (3, 8):
                ints += _ints(value)
            elif number in (2, 7):
                yield "", _NO_SHAPE
        if ints:
            yield "", _size(ints)

    def read_tensor(self, tensor: memoryview) -> tuple[str, str, int]:
        """A tensor's name; what is wrong with it, or ""; and the size of the shape that it could be."""
        dimensions: list[int] = []
        listed: list[int] = []
        name, problem, kind, raw = "", "", 0, memoryview(b"")
        for number, value in self.fields(tensor, _TENSOR):
            if number == 1:
                dimensions += _ints(value)
            elif number == 2:
                kind = value
            elif number == 7:
                listed += _ints(value)
            elif number == 8:
                name = _text(value)
            elif number == 9:
                raw = value
            elif number == 14 and value:
                problem = "lies in another file"
        if len(dimensions) > _MAX_DIMENSIONS or any(not 0 <= size <= _MAX_DIMENSION for size in dimensions):
            return name, problem or "has dimensions that no tensor has", _NO_SHAPE
        values = math.prod(dimensions)
        if kind not in _TYPE_BYTES:
            problem = problem or f"has type {kind!r:.20}"
        elif values * _TYPE_BYTES[kind] > 8 * len(tensor):  # a list of small numbers takes a byte for each
            problem = problem or f"says that it has {values:,} values, more than there are"
        if kind != _INT64 or len(raw) % 8 or len(raw) > 8 * _MAX_DIMENSIONS:
            return name, problem, _NO_SHAPE
        return name, problem, _size([*listed, *raw.cast("q")])

    def fields(self, content: memoryview, kind: _Message) -> Iterator[tuple[int, Any]]:
        """Number and value of each field of a message: an int, or the bytes of a text, message or list.

        Raises:
            ValueError: the message could be read in another way, or has a field that exports do not write.
        """
        place, seen = 0, set()
        while place < len(content):
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"more than {_MAX_FIELDS:,} fields")
            key, place = _varint(content, place)
            number, form = key >> 3, key & 7
            if number in seen or number not in kind.once | kind.repeated:
                raise ValueError(f"the {kind.name} has field {number}, or has it twice")
            if number in kind.once:
                seen.add(number)
            plain = {0} if number in kind.numbers else {1, 5} if number in kind.floats else {2}
            allowed = plain | ({0, 2} if number in kind.lists else set()) | ({2} if number in kind.repeated else set())
            if form not in allowed:
                raise ValueError(f"field {number} of the {kind.name} is of form {form}")
            if form == 0:
                value, place = _varint(content, place)
                yield number, value
                continue
            if form == 2:
                length, place = _varint(content, place)
            else:
                length = 8 if form == 1 else 4
            if length > len(content) - place:
                raise ValueError(f"a field of {length:,} bytes, more than there are")
            yield number, content[place : place + length]
            place += length


def _size(shape: list[int]) -> int:
    """The number of values of a shape."""
    if len(shape) > _MAX_DIMENSIONS:
        return _NO_SHAPE
    return min(math.prod(max(abs(value), 1) for value in shape), _NO_SHAPE - 1)


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """A number below 2**64, as int64 if it is negative, in as few bytes as it needs; and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            break
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            if (shift and not byte) or value >= 2**64:
                raise ValueError("a number in a form that no writer chooses")
            return value - 2**64 if value >= 2**63 else value, place
    raise ValueError("a number without an end")


def _text(value: memoryview) -> str:
    if len(value) > _MAX_NAME:
        raise ValueError(f"a name of {len(value):,} bytes")
    return bytes(value).decode("utf-8", "replace")


def _ints(value: Any) -> list[int]:
    """A list of numbers, of which at most so many are read as a tensor may have dimensions, and one more."""
    if isinstance(value, int):
        return [value]
    found: list[int] = []
    place = 0
    while place < len(value) and len(found) <= _MAX_DIMENSIONS:
        number, place = _varint(value, place)
        found.append(number)
    return found
