"""The GPT of the modded-nanogpt training scripts, for pretraining's one row and for any batch.

How it departs from a textbook GPT:

- RMS normalisation without gain, eps 2^-23 in every dtype; no bias anywhere.
- The embedding is normalised, and mixed back into the stream before every block (`lambdas`).
- U-net skips: later blocks add the weighted output of earlier ones (`skip_weights`).
- Three extra embedding tables are mixed into the values of the first and last three layers.
- Queries and keys are normalised per head; half of the rotary frequencies are zero; the softmax
  scale is 0.12 whatever the head size.
- The MLP is relu², and one block (the eighth) has no attention.
- Attention reaches back a number of 128-token blocks, many in "long" layers, half in "short" ones.
- The language-model head has rows of its own and its logits are capped smoothly.

The families differ in facts (where the norms stand, which skips, which cap), not in code: see
`FAMILIES` in `xnli_gpt/network/config.py`. Source: `train_gpt_small.py` and `train_gpt_medium.py`
of modded-nanogpt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

from xnli_gpt import choices
from xnli_gpt.devices import keep_compiled_code_apart
from xnli_gpt.network.config import (
    NUM_VALUE_EMBEDS,
    SCALARS_PER_LAYER,
    VOCAB_MULTIPLE,
    WINDOW_BLOCK,
    GPTConfig,
    initial_scalars,
    next_multiple,
)

# These two modules of torch import its compiler, for a second: they are imported where they are
# used, and before anything is compiled.
if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

RMS_EPS = 2.0**-23
SOFTMAX_SCALE = 0.12

AttentionFn = Callable[[Tensor, Tensor, Tensor, int], Tensor]
RotaryTables = tuple[Tensor, Tensor]


def _sigmoid_cap(logits: Tensor, model_dim: int) -> Tensor:
    return 30 * torch.sigmoid(logits / (7.5 * math.sqrt(model_dim)))


def _algebraic_cap(logits: Tensor, model_dim: int) -> Tensor:
    return 15 * logits * torch.rsqrt(logits.square() + 225)


LOGIT_CAPS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sigmoid": _sigmoid_cap,
    "algebraic": _algebraic_cap,
}


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x²) + 2^-23) over the last dimension, without gain."""
    return F.rms_norm(x, (x.size(-1),), eps=RMS_EPS)


