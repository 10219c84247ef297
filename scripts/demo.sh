#!/usr/bin/env bash
# The main job on built-in data, on a machine with Python and a package index and nothing else:
# fine-tune the small checkpoint of demo_checkpoint/, and a random trunk beside it.
#   bash scripts/demo.sh [folder of the results]
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-out/demo}
source scripts/venv.sh requirements.txt

SECONDS=0
begin() { printf '\n%s (about %s on two cores)\n' "$1" "$2"; }

begin "1 of 4: what is in the pretrained checkpoint, and whether its loss is the recorded one" "10 s"
python load_checkpoint_helper.py 'demo_checkpoint/best_state_*.pt' \
  --lm_check demo_checkpoint/validation.bin --lm_row_length 40
begin "2 of 4: fine-tuning the pretrained trunk on 2,560 labelled pairs" "40 s"
python finetune_hindi_xnli.py --config configs/demo.yaml --out_dir "$OUT"
begin "3 of 4: the same with a random trunk, to see what pretraining is worth" "40 s"
python finetune_hindi_xnli.py --config configs/demo.yaml --random_init --out_dir "$OUT-random"
begin "4 of 4: pairs of the test split with the answers of the fine-tuned pretrained trunk" "10 s"
python -m scripts.demo_report "$OUT" "$OUT-random"
printf 'the demo took %d min %d s\n' $((SECONDS / 60)) $((SECONDS % 60))
