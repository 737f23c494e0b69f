#!/usr/bin/env bash
# The main job end to end on an embedded mini data set: draw it, train, evaluate at several scale lists, auto-label, report.
# Called by `make demo` with the virtual environment's python first on the PATH. Everything lands in data/demo and runs/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=${SEED:-0}
run=runs/demo

step() { printf '\n== %s\n' "$*"; }

if [ ! -f data/demo/.complete ]; then
  step "drawing a miniature Cityscapes into data/demo"
  python scripts/make_demo_data.py data/demo --seed "$seed"
  touch data/demo/.complete
fi

step "training a hierarchical multi-scale network ($run)"
if [ -f "$run/.trained" ]; then
  echo "already trained; remove $run to train again"
else
  python train.py configs/demo.yaml --resume
  touch "$run/.trained"
fi

step "evaluating it at several lists of scales"
python eval.py --checkpoint "$run/checkpoints/best.pt" --scales 0.5 1 2 --compare 1 0.5,1 0.25,0.5,1,2 --output "$run/eval"

step "how far colour alone goes"
python scripts/colour_classifier.py data/demo --metrics "$run/eval/metrics.json"

step "auto-labelling the coarsely labelled images"
python autolabel.py --checkpoint "$run/checkpoints/best.pt" --split train_extra --scales 0.5 1 2 --output "$run/autolabels"

printf '\nreport:      %s\nauto-labels: %s\n' "$PWD/$run/eval/report.html" "$PWD/$run/autolabels/manifest.json"
