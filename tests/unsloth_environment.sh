#!/usr/bin/env bash
# An environment for tests/test_unsloth.py: Unsloth wants older versions of what the rest of this repository uses.
#   tests/unsloth_environment.sh FOLDER && UNSLOTH_PYTHON=FOLDER/bin/python python -m pytest tests/test_unsloth.py
set -euo pipefail
python3 -m venv "$1"
"$1/bin/pip" install --quiet "torch==2.13.0" "torchvision" "transformers<=5.17" "datasets<5" "trl<=1.15" "peft>=0.21" \
  "accelerate>=1.15" "bitsandbytes>=0.50" sentencepiece protobuf tyro psutil hf_transfer packaging numpy tqdm wheel msgspec \
  cut_cross_entropy diffusers pillow regex nest-asyncio
"$1/bin/pip" install --quiet --no-deps unsloth unsloth_zoo
