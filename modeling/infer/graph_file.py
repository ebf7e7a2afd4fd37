"""The graph of a package, an ONNX file written by strangers: read as data, and refused before a session is made of it.

Only the fields that decide are read. Their numbers are those of onnx.proto
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

import math
from collections.abc import Iterator
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
    *("Abs", "Add", "And", "Cast", "Clip", "Concat", "Constant", "Cos", "CumSum", "DequantizeLinear", "Div"),
    *("DynamicQuantizeLinear", "Einsum", "Equal", "Erf", "Expand", "Flatten", "Gather", "GatherND", "Gelu", "Gemm"),
    *("Greater", "GreaterOrEqual", "Identity", "LayerNormalization", "Less", "LessOrEqual", "MatMul", "MatMulInteger"),
    *("Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "QuantizeLinear", "Range", "Reciprocal", "ReduceMax"),
    *("ReduceMean", "ReduceSum", "Reshape", "RMSNormalization", "RotaryEmbedding", "Shape", "Sigmoid"),
    *("SimplifiedLayerNormalization", "Sin", "SkipSimplifiedLayerNormalization", "Slice", "Softmax", "Split", "Sqrt"),
    *("Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where", "ArgMax", "Trilu", "IsNaN", "Tile"),
}
"""What exported graphs consist of. Control flow is not among them, nor anything that reads files or other code."""
_OF_A_SHAPE = {"Expand": 1, "Tile": 1, "Range": 1}
"""Operators that make a tensor of a size that an input says: the index of that input."""
_TYPE_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""Bytes of a value, by the number of its type."""
_INT64 = 7


def read_graph(folder: Path, name: str) -> bytes:
    """The content of one of a package's graphs.

    Raises:
        PackageError: it is missing, too large, or could lead to other files, other code, endless work or a full memory.
    """
    content = read_bytes(folder, name, MAX_GRAPH_BYTES)
    for problem in graph_problems(content):
        raise PackageError(name, problem, "export the run again")
    return content


def graph_problems(content: bytes) -> Iterator[str]:
    """Why no session may be made of a file."""
    try:
        yield from _model_problems(memoryview(content))
    except ValueError as error:
        yield f"is not an ONNX file: {error}"


def _model_problems(model: memoryview) -> Iterator[str]:
    graphs = 0
    for number, value in _fields(model):
        if number == 7:
            graphs += 1
            yield from _graph_problems(_message(value))
        elif number == 8:
            domain = next((_text(part) for key, part in _fields(_message(value)) if key == 1), "")
            if domain not in _DOMAINS:
                yield f"uses operators of {domain!r:.80}"
        elif number in (20, 25):
            yield "has functions of its own, or is made for training"
    if graphs != 1:
        yield f"has {graphs} graphs, not one"


def _graph_problems(graph: memoryview) -> Iterator[str]:
    nodes: list[memoryview] = []
    constants: dict[str, int] = {}
    for number, value in _fields(graph):
        if number == 1:
            nodes.append(_message(value))
        elif number == 5:
            name, problem, size = _read_tensor(_message(value))
            constants[name] = size
            if problem:
                yield f"has the tensor {name!r:.80}, which {problem}"
        elif number == 15:
            yield "has sparse tensors"
    if len(nodes) > _MAX_NODES:
        yield f"has {len(nodes):,} operators, more than {_MAX_NODES:,}"
        return
    for node in nodes:
        yield from _node_problems(node, constants)


def _node_problems(node: memoryview, constants: dict[str, int]) -> Iterator[str]:
    inputs: list[str] = []
    outputs: list[str] = []
    operator, domain = "", ""
    sizes: list[int] = []
    for number, value in _fields(node):
        if number in (1, 2):
            (inputs if number == 1 else outputs).append(_text(value))
        elif number == 4:
            operator = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            for problem, size in _read_attribute(_message(value)):
                sizes.append(size)
                if problem:
                    yield f"has an operator {operator!r:.80} {problem}"
    if operator not in _OPERATORS or domain not in _DOMAINS:
        yield f"has the operator {operator!r:.80} of {domain!r:.80}, which exported graphs do not have"
    if operator == "Constant" and outputs:
        constants[outputs[0]] = max(sizes, default=0)
    place = _OF_A_SHAPE.get(operator)
    if place is not None and len(inputs) > place and constants.get(inputs[place], 0) > _MAX_SHAPE:
        yield f"makes a tensor of {constants[inputs[place]]:,} values"


def _read_attribute(attribute: memoryview) -> Iterator[tuple[str, int]]:
    """What is wrong with an attribute ("" if nothing is), and the size of the shape that it could be."""
    for number, value in _fields(attribute):
        if number in (6, 11):
            yield "with a graph inside", 0
        elif number in (10, 21, 22, 23):
            yield "with an attribute that exported graphs do not have", 0
        elif number == 5:
            _, problem, size = _read_tensor(_message(value))
            yield (f"with a tensor that {problem}" if problem else ""), size
        elif number == 8:
            yield "", _size(_ints(value))
        elif number == 3:
            yield "", _size([value])


def _read_tensor(tensor: memoryview) -> tuple[str, str, int]:
    """A tensor's name; what is wrong with it, or ""; and the size of the shape that it could be."""
    dimensions: list[int] = []
    name, problem, kind, raw = "", "", 0, memoryview(b"")
    for number, value in _fields(tensor):
        if number == 1:
            dimensions += _ints(value)
        elif number == 2:
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = _message(value)
        elif number == 13 or (number == 14 and value):
            problem = "lies in another file"
        elif number in (6, 3):
            problem = "is a list of texts, or a part of a tensor"
    values = math.prod(dimensions)
    if kind not in _TYPE_BYTES:
        problem = problem or f"has type {kind!r:.20}"
    elif values * _TYPE_BYTES[kind] > 8 * len(tensor):  # a list of small numbers takes a byte for each
        problem = problem or f"says that it has {values:,} values, more than there are"
    shape = list(raw[: 8 * 16].cast("q")) if kind == _INT64 and len(raw) % 8 == 0 and len(raw) <= 128 else []
    return name, problem, _size(shape)


def _size(shape: list[int]) -> int:
    return math.prod(max(abs(value), 1) for value in shape if abs(value) < 2**62)  # slices end at the largest number


# Protocol buffers


def _fields(content: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message: an int, or the bytes of a string, message or packed list."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(content, place)
            yield key >> 3, value
            continue
        if kind == 2:
            length, place = _varint(content, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if length > len(content) - place:
            raise ValueError(f"a field of {length:,} bytes, more than there are")
        yield key >> 3, content[place : place + length]
        place += length


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            break
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, place
    raise ValueError("a number without an end")


def _message(value: Any) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("a number where a message should be")
    return value


def _text(value: Any) -> str:
    return bytes(_message(value)[:200]).decode("utf-8", "replace")


def _ints(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value]
    found, place = [], 0
    while place < len(value):
        number, place = _varint(value, place)
        found.append(number)
    return found