class Rotary(nn.Module):
    """Rotary position embedding with half of its frequencies zero, computed in float32."""

    def __init__(self, head_dim: int, max_seq_len: int):
        super().__init__()
        # An explicit device keeps the tables real when the model is built on the meta device.
        frequencies = (1 / 1024) ** torch.linspace(
            0, 1, steps=head_dim // 4, dtype=torch.float32, device="cpu"
        )
        frequencies = torch.cat([frequencies, frequencies.new_zeros(head_dim // 4)])
        positions = torch.arange(max_seq_len, dtype=torch.float32, device="cpu")
        theta = torch.outer(positions, frequencies)  # [max_seq_len, head_dim / 2]
        self.register_buffer("cos", theta.cos(), persistent=False)
        self.register_buffer("sin", theta.sin(), persistent=False)

    def forward(self, positions: Tensor) -> RotaryTables:
        """positions [T], counted from the beginning of a row -> cos, sin [T, 1, d/2], float32."""
        return self.cos[positions, None], self.sin[positions, None]


def rotate(x: Tensor, tables: RotaryTables) -> Tensor:
    """x [B, T, H, d] -> the same shape and dtype, rotated by position."""
    cos, sin = tables  # [T, 1, d/2] each
    x1, x2 = x.float().chunk(2, dim=-1)  # [B, T, H, d/2] each
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).type_as(x)


def _init_as_the_scripts_do(weight: Tensor) -> None:
    """Uniform of standard deviation 0.5 / sqrt(inputs); projections back are zero on top of it."""
    bound = math.sqrt(3) * 0.5 * weight.size(-1) ** -0.5
    nn.init.uniform_(weight, -bound, bound)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in] · weightᵀ [in, out], in the dtype of x."""
    return F.linear(x, weight.type_as(x))


class TokenEmbedding(nn.Embedding):
    """torch's, which on the meta device draws no values: its normal distribution there would
    import torch's compiler, for a second."""

    def reset_parameters(self) -> None:
        """Fill the weight with random values where it has values."""
        if not self.weight.is_meta:
            super().reset_parameters()


class CastedLinear(nn.Linear):
    """A linear layer without bias that computes in its input's dtype."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        _init_as_the_scripts_do(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class TrainingScriptAttention(nn.Module):
    """Self-attention with the parameter names of `train_gpt_small.py`, up to and after the one
    operation that looks across tokens."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        inner_dim = config.num_heads * config.head_dim
        self.head_dim = config.head_dim
        self.norm_input = config.norm_attention_input
        self.norm_values = config.norm_values
        self.qkv_w = nn.Parameter(torch.empty(3, inner_dim, config.model_dim))
        self.c_proj = CastedLinear(inner_dim, config.model_dim)
        _init_as_the_scripts_do(self.qkv_w)
        nn.init.zeros_(self.c_proj.weight)

    def forward(
        self,
        x: Tensor,
        value_embedding: Tensor | None,
        sa_lambdas: Tensor,
        rotary: RotaryTables,
        pooled: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D], value_embedding [B, T, D] or None, sa_lambdas [2] -> q, k, v [B, T, H, d].

        With `pooled` [P] only these places ask: q [B, P, H, d].
        """
        if self.norm_input:
            x = rms_norm(x)
        if pooled is None:
            q, k, v = self._heads(x, self.qkv_w)
            rotary_of_q = rotary
        else:
            (q,) = self._heads(x[:, pooled], self.qkv_w[:1])  # [B, P, H, d]
            k, v = self._heads(x, self.qkv_w[1:])
            rotary_of_q = (rotary[0][pooled], rotary[1][pooled])
        q, k = rotate(rms_norm(q), rotary_of_q), rotate(rms_norm(k), rotary)
        if self.norm_values:
            v = rms_norm(v)
        v = sa_lambdas[0] * v
        if value_embedding is not None:
            v = v + sa_lambdas[1] * value_embedding.view_as(v)
        return q, k, v.type_as(q)

    def output(self, y: Tensor) -> Tensor:
        """The heads' answers [B, T, H, d] -> [B, T, D]."""
        return self.c_proj(y.flatten(start_dim=2))

    def _heads(self, x: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """x [B, T, D] through `weights` [n, H·d, D] -> n tensors [B, T, H, d]."""
        projected = linear(x, weights.flatten(end_dim=1))  # [B, T, n·H·d]
        return projected.unflatten(2, (len(weights), -1, self.head_dim)).unbind(2)


class TrainingScriptMLP(nn.Module):
    """W_proj · relu(W_fc · x)²."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = CastedLinear(config.model_dim, 4 * config.model_dim)
        self.c_proj = CastedLinear(4 * config.model_dim, config.model_dim)
        nn.init.zeros_(self.c_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())  # [B, T, D]


class TrainingScriptBlock(nn.Module):
    """Mix with the embedding, attend (where the block has attention), then the MLP.

    `attend(q, k, v, layer)` is given from outside: it alone looks across tokens. What stands
    before and after it is apart, so that it can be compiled without it.
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        has_attention = layer in config.attention_layers
        self.attn = TrainingScriptAttention(config) if has_attention else None
        self.mlp = TrainingScriptMLP(config)

    def forward(self, attend: AttentionFn, *inputs: Tensor | RotaryTables | None) -> Tensor:
        """-> [B, T, D], or [B, P, D] with `pooled`; `inputs` are those of `before_attention`."""
        stream, heads = self.before_attention(*inputs)
        y = attend(*heads, self.layer) if heads else None
        return self.after_attention(stream, y)

    def before_attention(
        self,
        x: Tensor,
        x0: Tensor,
        value_embedding: Tensor | None,
        lambdas: Tensor,
        sa_lambdas: Tensor,
        rotary: RotaryTables,
        pooled: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """The mixed stream [B, T, D], and q, k, v [B, T, H, d] where there is attention.

        x, x0 [B, T, D], lambdas and sa_lambdas [2]. With `pooled` [P] the output is computed at
        these places alone: the stream is [B, P, D], and q has P places.
        """
        x = lambdas[0] * x + lambdas[1] * x0
        heads = (
            None if self.attn is None else self.attn(x, value_embedding, sa_lambdas, rotary, pooled)
        )
        return (x if pooled is None else x[:, pooled]), heads

    def after_attention(self, stream: Tensor, y: Tensor | None) -> Tensor:
        """stream [B, T, D] and the heads' answers [B, T, H, d] -> [B, T, D]."""
        if y is not None:
            stream = stream + self.attn.output(y)
        return stream + self.mlp(rms_norm(stream))


class GPTTrunk(nn.Module):
    """What `GPTFlexAttention` and `GPTBatched` share: parameters, blocks, the walk through them."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.embed = TokenEmbedding(config.vocab_size, config.model_dim)
        self.value_embeds = nn.ModuleList(
            TokenEmbedding(config.vocab_size, config.model_dim) for _ in range(NUM_VALUE_EMBEDS)
        )
        self.blocks = nn.ModuleList(
            TrainingScriptBlock(config, layer) for layer in range(config.num_layers)
        )
        self.scalars = nn.Parameter(initial_scalars(config.num_layers))
        self.rotary = Rotary(config.head_dim, config.max_seq_len)
        self.gradient_checkpointing = False

    def forward_features(
        self,
        input_ids: Tensor,
        docs: Tensor | None = None,
        windows: tuple[int, int] | None = None,
    ) -> Tensor:
        """Final normalised hidden states.

        `input_ids` [B, T], or [T] for one row. On one row, `docs` [T] numbers the document of
        every token: attention stays inside a document. `windows` (long, short) counts blocks of
        128 tokens; by default those of the end of pretraining. -> [B, T, D], or [T, D] for [T].
        """
        if input_ids.dim() == 1:
            return self.forward_features(input_ids[None], docs, windows)[0]
        self._check_row(input_ids, docs)
        attend = self._attention(input_ids.size(1), docs, windows or self.config.windows)
        positions = torch.arange(input_ids.size(1), device=input_ids.device)
        return self._hidden_states(input_ids, positions, attend)

    def lm_logits(self, features: Tensor) -> Tensor:
        """Capped language-model logits of `features` [..., D] -> [..., head rows], float32."""
        logits = F.linear(features, self._lm_head_weight().type_as(features)).float()
        return LOGIT_CAPS[self.config.logit_cap](logits, self.config.model_dim)

    def lm_loss(
        self,
        input_ids: Tensor,
        targets: Tensor,
        docs: Tensor | None = None,
        windows: tuple[int, int] | None = None,
    ) -> Tensor:
        """Mean next-token cross-entropy in nats; targets shaped as `input_ids`, -100 left out."""
        logits = self.lm_logits(self.forward_features(input_ids, docs, windows))
        return F.cross_entropy(logits.flatten(end_dim=-2), targets.flatten().long())

    def _attention(
        self, num_tokens: int, docs: Tensor | None, windows: tuple[int, int]
    ) -> AttentionFn:
        raise NotImplementedError

    def _lm_head_weight(self) -> Tensor:
        raise NotImplementedError

    def _check_row(self, input_ids: Tensor, docs: Tensor | None) -> None:
        B, T = input_ids.shape
        if T > self.config.max_seq_len:
            raise ValueError(
                f"a row of {T} tokens, but the model was built for max_seq_len "
                f"{self.config.max_seq_len}: cut the row or load with a larger max_seq_len"
            )
        if docs is not None and (B != 1 or docs.shape != (T,)):
            raise ValueError(
                f"docs {tuple(docs.shape)} with ids {tuple(input_ids.shape)}: documents are for "
                "one packed row, docs [T] beside ids [T] or [1, T]"
            )

    def _hidden_states(
        self,
        input_ids: Tensor,
        positions: Tensor,
        attend: AttentionFn,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """ids [B, T], positions [T] -> [B, T, D]; with `pooled` [P] only these: [B, P, D].

        The stream has the dtype of the surrounding autocast, as it had in pretraining.
        """
        device_type = input_ids.device.type
        dtype = self.embed.weight.dtype
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
        # Every operation follows the stream's dtype; autocast would cast it back and forth.
        with torch.autocast(device_type, enabled=False):
            value_embeddings = [table(input_ids).to(dtype) for table in self.value_embeds]
            x0 = rms_norm(self.embed(input_ids)).to(dtype)  # [B, T, D]
            x = self._through_blocks(x0, value_embeddings, self.rotary(positions), attend, pooled)
            return rms_norm(x)

    def _through_blocks(
        self,
        x0: Tensor,
        value_embeddings: list[Tensor],
        rotary: RotaryTables,
        attend: AttentionFn,
        pooled: Tensor | None,
    ) -> Tensor:
        L = self.config.num_layers
        skip_weights = self.scalars[:L]
        lambdas = self.scalars[L : 3 * L].view(L, 2)
        sa_lambdas = self.scalars[3 * L : 5 * L].view(L, 2)
        skips = {block: (source, weight) for block, source, weight in self.config.skips}
        sources = {source for source, _ in skips.values()}
        table_of_layer = dict(self.config.value_embed_layers)

        x = x0  # [B, T, D]
        outputs = {}
        for i, block in enumerate(self.blocks):
            if i in skips:
                source, weight = skips[i]
                x = x + skip_weights[weight] * outputs[source]
            value_embedding = value_embeddings[table_of_layer[i]] if i in table_of_layer else None
            places = pooled if i == L - 1 else None
            x = self._block(
                block, attend, x, x0, value_embedding, lambdas[i], sa_lambdas[i], rotary, places
            )
            if i in sources:
                outputs[i] = x
        return x

    def _block(self, block: TrainingScriptBlock, *inputs: object) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


class GPTFlexAttention(GPTTrunk):
    """The pretraining script's own form: one packed row, FlexAttention, language-model head.

    `load_state_dict(strict=True)` takes the keys of a small-format file (without a wrapper's
    prefix), whatever the padding of its `scalars`. The size is that of the script's call, whose
    embedding rows are `vocab_size` padded to a multiple of 128.
    """

    def __init__(
        self,
        vocab_size: int,
        num_layers: int,
        num_heads: int,
        model_dim: int,
        max_seq_len: int,
        config: GPTConfig | None = None,
    ):
        super().__init__(
            config
            or GPTConfig.of_family(
                "small",
                vocab_size=next_multiple(vocab_size, VOCAB_MULTIPLE),
                num_layers=num_layers,
                num_heads=num_heads,
                model_dim=model_dim,
                max_seq_len=max_seq_len,
            )
        )
        self.lm_head = CastedLinear(self.config.model_dim, self.config.lm_head_rows)
        self.register_load_state_dict_pre_hook(_drop_scalar_padding)

    @classmethod
    def from_config(cls, config: GPTConfig) -> GPTFlexAttention:
        """A model of any family, in this form."""
        return cls(
            config.vocab_size,
            config.num_layers,
            config.num_heads,
            config.model_dim,
            config.max_seq_len,
            config,
        )

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor | None = None,
        docs: Tensor | None = None,
        windows: tuple[int, int] | None = None,
    ) -> Tensor:
        """One row [T]: mean language-model loss where targets [T] are given, else logits."""
        if targets is not None:
            return self.lm_loss(input_ids, targets, docs, windows)
        return self.lm_logits(self.forward_features(input_ids, docs, windows))

    def _check_row(self, input_ids: Tensor, docs: Tensor | None) -> None:
        super()._check_row(input_ids, docs)
        if input_ids.size(0) != 1:
            raise ValueError(
                f"ids {tuple(input_ids.shape)}: GPTFlexAttention takes one packed row; "
                "for a batch convert it with GPTBatched.from_pretrained_gpt"
            )

    def _attention(
        self, num_tokens: int, docs: Tensor | None, windows: tuple[int, int]
    ) -> AttentionFn:
        from torch.nn.attention.flex_attention import create_block_mask

        device = self.scalars.device
        rules = {
            long: attention_rule(docs, windows[0] if long else windows[1]) for long in (True, False)
        }
        masks = {
            long: create_block_mask(rule, None, None, num_tokens, num_tokens, device=device.type)
            for long, rule in rules.items()
        }

        def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
            long = layer in self.config.long_window_layers
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, T, d]
            if device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
                # FlexAttention has no backward pass on the CPU.
                mask = dense_mask(rules[long], num_tokens, device)
                y = F.scaled_dot_product_attention(q, k, v, mask, scale=SOFTMAX_SCALE)
            else:
                y = _flex_for(device.type)(q, k, v, block_mask=masks[long], scale=SOFTMAX_SCALE)
            return y.transpose(1, 2)

        return attend

    def _lm_head_weight(self) -> Tensor:
        return self.lm_head.weight


class GPTBatched(GPTTrunk):
    """The fine-tuning trunk: any batch of rows padded on the right, or one packed row.

    Causal attention never looks to the right, so padding needs no mask. The language-model head
    is kept only for measuring losses: it is no parameter and not in the state dict.
    """

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.row_attention: str | None = None  # a key of ROW_ATTENTION; None: the device's own
        self.register_buffer("lm_head_weight", None, persistent=False)

    @classmethod
    def from_pretrained_gpt(cls, flex: GPTFlexAttention) -> GPTBatched:
        """A copy of `flex` in this form, on the same device."""
        state = {k: v.detach().clone() for k, v in flex.state_dict().items()}
        return cls.from_state_dict(flex.config, state)

    @classmethod
    def from_state_dict(cls, config: GPTConfig, state: dict[str, Tensor]) -> GPTBatched:
        """A trunk that takes over the tensors of `state` (names of the small format, no copy).

        `lm_head.weight` may be absent: then there is no language-model loss. Any other missing or
        unknown name, or a wrong shape, raises RuntimeError (`load_state_dict`, strict).
        """
        with torch.device("meta"):
            trunk = cls(config)
        parameters = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
        trunk.load_state_dict(parameters, strict=True, assign=True)
        trunk.lm_head_weight = state.get("lm_head.weight")
        return trunk.requires_grad_(True).to(trunk.scalars.device)

    def forward(
        self,
        input_ids: Tensor,
        docs: Tensor | None = None,
        windows: tuple[int, int] | None = None,
    ) -> Tensor:
        """The same as `forward_features`."""
        return self.forward_features(input_ids, docs, windows)

    def pooled_features(self, row: PackedRow) -> Tensor:
        """Final normalised hidden state of every example's last token, [B, D].

        No example sees another one, and positions and windows count from its beginning: the
        result is that of the example alone. The last block computes only what is returned.
        """
        longest = max(row.lengths[: len(row.last)])
        if longest > self.config.max_seq_len:
            raise ValueError(
                f"an example of {longest} tokens, but the model was built for max_seq_len "
                f"{self.config.max_seq_len}: cut it or load with a larger max_seq_len"
            )
        device_type = row.input_ids.device.type
        backend = self.row_attention or DEFAULT_ROW_ATTENTION.get(device_type, "groups")
        attend = ROW_ATTENTION[backend](self.config, row)
        return self._hidden_states(row.input_ids[None], row.positions, attend, row.last)[0]

    def _attention(
        self, num_tokens: int, docs: Tensor | None, windows: tuple[int, int]
    ) -> AttentionFn:
        device = self.scalars.device
        num_blocks = next_multiple(num_tokens, WINDOW_BLOCK) // WINDOW_BLOCK
        masks = {
            long: None
            if docs is None and num_blocks <= window
            else dense_mask(attention_rule(docs, window), num_tokens, device)
            for long, window in zip((True, False), windows, strict=True)
        }

        def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
            mask = masks[layer in self.config.long_window_layers]
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, T, d]
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=SOFTMAX_SCALE
            )
            return y.transpose(1, 2)

        return attend

    def _lm_head_weight(self) -> Tensor:
        if self.lm_head_weight is None:
            raise ValueError("this trunk was built without a language-model head")
        return self.lm_head_weight


def row_multiple(num_tokens: int) -> int:
    """What a row's length should be a multiple of, so that lengths, and with them the shapes that
    a machine prepares for, come again: as much as costs at most 1.5 % of the row."""
    return min(128, 1 << max(0, int(0.015 * num_tokens).bit_length() - 1))


@dataclass(frozen=True)
class PackedRow:
    """Examples one after the other in one row: all that the trunk computes on is real tokens.

    An example too many at the end (`filler`) may bring the row to a round length.
    """

    input_ids: Tensor  # [N]
    positions: Tensor  # [N], counted from the beginning of the example
    docs: Tensor  # [N], the number of the example
    last: Tensor  # [B], where each example ends; the filler left out
    lengths: tuple[int, ...]  # tokens of each example and of the filler, on the host

    @classmethod
    def of(cls, input_ids: Tensor, lengths: Sequence[int], multiple: int = 1) -> PackedRow:
        """Examples of `lengths` tokens from `input_ids` [N]; N is filled up to a `multiple`.

        Raises ValueError where the lengths are not those of the row.
        """
        shortest = min(lengths, default=0)
        if shortest < 1 or sum(lengths) != len(input_ids):
            raise ValueError(
                f"lengths that sum to {sum(lengths)}, the shortest {shortest}, for "
                f"{len(input_ids)} ids: expected one token or more an example, and all of them"
            )
        B, filler = len(lengths), -len(input_ids) % multiple
        lengths = (*lengths, filler) if filler else tuple(lengths)
        device = input_ids.device
        sizes = torch.tensor(lengths)
        ends = sizes.cumsum(0)
        docs = torch.repeat_interleave(torch.arange(len(lengths)), sizes)  # [N]
        positions = torch.arange(int(ends[-1])) - (ends - sizes)[docs]  # [N]
        # The filler may be longer than any example may be.
        positions[len(input_ids) :] = 0
        return cls(
            F.pad(input_ids, (0, filler)),
            positions.to(device),
            docs.to(device),
            (ends[:B] - 1).to(device),
            lengths,
        )

    def to(self, device: torch.device) -> PackedRow:
        """The row on `device`, without waiting for the copy where its memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PackedRow:
        """The row in memory that a GPU can fetch by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> PackedRow:
        tensors = (self.input_ids, self.positions, self.docs, self.last)
        return PackedRow(*map(change, tensors), self.lengths)


@dataclass(frozen=True)
class _Group:
    """Examples of like length, padded to one width; the only padding there is."""

    examples: Tensor  # [B], their numbers
    width: int
    real: Tensor  # [B, T], False on padding


class GroupedAttention:
    """A packed row's attention as a batch per group of like length: what suits a CPU."""

    def __init__(self, config: GPTConfig, row: PackedRow):
        self.config = config
        device = row.input_ids.device
        lengths = torch.tensor(row.lengths)
        starts = lengths.cumsum(0) - lengths
        self.groups = _groups_of_like_length(lengths)
        # A row [N, H, d] is read as N·H rows of d, in the order of a batch [B, H, T, d].
        heads = torch.arange(config.num_heads)[:, None]  # [H, 1]
        places, real = [], []
        for group in self.groups:
            tokens = starts[group.examples, None] + torch.arange(group.width)  # [B, T]
            tokens = torch.where(group.real, tokens, 0)[:, None]  # [B, 1, T]
            places.append((tokens * config.num_heads + heads).flatten())  # [B·H·T]
            real.append(group.real[:, None].expand(-1, config.num_heads, -1).flatten())
        index, real = torch.cat(places), torch.cat(real)
        inverse = torch.empty(int(lengths.sum()) * config.num_heads, dtype=torch.int64)
        inverse[index[real]] = real.nonzero()[:, 0]
        self.index, self.inverse = index.to(device), inverse.to(device)
        self.index_of_grad = torch.where(real, index, len(inverse)).to(device)

    # Its batches change with every row: compiled code would be made anew each time.
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """q, k, v [1, N, H, d] -> [1, N, H, d]; q [1, B, H, d] asks from last tokens alone."""
        window = _window_of(self.config, layer)
        if q.size(1) != k.size(1):
            return self._from_last_tokens(q, k, v, window)
        return _GroupedProducts.apply(q, k, v, self, window)

    def gathered(self, x: Tensor) -> Tensor:
        """[1, N, H, d] -> [B·H·T of all groups, d], padding filled with anything."""
        return x.reshape(-1, x.size(-1)).index_select(0, self.index)

    def scattered(self, x: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `gathered`."""
        return x.index_select(0, self.inverse).view(shape)

    def batches(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Every group's part [B·H, T, d] of each gathered tensor."""
        H = self.config.num_heads
        sizes = [group.real.numel() * H for group in self.groups]
        parts = zip(*(x.split(sizes) for x in tensors), strict=True)
        for group, xs in zip(self.groups, parts, strict=True):
            yield tuple(x.view(len(group.examples) * H, group.width, -1) for x in xs)

    def _from_last_tokens(self, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        H, outputs = self.config.num_heads, []
        gathered = (_Gather.apply(x, self) for x in (k, v))
        for group, (k_group, v_group) in zip(self.groups, self.batches(*gathered), strict=True):
            last = group.real.sum(1, keepdim=True) - 1  # [B, 1]
            keys = torch.arange(group.width)  # [T]
            near = keys // WINDOW_BLOCK > last // WINDOW_BLOCK - window
            hidden = ~((keys <= last) & near)  # [B, T]
            hidden = hidden.repeat_interleave(H, dim=0)[:, None].to(q.device)  # [B·H, 1, T]
            # The filler asks nothing; any question in its place keeps the batch whole.
            examples = group.examples.clamp(max=q.size(1) - 1).to(q.device)
            asked = q[0, examples].flatten(end_dim=1)[:, None]  # [B·H, 1, d]
            scores = (asked @ k_group.mT).float() * SOFTMAX_SCALE  # [B·H, 1, T]
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).type_as(q)
            outputs.append((weights @ v_group).view(len(examples), H, -1))  # [B, H, d]
        order = torch.cat([group.examples for group in self.groups]).argsort()
        return torch.cat(outputs)[order[: q.size(1)].to(q.device)][None]


class _Gather(torch.autograd.Function):
    """`gathered`, with its inverse as the backward pass: nothing flows back from padding."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, grouped: GroupedAttention) -> Tensor:
        ctx.grouped, ctx.shape = grouped, x.shape
        return grouped.gathered(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.grouped.scattered(grad, ctx.shape), None


class _GroupedProducts(torch.autograd.Function):
    """Attention of many short examples, by matrix products.

    For some dozen tokens the scores are smaller than the queries, so keeping them costs nothing;
    the backward pass of the CPU's `scaled_dot_product_attention` takes many times as long.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, grouped: GroupedAttention, window: int
    ) -> Tensor:
        """q, k, v [1, N, H, d] -> [1, N, H, d]."""
        gathered = [grouped.gathered(x) for x in (q, k, v)]
        y, weights = torch.empty_like(gathered[0]), []
        for q_group, k_group, v_group, y_group in grouped.batches(*gathered, y):  # [B·H, T, d]
            mask = _score_mask(q_group.size(1), window, q.dtype, q.device)
            scores = torch.baddbmm(mask, q_group, k_group.mT, alpha=SOFTMAX_SCALE)  # [B·H, T, T]
            weights.append(scores.softmax(-1))
            torch.bmm(weights[-1], v_group, out=y_group)
        ctx.grouped = grouped
        ctx.save_for_backward(*gathered, *weights)
        return grouped.scattered(y, q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        grouped, shape = ctx.grouped, grad.shape
        # With nothing coming back to it, a padding query sends nothing to real keys.
        zero_row = F.pad(grad.reshape(-1, grad.size(-1)), (0, 0, 0, 1))  # [N·H + 1, d]
        grad = zero_row.index_select(0, grouped.index_of_grad)
        grads = [torch.empty_like(x) for x in (q, k, v)]
        batches = grouped.batches(q, k, v, grad, *grads)
        for attended, (q, k, v, grad, grad_q, grad_k, grad_v) in zip(weights, batches, strict=True):
            torch.bmm(attended.mT, grad, out=grad_v)
            grad_scores = torch.ops.aten._softmax_backward_data(
                grad @ v.mT, attended, -1, attended.dtype
            )  # [B·H, T, T]
            # beta 0: what stands in grad_q and grad_k before is not read.
            torch.baddbmm(grad_q, grad_scores, k, beta=0, alpha=SOFTMAX_SCALE, out=grad_q)
            torch.baddbmm(grad_k, grad_scores.mT, q, beta=0, alpha=SOFTMAX_SCALE, out=grad_k)
        return *(grouped.scattered(x, shape) for x in grads), None, None


@lru_cache(maxsize=64)
def _score_mask(width: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the scores [T, T] of one example: 0 where a query sees a key."""
    allowed = dense_mask(attention_rule(None, window), width, device)
    return torch.zeros(width, width, dtype=dtype, device=device).masked_fill(~allowed, -torch.inf)


def _groups_of_like_length(lengths: Tensor) -> list[_Group]:
    """The examples in groups of one width each, one of a few widths: every shape that a matrix
    product has not met yet costs a CPU's library some milliseconds of code generation."""
    order = lengths.argsort(descending=True, stable=True)
    widths = [_group_width(int(lengths[example])) for example in order]
    groups = []
    for width in dict.fromkeys(widths):
        examples = order[[i for i, other in enumerate(widths) if other == width]]
        real = torch.arange(width) < lengths[examples, None]  # [B, T]
        groups.append(_Group(examples, width, real))
    return groups


def _group_width(length: int) -> int:
    """16, 32 and so on to 128, then 160, 192, 224, 256, 320 and so on."""
    return next_multiple(length, max(16, 1 << max(0, (length - 1).bit_length() - 3)))


def _window_of(config: GPTConfig, layer: int) -> int:
    return config.windows[0 if layer in config.long_window_layers else 1]


class FlexRowAttention:
    """A packed row's attention by FlexAttention with a document mask: what suits a GPU."""

    def __init__(self, config: GPTConfig, row: PackedRow):
        self.config = config
        self.masks = {
            window: _document_mask(row, attention_rule(row.docs, window, row.positions))
            for window in set(config.windows)
        }
        self.pooled_masks = {
            window: _pooled_mask(row, attention_rule(row.docs, window, row.positions))
            for window in {_window_of(config, config.num_layers - 1)}
        }

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """q, k, v [1, N, H, d] -> [1, N, H, d]; q [1, B, H, d] asks from last tokens alone."""
        masks = self.masks if q.size(1) == k.size(1) else self.pooled_masks
        mask = masks[_window_of(self.config, layer)]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [1, H, N, d]
        y = _flex_for(q.device.type)(q, k, v, block_mask=mask, scale=SOFTMAX_SCALE)
        return y.transpose(1, 2)


def _document_mask(row: PackedRow, rule: Callable[..., Tensor]) -> BlockMask:
    """`rule` on every pair of places; key blocks from a query block's first document on.

    `create_block_mask` would look at every pair to find the blocks that the lengths tell.
    """
    from torch.nn.attention.flex_attention import BlockMask

    N = sum(row.lengths)
    lengths = torch.tensor(row.lengths)
    begins = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)  # [N]
    query_blocks = torch.arange(next_multiple(N, WINDOW_BLOCK) // WINDOW_BLOCK)  # [Q]
    first_blocks = begins[query_blocks * WINDOW_BLOCK] // WINDOW_BLOCK  # [Q]
    counts = query_blocks - first_blocks + 1  # [Q]
    indices = (first_blocks[:, None] + query_blocks).clamp(max=len(query_blocks) - 1)  # [Q, K]
    device = row.input_ids.device
    return BlockMask.from_kv_blocks(
        counts.int().to(device, non_blocking=True)[None, None],
        indices.int().to(device, non_blocking=True)[None, None],
        BLOCK_SIZE=WINDOW_BLOCK,
        mask_mod=rule,
        seq_lengths=(N, N),
    )


def _pooled_mask(row: PackedRow, rule: Callable[..., Tensor]) -> BlockMask:
    """`rule` between the last token of every example and every place: every block is looked at,
    since there are few queries."""
    from torch.nn.attention.flex_attention import BlockMask

    N, B = sum(row.lengths), len(row.last)
    blocks = torch.arange(next_multiple(N, WINDOW_BLOCK) // WINDOW_BLOCK, device=row.last.device)
    queries = next_multiple(B, WINDOW_BLOCK) // WINDOW_BLOCK
    indices = blocks.int().expand(1, 1, queries, -1).contiguous()

    def from_last(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule(batch, head, row.last[query], key)

    return BlockMask.from_kv_blocks(
        torch.full_like(indices[..., 0], len(blocks)),
        indices,
        BLOCK_SIZE=WINDOW_BLOCK,
        mask_mod=from_last,
        seq_lengths=(B, N),
    )


class VarlenRowAttention:
    """A packed row's attention by FlashAttention's kernel for rows of different lengths.

    It knows no window of blocks, so rows for which a window binds are refused.
    """

    def __init__(self, config: GPTConfig, row: PackedRow):
        from torch.nn.attention.varlen import varlen_attn

        longest = max(row.lengths)
        if longest > config.tokens_within_windows:
            raise ValueError(
                f"an example of {longest} tokens, beyond the window of {min(config.windows)} "
                f"blocks of {WINDOW_BLOCK}: use --attention flex, or a smaller --block_size"
            )
        device = row.input_ids.device
        lengths = torch.tensor([0, *row.lengths], dtype=torch.int32)
        self.attend = varlen_attn
        self.longest = longest
        self.ends = lengths.cumsum(0, dtype=torch.int32).to(device, non_blocking=True)  # [B + 1]
        # One question an example and none of the filler, whose keys and values must be in the
        # kernel's reach all the same: its backward pass writes no gradient beyond the last bound.
        questions = torch.arange(len(lengths), dtype=torch.int32, device=device)
        self.questions = questions.clamp(max=len(row.last))  # [B + 1]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """q, k, v [1, N, H, d] -> [1, N, H, d]; q [1, B, H, d] asks from last tokens alone."""
        q, k, v = q[0], k[0], v[0]  # [N, H, d]
        if len(q) == len(k):
            bounds, longest, window = (self.ends, self.ends), self.longest, (-1, 0)
        else:
            bounds, longest, window = (self.questions, self.ends), 1, (-1, -1)
        y = self.attend(
            q, k, v, *bounds, longest, self.longest, scale=SOFTMAX_SCALE, window_size=window
        )
        return y[None]


ROW_ATTENTION = {
    "groups": GroupedAttention,
    "flex": FlexRowAttention,
    "varlen": VarlenRowAttention,
}
assert tuple(ROW_ATTENTION) == choices.ROW_ATTENTION, "as the flag has them"
DEFAULT_ROW_ATTENTION = {"cpu": "groups", "cuda": "flex"}


class GPTClassification(nn.Module):
    """A trunk and the group's head: Linear(D, D/2), ReLU, dropout, Linear(D/2, classes)."""

    def __init__(self, trunk: GPTBatched, num_classes: int):
        super().__init__()
        model_dim = trunk.config.model_dim
        self.pretrained_model = trunk
        self.head = nn.ModuleDict(
            {
                "hidden": nn.Linear(model_dim, model_dim // 2),
                "output": nn.Linear(model_dim // 2, num_classes),
            }
        )

    @property
    def dropout_width(self) -> int:
        """Values of one example's dropout mask."""
        return self.head["output"].in_features

    @classmethod
    def from_saved(cls, config: dict, state: dict[str, Tensor]) -> GPTClassification:
        """The model of a saved config (`GPTConfig.to_dict`) and state dict, in evaluation mode.

        Raises ValueError or RuntimeError where the two do not fit each other.
        """
        prefix = "pretrained_model."
        trunk_state = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.items()
            if name.startswith(prefix)
        }
        trunk = GPTBatched.from_state_dict(GPTConfig.from_dict(config), trunk_state)
        model = cls(trunk, num_classes=len(state["head.output.weight"]))
        model.load_state_dict(state, strict=True)
        return model.eval()

    def forward(
        self,
        inputs: PackedRow | Tensor,
        lengths: Tensor | None = None,
        dropout_mask: Tensor | None = None,
    ) -> Tensor:
        """Class logits from the last real token of every example.

        `inputs` is a packed row, or ids [B, T] padded on the right with any id beside `lengths`
        [B] in tokens; then only the real tokens are packed. `dropout_mask` [B, D/2] holds 0 or
        1/(1-p): given from outside, so that an example's mask does not depend on how its batch
        was cut. -> [B, classes], float32.
        """
        if isinstance(inputs, Tensor):
            inputs = _pack_padded(inputs, lengths)
        pooled = self.pretrained_model.pooled_features(inputs)  # [B, D]
        hidden = F.relu(self.head["hidden"](pooled))  # [B, D/2]
        if dropout_mask is not None:
            hidden = hidden * dropout_mask
        return self.head["output"](hidden).float()  # [B, classes]


def _pack_padded(input_ids: Tensor, lengths: Tensor | None) -> PackedRow:
    if lengths is None or input_ids.dim() != 2 or lengths.shape != input_ids.shape[:1]:
        raise ValueError(
            f"ids {tuple(input_ids.shape)}: a padded batch is ids [B, T] with lengths [B]"
        )
    lengths = lengths.to(input_ids.device)
    real = torch.arange(input_ids.size(1), device=input_ids.device) < lengths[:, None]  # [B, T]
    return PackedRow.of(input_ids[real], lengths.tolist())


def attention_rule(
    docs: Tensor | None, window: int, positions: Tensor | None = None
) -> Callable[..., Tensor]:
    """Which key a query may see, as a FlexAttention `mask_mod`; `window` in blocks of 128.

    Blocks are counted along the row, or by `positions` [T] where documents count their own.
    """

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = query >= key
        if docs is not None:
            visible = visible & (docs[query] == docs[key])
        if positions is not None:
            query, key = positions[query], positions[key]
        return visible & (key // WINDOW_BLOCK > query // WINDOW_BLOCK - window)

    return allowed


def dense_mask(rule: Callable[..., Tensor], num_tokens: int, device: torch.device) -> Tensor:
    """`rule` for every pair of positions: bool [T, T], True where query (row) sees key."""
    positions = torch.arange(num_tokens, device=device)
    return rule(None, None, positions[:, None], positions[None, :])


def compile_trunk(trunk: GPTTrunk) -> None:
    """Let torch.compile fuse what stands between the matrix products; nothing else changes.

    On a CPU every block is compiled around its attention, whose batches vary; elsewhere the walk
    through the blocks as a whole. Lengths are symbols, so that no length compiles anything anew.
    """
    _allow_recompiling()
    _leave_groups_uncompiled()
    if trunk.scalars.device.type != "cpu":
        trunk._through_blocks = torch.compile(trunk._through_blocks, dynamic=True)
        return
    keep_compiled_code_apart()
    for block in trunk.blocks:
        block.before_attention = torch.compile(block.before_attention, dynamic=True)
        block.after_attention = torch.compile(block.after_attention, dynamic=True)


@cache
def _leave_groups_uncompiled() -> None:
    """Its shapes are another in every row. The decorator would import the compiler for everybody
    who imports this file."""
    GroupedAttention.__call__ = torch.compiler.disable(GroupedAttention.__call__)


def _allow_recompiling() -> None:
    """Some dozen versions: with and without attention, value embeddings, pooling, gradients.

    Beyond its limit torch silently runs uncompiled code, flex with all scores in memory.
    """
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)


_compiled_flex: dict[str, Callable[..., Tensor]] = {}


def _flex_for(device_type: str) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    if device_type != "cuda" or torch.compiler.is_compiling():
        return flex_attention
    if device_type not in _compiled_flex:
        _allow_recompiling()
        _compiled_flex[device_type] = torch.compile(flex_attention, dynamic=True)
    return _compiled_flex[device_type]


def _drop_scalar_padding(
    module: GPTFlexAttention, state_dict: dict[str, Tensor], prefix: str, *_: object
) -> None:
    name = prefix + "scalars"
    if name in state_dict:
        state_dict[name] = state_dict[name][: SCALARS_PER_LAYER * module.config.num_layers]
