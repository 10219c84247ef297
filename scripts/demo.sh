#!/usr/bin/env bash
# The main job on built-in data, on a machine with Python and a package index and nothing else:
# pretrain a small checkpoint for about two minutes, fine-tune it, and a random trunk beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh requirements.txt

python -m scripts.make_demo demo
python load_checkpoint_helper.py 'demo/best_state_*.pt' --lm_check demo/validation.bin --lm_row_length 40
python finetune_hindi_xnli.py --config configs/demo.yaml
python finetune_hindi_xnli.py --config configs/demo.yaml --random_init --out_dir out/demo-random
python -m scripts.demo_report out/demo out/demo-random
