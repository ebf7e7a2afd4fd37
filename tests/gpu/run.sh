#!/usr/bin/env bash
# Everything that only a GPU can show, most valuable first, in under eight minutes on an H100 of 80 GB, without a network.
#   bash tests/gpu/run.sh OUT [GOEMOTIONS]
# OUT/results.jsonl gets one JSON line per figure as it goes, and OUT/PART.log what each part printed. GOEMOTIONS is the
# folder of the corpus (train.tsv, dev.tsv, test.tsv); without it the starter corpus is trained on.
#   SITE=folder     a folder of packages that the machine lacks (see carry.sh)
#   PYTHON=python3  the interpreter
#   TINY=1          a try on a CPU at tiny size
# The exit code is the number of parts that failed or ran out of time. Results of a real GPU belong into
# tests/gpu/results/.
set -uo pipefail
out=${1:?give a folder for the results: bash tests/gpu/run.sh OUT [GOEMOTIONS]}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
GOEMOTIONS_DIR=
[ -z "${2:-}" ] || GOEMOTIONS_DIR=$(cd "$2" && pwd) || exit 2
cd "$(dirname "$0")/../.." || exit 2
# One GPU: with several in a process, transformers would share each batch among them.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
export GOEMOTIONS_DIR OUT="$out" PYTHONPATH="$PWD:${SITE:+$SITE:}${PYTHONPATH:-}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export GOEMOTIONS_MISTRAL_CACHE=${GOEMOTIONS_MISTRAL_CACHE:-$out/cache}
: >"$out/results.jsonl"
failed=0

part() { # NAME SECONDS
  local limit=$2 started=$SECONDS code=0
  [ -z "${TINY:-}" ] || limit=$((10 * limit)) # a CPU may be busy
  echo "$1: at most $limit s"
  timeout --kill-after=10 "$limit" "${PYTHON:-python3}" -m "tests.gpu.$1" >"$out/$1.log" 2>&1 || code=$?
  [ "$code" -eq 0 ] || { failed=$((failed + 1)); tail -n 5 "$out/$1.log"; }
  echo "{\"part\": \"$1\", \"figure\": \"end\", \"exit_code\": $code, \"seconds\": $((SECONDS - started)), \"limit\": $limit}" >>"$out/results.jsonl"
}

part proofs 60
part shapes 120
part whole_run 200
part unsloth_run 30
part graphs 60
cat "$out/results.jsonl"
exit "$failed"
