"""The families beside small and medium: a table each, and what tells variants apart."""

from xnli_gpt.checkpoints.families.gpt2 import GPT2_FAMILIES
from xnli_gpt.checkpoints.families.llama import LLAMA_FAMILIES
from xnli_gpt.checkpoints.families.nanochat import NANOCHAT_FAMILIES
from xnli_gpt.checkpoints.families.spec import Clues, Family
from xnli_gpt.checkpoints.families.speedrun import SPEEDRUN_FAMILIES

RELATIVES: dict[str, Family] = {
    family.name: family
    for family in (*SPEEDRUN_FAMILIES, *NANOCHAT_FAMILIES, *GPT2_FAMILIES, *LLAMA_FAMILIES)
}

__all__ = ["RELATIVES", "Clues", "Family"]
