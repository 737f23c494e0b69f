#!/usr/bin/env bash
# The paper's self-training (section 4): a teacher on fine and coarse labels, its labels for the
# coarse images, a student on fine and automatic labels.
#
#   scripts/self_training.sh [section.key=value ...]
#       Cityscapes, the paper's recipes (configs/cityscapes/hrnet_ocr_{teacher,student}.yaml)
#   scripts/self_training.sh demo [section.key=value ...]
#       the drawn miniature (configs/demo/{teacher,student}.yaml), on a laptop
#
# Further words change the configuration of every stage, e.g. data.root=/data/cityscapes
# optim.accumulate=2. PROCESSES=8 starts each stage under torchrun with 8 processes; RUNS=DIR puts
# everything below DIR (default: runs). Start it again after a kill: finished stages are skipped, a
# training goes on from its last checkpoint, and auto-labelling from the labels it has.
set -euo pipefail
cd "$(dirname "$0")/.."

recipe=cityscapes
case "${1:-}" in
  demo | cityscapes) recipe=$1; shift ;;
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' scripts/self_training.sh; exit 0 ;;
esac
for word in "$@"; do
  case "$word" in
    *.*=*) ;;
    *)
      echo "error: '$word' is neither demo, cityscapes nor section.key=value" >&2
      exit 2
      ;;
  esac
done

runs=${RUNS:-runs}
processes=${PROCESSES:-1}
case "$processes" in
  *[!0-9]* | 0*)
    echo "error: PROCESSES=$processes is not a number of processes" >&2
    exit 2
    ;;
esac

if [ "$recipe" = demo ]; then
  teacher=$runs/demo_teacher
  student=$runs/demo_student
  teacher_config=configs/demo/teacher.yaml
  student_config=configs/demo/student.yaml

  # bf16 is twice as fast where the processor knows it, and many times slower where it does not.
  precision=$(python -c '
import torch
knows_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
print("bf16" if torch.cuda.is_available() or knows_bf16() else "fp32")
')
  set -- "runtime.precision=$precision" "eval.precision=$precision" \
    "autolabel.precision=$precision" "$@"
else
  teacher=$runs/cityscapes_hrnet_ocr_teacher
  student=$runs/cityscapes_hrnet_ocr_student
  teacher_config=configs/cityscapes/hrnet_ocr_teacher.yaml
  student_config=configs/cityscapes/hrnet_ocr_student.yaml
fi

step() { printf '\n== %s\n' "$*"; }

# run PROGRAM ARGUMENT...: one process, or several under torchrun.
run() {
  if [ "$processes" -gt 1 ]; then
    torchrun --standalone --nproc-per-node "$processes" "$@"
  else
    python "$@"
  fi
}

# stage FOLDER NAME COMMAND...: run the command unless FOLDER/.done-NAME says that it finished.
stage() {
  local mark=$1/.done-$2
  if [ -f "$mark" ]; then
    echo "$2: done already; remove $mark to do it again"
    return
  fi
  mkdir -p "$1"
  "${@:3}"
  touch "$mark"
}

if [ "$recipe" = demo ] && [[ " $* " != *" data.root="* ]]; then
  step "drawing a miniature Cityscapes into data/demo_large"
  python scripts/make_demo_data.py data/demo_large
fi

step "teacher: fine and coarse labels ($teacher)"
stage "$teacher" train run train.py "$teacher_config" --resume "experiment.output=$teacher" "$@"

step "auto-labelling the coarse images ($teacher/autolabels)"
stage "$teacher" autolabel run autolabel.py --checkpoint "$teacher/checkpoints/best.pt" \
  --split train_extra --output "$teacher/autolabels" "$@"
python autolabel.py --verify --output "$teacher/autolabels"

step "student: fine and automatic labels ($student)"
stage "$student" train run train.py "$student_config" --resume "experiment.output=$student" \
  "data.extra.root=$teacher/autolabels" "$@"

step "both on the validation images"
for folder in "$teacher" "$student"; do
  stage "$folder" eval run eval.py --checkpoint "$folder/checkpoints/best.pt" \
    --output "$folder/eval" "$@"
done
python scripts/compare_runs.py "$teacher" "$student"

printf '\nauto-labels: %s\nteacher:     %s\nstudent:     %s\n' "$teacher/autolabels/report.html" \
  "$teacher/eval/report.html" "$student/eval/report.html"
