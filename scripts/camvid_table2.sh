#!/usr/bin/env bash
# Table 2 of the paper in miniature on CamVid, from its folder (images/ and labels/) to the table.
#
#   scripts/camvid_table2.sh /path/to/camvid [words of scripts/table2.py ...]
#
# A quarter of the training images, drawn at random, keeps its fine labels, the others get coarse
# ones made from theirs. Three trainings of about 45 minutes of one core for each seed: with the
# coarse labels, with automatic ones at threshold 0.9, and with such ones of keep_share 0.7; and a
# head of attention of five minutes for each, scored on val. What is done is kept, so that it can be
# stopped and started again. RUNS=DIR and RESULTS=DIR say where things go.
set -euo pipefail

case "${1:-}" in
  "" | -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
esac
if [ ! -d "$1/images/train" ]; then
  echo "error: $1 has no images/train; name CamVid's folder" >&2
  exit 2
fi
camvid=$(cd "$1" && pwd)
shift

# Folders of the caller's, by default those of the checkout.
checkout=$(cd "$(dirname "$0")/.." && pwd)
runs=${RUNS:-$checkout/runs/camvid_table2}
results=${RESULTS:-$checkout/results/camvid_table2}
mkdir -p "$runs" "$results/labels"
runs=$(cd "$runs" && pwd)
results=$(cd "$results" && pwd)
cd "$checkout"

data=$runs/data
python scripts/make_coarse_data.py configs/camvid/efficientnet_hierarchical.yaml "$data" \
  --confused Sidewalk=Road Fence=Building Bicyclist=Pedestrian data.root="$camvid"
python scripts/label_errors.py "$data" --json "$results/labels/coarse.json"

for kept in "" 0.7; do
  python scripts/table2.py --config configs/camvid/table2.yaml --split val --runs "$runs" \
    --output "$results/threshold0.9${kept:+-keep$kept}" ${kept:+--keep-share "$kept"} \
    --attach-epochs 8 \
    data.root="$data" "$@"
done

# What the teachers wrote, against what is true.
for labels in "$runs"/labels-*; do
  python scripts/label_errors.py "$data" --labels "$labels" \
    --json "$results/labels/$(basename "$labels").json"
done
