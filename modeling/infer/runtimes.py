"""What computes a graph: ONNX Runtime or OpenVINO."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from modeling.infer.cores import usable_cores
from modeling.infer.errors import PackageError, import_optional

Arrays = dict[str, np.ndarray]
_FIRST_ARRAY = threading.Lock()


@dataclass(frozen=True)
class Session:
    """A graph that is ready to be computed.

    Attributes:
        inputs: names of what it reads.
        outputs: the shape of each result, by name; what is not a number may be any.
        run: inputs by name → logits, float32 [N, L]; several threads may call it at once.
        about: the runtime and its precision.
        precision: ``float32`` or ``bfloat16``, of what the graph does not quantize.
    """

    inputs: set[str]
    outputs: dict[str, list[Any]]
    run: Callable[[Arrays], np.ndarray]
    about: str
    precision: str = "float32"


def disable_telemetry() -> None:
    """Before ONNX Runtime is imported: from 1.29 on it tells its maker of sessions and models, unless this is set."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def onnx_session(name: str, content: bytes, precision: str | None) -> Session:
    """A session of ONNX Runtime.

    Args:
        name: the file, for messages.
        content: what is in it.
        precision: None, the graph's own.

    Raises:
        PackageError: it cannot be loaded.
        ImportError: ONNX Runtime is missing; the message says what to install.
    """
    disable_telemetry()
    runtime = import_optional("onnxruntime", "onnxruntime")
    options = runtime.SessionOptions()
    # Threads that share a product wait for each other; each of several threads reads texts of its own instead.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    with _as_package_error(name):
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # The session keeps the file, to load it for other devices: as many bytes as its weights, which nothing reads.
    session._model_bytes = b""
    return Session(
        inputs={given.name for given in session.get_inputs()},
        outputs={given.name: given.shape for given in session.get_outputs()},
        run=lambda batch: np.asarray(session.run(None, batch)[0], dtype=np.float32),
        about="ONNX Runtime",
    )


def openvino_session(name: str, content: bytes, precision: str | None) -> Session:
    """A session of OpenVINO.

    Args:
        name: the file, for messages.
        content: what is in it.
        precision: ``float32`` or ``bfloat16``; None for bfloat16 on a CPU that multiplies in it, else float32.

    Raises:
        PackageError: it cannot be loaded.
        ImportError: OpenVINO is missing; the message says what to install.
    """
    openvino = import_optional("openvino", "openvino")
    with _FIRST_ARRAY:
        # When two threads give OpenVINO a process's first arrays at once, each waits for the other forever.
        openvino.Tensor(np.zeros(1, np.float32))
    core, streams = openvino.Core(), usable_cores()
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    chosen = precision or ("bfloat16" if has_bfloat16 else "float32")
    # One thread for each of several texts, as above; a pinned thread would wait for a core that others use.
    options = {
        "INFERENCE_NUM_THREADS": streams,
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[chosen],
    }
    with _as_package_error(name):
        compiled = core.compile_model(core.read_model(model=content), "CPU", options)
    return Session(
        inputs={given.any_name for given in compiled.inputs},
        outputs={
            given.any_name: [size.get_length() if size.is_static else None for size in given.partial_shape]
            for given in compiled.outputs
        },
        run=in_each_thread(compiled),
        about=f"OpenVINO in {chosen}",
        precision=chosen,
    )


def in_each_thread(compiled: Any) -> Callable[[Arrays], np.ndarray]:
    """Inputs → the first result of a model that OpenVINO compiled, float32; each thread has a request of its own."""
    requests = threading.local()

    def run(batch: Arrays) -> np.ndarray:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        return np.array(requests.own.infer(batch)[0], dtype=np.float32)

    return run


@contextlib.contextmanager
def _as_package_error(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the runtimes have a kind of their own for each cause, and no common one
        raise PackageError(name, f"cannot be loaded: {error!s:.200}", "export the run again") from None


RUNTIMES: dict[str, Callable[[str, bytes, str | None], Session]] = {
    "onnx": onnx_session,
    "openvino": openvino_session,
}
