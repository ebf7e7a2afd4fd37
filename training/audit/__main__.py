"""``python -m training.audit A B`` is ``training/run.py audit A B``."""

from __future__ import annotations

import sys

from training.run import main

if __name__ == "__main__":
    raise SystemExit(main(["audit", *sys.argv[1:]]))
