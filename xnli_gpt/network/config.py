"""What shapes the network: the families of training scripts as facts, and the config of a size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields

SOFTMAX_SCALE = 0.12
RMS_EPS = 2.0**-23
WINDOW_BLOCK = 128
VOCAB_MULTIPLE = 128
NUM_VALUE_EMBEDS = 3


@dataclass(frozen=True)
class FamilyDefaults:
    """What the training scripts of one family have in common; `GPTConfig.of_family` applies it."""

    norm_attention_input: bool
    norm_values: bool
    skips: Callable[[int], list[tuple[int, int, int]]]  # L -> (block, source block, weight index)
    window_pattern: str  # L = long window, S = short, one letter a layer
    windows: tuple[int, int]  # (long, short) at the end of pretraining, in blocks of 128 tokens
    logit_cap: str


def _mirrored_skips(num_layers: int) -> list[tuple[int, int, int]]:
    half = num_layers // 2
    return [(i, num_layers - 1 - i, i - half) for i in range(half, num_layers)]


def _three_fixed_skips(num_layers: int) -> list[tuple[int, int, int]]:
    return [(i, j, j) for i, j in ((9, 6), (10, 4), (11, 2)) if i < num_layers]


FAMILIES: dict[str, FamilyDefaults] = {
    "small": FamilyDefaults(
        norm_attention_input=True,
        norm_values=False,
        skips=_mirrored_skips,
        window_pattern="LSSSLSSLSSSL",
        windows=(14, 7),
        logit_cap="sigmoid",
    ),
    "medium": FamilyDefaults(
        norm_attention_input=False,
        norm_values=True,
        skips=_three_fixed_skips,
        window_pattern="LSSSLSSSSSSLSSSL",
        windows=(27, 13),
        logit_cap="algebraic",
    ),
}


def next_multiple(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class GPTConfig:
    """Everything that shapes the network; plain values, so that it can be saved beside weights.

    A new field needs a default that says what every network was before it: configs that were saved
    without it are read with that.
    """

    family: str
    vocab_size: int  # rows of the embedding tables
    lm_head_rows: int
    num_layers: int
    num_heads: int
    head_dim: int
    model_dim: int
    max_seq_len: int
    norm_attention_input: bool
    norm_values: bool
    skips: tuple[tuple[int, int, int], ...]  # (block, source block, weight index)
    attention_layers: tuple[int, ...]
    value_embed_layers: tuple[tuple[int, int], ...]  # (layer, table)
    long_window_layers: tuple[int, ...]
    windows: tuple[int, int]
    logit_cap: str
    head: str = "mlp"  # of the classifier, a name in `HEADS`
    # What other families of the line do otherwise; the defaults are those of small and medium.
    softmax_scale: float = SOFTMAX_SCALE
    norm: str = "rms"  # of the stream, a name in `NORMS`
    norm_eps: float = RMS_EPS
    norm_embedding: bool = True
    norm_heads: bool = True  # queries and keys
    rotary: str = "half"  # "half" of the frequencies zero, "full", or "none"
    rotary_base: float = 1024.0
    rotary_sign: int = 1  # -1 rotates the other way
    rotary_is_rounded: bool = False  # its tables, to bfloat16, as the script's
    rotates_before_norm: bool = False  # which differs where tables are rounded
    rotary_frequencies: tuple[float, ...] | None = None  # in place of computed ones
    learned_positions: bool = False
    num_kv_heads: int | None = None  # None: as many as `num_heads`
    flat_qkv: bool = False  # the projections of q, k, v are one matrix, not a stack of three
    mlp: str = "relu2"  # a name in `MLPS`
    mlp_dim: int | None = None  # None: 4 · model_dim
    biases: bool = False
    mixes: bool = True  # lambdas of blocks and values, skip weights
    value_of_first_layer: bool = False  # is mixed in, in place of a value embedding
    value_gate: tuple[float, int] | None = None  # (scale, channels that it reads)
    attention_gate: int | None = None  # channels that it reads
    smear: int | None = None  # channels that the gate of the token before reads
    backout: bool = False
    num_embeddings: int = 1  # that blocks mix in; a second one has a table of its own
    final_layer: int | None = None  # whose normed output is mixed with that of the last
    final_smear: bool = False  # adds to what the network gives some of the token before
    tied_head: bool = False
    window_block: int = WINDOW_BLOCK  # tokens that `windows` count by

    @classmethod
    def of_family(
        cls,
        family: str,
        *,
        vocab_size: int,
        num_layers: int,
        num_heads: int,
        model_dim: int,
        max_seq_len: int,
        lm_head_rows: int | None = None,
        attention_layers: tuple[int, ...] | None = None,
    ) -> GPTConfig:
        """Fill in a family's facts (`FAMILIES`) for a size.

        `attention_layers` defaults to the scripts' own: all but block 7.
        Raises ValueError for a size that the family's script could not have trained.
        """
        facts = FAMILIES[family]
        _check_size(family, num_layers, num_heads, model_dim)
        if attention_layers is None:
            attention_layers = tuple(i for i in range(num_layers) if i != 7)
        pattern = facts.window_pattern
        first_and_last = [(i, i) for i in range(NUM_VALUE_EMBEDS)] + [
            (num_layers - NUM_VALUE_EMBEDS + i, i) for i in range(NUM_VALUE_EMBEDS)
        ]
        return cls(
            family=family,
            vocab_size=vocab_size,
            lm_head_rows=lm_head_rows or next_multiple(vocab_size, VOCAB_MULTIPLE),
            num_layers=num_layers,
            num_heads=num_heads,
            head_dim=model_dim // num_heads,
            model_dim=model_dim,
            max_seq_len=max_seq_len,
            norm_attention_input=facts.norm_attention_input,
            norm_values=facts.norm_values,
            skips=tuple(facts.skips(num_layers)),
            attention_layers=attention_layers,
            value_embed_layers=tuple((i, t) for i, t in first_and_last if i in attention_layers),
            long_window_layers=tuple(
                i for i in range(num_layers) if pattern[i % len(pattern)] == "L"
            ),
            windows=facts.windows,
            logit_cap=facts.logit_cap,
        )

    @property
    def tokens_within_windows(self) -> int:
        """Return the longest row for which no window binds."""
        return min(self.windows) * self.window_block

    @property
    def counts_positions(self) -> bool:
        """Return whether more than the distance of two tokens matters: where an example begins."""
        return self.learned_positions or self.rotary_is_rounded or self.reads_token_before

    @property
    def reads_token_before(self) -> bool:
        """Return whether more than attention looks at another token: the one before."""
        return self.smear is not None or self.final_smear

    @property
    def reused_layer(self) -> int | None:
        """Return the layer whose output is mixed into the last one's, if there is one."""
        return self.num_layers // 2 if self.backout else self.final_layer

    @property
    def num_scalars(self) -> int:
        """Return how many values `scalars` has, without a padding."""
        return sum(math.prod(shape) for shape in self.scalar_shapes.values())

    @property
    def scalar_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return what stands in the `scalars` of a script's file, in its order."""
        L = self.num_layers
        shapes: dict[str, tuple[int, ...]] = {
            "skip_weights": (L,),
            "block_lambdas": (L, 1 + self.num_embeddings),
            "value_lambdas": (L, 2),
        }
        if self.final_smear:
            shapes["final_smear"] = (1,)
        if self.final_layer is not None:
            shapes["final_lambdas"] = (2,)
        return shapes

    @property
    def mixing_weights(self) -> tuple[str, ...]:
        """Return the names of what the network reads of them."""
        names = self.scalar_shapes if self.mixes else ()
        return tuple(name for name in names if self.skips or name != "skip_weights")

    @property
    def kv_dim(self) -> int:
        """Return the width of keys and values of all heads."""
        return (self.num_kv_heads or self.num_heads) * self.head_dim

    @property
    def num_value_embeds(self) -> int:
        """Return the number of tables of value embeddings."""
        return 1 + max((table for _, table in self.value_embed_layers), default=-1)

    def to_dict(self) -> dict:
        """Return plain numbers, strings and tuples: what `from_dict` takes back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> GPTConfig:
        """Return the config that `to_dict` wrote, with defaults for fields that it did not have
        yet.

        Raises ValueError for a key that is no field's, and without a field that has no default.
        """
        known = {field.name for field in fields(cls)}
        needed = {
            field.name
            for field in fields(cls)
            if field.default is MISSING and field.default_factory is MISSING
        }
        differing = sorted((set(values) - known) | (needed - set(values)))
        if differing:
            raise ValueError(
                f"not the config of a GPT of ours: keys missing or unknown {differing}"
            )
        return cls(**{key: _as_tuple(value) for key, value in values.items()})


def _as_tuple(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(_as_tuple(item) for item in value)
    return value


def _check_size(family: str, num_layers: int, num_heads: int, model_dim: int) -> None:
    if num_layers < 2 * NUM_VALUE_EMBEDS:
        raise ValueError(
            f"{num_layers} layers: the value embeddings of the first and last "
            f"{NUM_VALUE_EMBEDS} layers need at least {2 * NUM_VALUE_EMBEDS}"
        )
    if family == "small" and num_layers % 2:
        raise ValueError(f"{num_layers} layers: format small has an even number of them")
    if num_heads < 1 or model_dim % num_heads or (model_dim // num_heads) % 4:
        raise ValueError(
            f"{num_heads} heads do not cut a width of {model_dim} into heads of a multiple of 4"
        )
