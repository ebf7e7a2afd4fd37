"""The machine, and the tests that need a CUDA GPU: NF4, gradients, one token, fused layers, decisions in bfloat16."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import xml.etree.ElementTree as ET

import torch

from tests.gpu import OUT, emit
from tests.gpu.clock import DEVICE, matrix_rate

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "onnxruntime", "unsloth")


def main() -> None:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    emit("proofs", "machine", python=platform.python_version(), **versions, **describe_device())
    emit("proofs", "matrix_rate", teraflops=round(matrix_rate() / 1e12, 3))
    report = OUT / "proofs.xml"
    files = ["tests/test_loading.py", "tests/test_one_token.py"]
    tests = [*files, "-k", "cuda", "-n", "0", f"--junitxml={report}", "-p", "no:cacheprovider"]
    report.unlink(missing_ok=True)
    code = subprocess.run([sys.executable, "-m", "pytest", *tests]).returncode
    if not report.is_file():
        sys.exit(f"pytest ended with exit code {code} before it wrote a report")
    for case in ET.parse(report).getroot().iter("testcase"):
        problem = next(iter(case), None)
        emit("proofs", "test", name=case.get("name"), result="passed" if problem is None else problem.tag)
    sys.exit(code)


def describe_device() -> dict[str, object]:
    """Name, memory in GiB and compute capability of the GPU, if there is one."""
    if not torch.cuda.is_available():
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(DEVICE)
    memory = round(torch.cuda.mem_get_info()[1] / 2**30, 1)
    return {
        "device": properties.name,
        "gib": memory,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }


if __name__ == "__main__":
    main()
