"""Options about the pretrained checkpoint and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from xnli_gpt.options import option


@dataclass(frozen=True)
class PretrainedOptions:
    """What a run starts from, and what is checked against it."""

    pretrained_ckpt_path: tuple[str, ...] | None = option(
        None,
        "paths or globs; the lowest _val in the name wins, else the highest step",
        is_path=True,
        must_exist=True,
    )
    tokenizer_name: str | None = option(
        None, "path, or a name in --tokenizer_dir", is_path=True, metavar="NAME"
    )
    tokenizer_dir: str | None = option(None, "folder of tokenizers", is_path=True)
    family: str | None = option(
        None, "of the checkpoint, where nothing in it tells; see docs/families.md"
    )
    end_of_text: str | None = option(
        None,
        "the token before every document of the pretraining, where its files do not tell",
        metavar="TOKEN",
    )
    normalize: str | None = option(
        None, "a Unicode form that texts get before they are tokenised", choices=("NFC", "NFKC")
    )
    n_layer: int | None = option(None, "detected; checked where given", low=1)
    n_head: int | None = option(None, "detected; needed only where the file does not tell", low=1)
    n_embd: int | None = option(None, "detected; checked where given", low=1)
    vocab_size: int | None = option(None, "detected; checked where given", low=1)
    random_init: bool = option(False, "baseline: the checkpoint's network with random weights")
