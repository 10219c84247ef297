"""Options about the machine that a command computes on; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from xnli_gpt.choices import AUTO, DTYPES, EVALUATION_TOKENS
from xnli_gpt.options import option


@dataclass(frozen=True)
class DeviceOptions:
    """Where is computed and how exactly: of every command that computes."""

    device: str | None = option(None, "cpu, cuda or cuda:N; default cuda where there is one")
    dtype: str = option(
        AUTO,
        "auto: the fastest that the machine computes natively; a resumed run keeps its own",
        choices=(AUTO, *DTYPES),
    )


@dataclass(frozen=True)
class InferenceOptions(DeviceOptions):
    """Of a command that only uses a fine-tuned model."""

    max_tokens_per_batch: int = option(
        EVALUATION_TOKENS, "of one forward pass, changes no result", low=1
    )
