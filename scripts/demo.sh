#!/usr/bin/env bash
# The main job end to end on an embedded mini data set: draw it, train, evaluate at several lists of
# scales, auto-label, report. `make demo` calls it with the virtual environment's python first on
# the PATH. Everything lands in data/demo and runs/demo.
#
#   scripts/demo.sh        takes no arguments
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$#" -gt 0 ]; then
  case "$1" in
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' scripts/demo.sh; exit 0 ;;
  esac
  echo "error: '$1': scripts/demo.sh takes no arguments" >&2
  exit 2
fi
run=runs/demo
start=$SECONDS

step() { printf '\n== %s\n' "$*"; }

# bf16 is twice as fast where the processor knows it, and many times slower where it does not.
precision=$(python -c '
import torch
knows_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
print("bf16" if torch.cuda.is_available() or knows_bf16() else "fp32")
')

step "drawing a miniature Cityscapes into data/demo"
python scripts/make_demo_data.py data/demo --size 192 384

step "training a hierarchical multi-scale network ($run, $precision)"
if [ -f "$run/.trained" ]; then
  echo "already trained; remove $run to train again"
else
  python train.py configs/demo.yaml --resume "runtime.precision=$precision" \
    "eval.precision=$precision" "autolabel.precision=$precision"
  touch "$run/.trained"
fi

step "evaluating it at several lists of scales"
python eval.py --checkpoint "$run/checkpoints/best.pt" --scales 0.5 1 2 \
  --compare 1 0.5,1 0.25,0.5,1,2 --output "$run/eval"

step "how far colour alone goes"
python scripts/colour_classifier.py data/demo --metrics "$run/eval/metrics.json"

step "auto-labelling the coarsely labelled images"
python autolabel.py --checkpoint "$run/checkpoints/best.pt" --split train_extra --scales 0.5 1 2 \
  --output "$run/autolabels"

printf '\n%d seconds after set-up\n' $((SECONDS - start))
printf 'report:      %s\nauto-labels: %s\n' \
  "$PWD/$run/eval/report.html" "$PWD/$run/autolabels/report.html"
