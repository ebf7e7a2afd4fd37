"""Unsloth's real path, ``loader: unsloth`` on the GPU, by ``tests/test_unsloth.py``; left out where it is not installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from tests.gpu import emit


def main() -> None:
    if importlib.util.find_spec("unsloth") is None:
        emit("unsloth_run", "left_out", why="unsloth is not installed")
        return
    command = [sys.executable, "-m", "pytest", "tests/test_unsloth.py", "-n", "0", "-p", "no:cacheprovider"]
    code = subprocess.run(command, env=os.environ | {"UNSLOTH_PYTHON": sys.executable}).returncode
    emit("unsloth_run", "tests", passed=code == 0)
    sys.exit(code)


if __name__ == "__main__":
    main()
