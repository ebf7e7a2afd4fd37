"""Writes an ONNX graph operator by operator, without the ``onnx`` package, which a runtime does not need."""

from typing import Any

import numpy as np

OPSET = 20
_IR_VERSION = 9
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7}


class GraphWriter:
    """A graph of operators, in the order in which they are computed.

    Values are known by names. Field numbers are those of onnx.proto
    (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
    """

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._inputs: list[bytes] = []

    def input(self, name: str, shape: list[int | None]) -> str:
        """A float32 input; None for a dimension of any size."""
        self._inputs.append(_value(name, shape))
        return name

    def constant(self, value: Any) -> str:
        """A constant of its array's type."""
        array, name = np.ascontiguousarray(value), f"constant_{len(self._constants)}"
        shape = b"".join(_write_number(1, size) for size in np.shape(value))
        kind = _write_number(2, _TYPES[array.dtype.name])
        self._constants.append(shape + kind + _write_bytes(8, name.encode()) + _write_bytes(9, array.tobytes()))
        return name

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: int) -> Any:
        """An operator: the name of its result, or a list of them if it has several ``outputs``."""
        names = [f"{operator}_{len(self._nodes)}_{index}" for index in range(outputs)]
        node = b"".join(_write_bytes(1, name.encode()) for name in inputs)
        node += b"".join(_write_bytes(2, name.encode()) for name in names) + _write_bytes(4, operator.encode())
        for name, value in attributes.items():
            node += _write_bytes(5, _write_bytes(1, name.encode()) + _write_number(3, value) + _write_number(20, 2))
        self._nodes.append(node)
        return names if outputs > 1 else names[0]

    def finish(self, output: str, shape: list[int | None]) -> bytes:
        """The file, with one float32 output."""
        graph = b"".join(_write_bytes(1, node) for node in self._nodes) + _write_bytes(2, b"graph")
        graph += b"".join(_write_bytes(5, constant) for constant in self._constants)
        graph += b"".join(_write_bytes(11, given) for given in self._inputs) + _write_bytes(12, _value(output, shape))
        return (
            _write_number(1, _IR_VERSION)
            + _write_bytes(7, graph)
            + _write_bytes(8, _write_bytes(1, b"") + _write_number(2, OPSET))
        )


def _value(name: str, shape: list[int | None]) -> bytes:
    sizes = b"".join(_write_bytes(1, b"" if size is None else _write_number(1, size)) for size in shape)
    tensor = _write_number(1, _TYPES["float32"]) + _write_bytes(2, sizes)
    return _write_bytes(1, name.encode()) + _write_bytes(2, _write_bytes(1, tensor))


def _write_number(field: int, value: int) -> bytes:
    return _write_varint(field << 3) + _write_varint(value % 2**64)


def _write_bytes(field: int, content: bytes) -> bytes:
    return _write_varint(field << 3 | 2) + _write_varint(len(content)) + content


def _write_varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
