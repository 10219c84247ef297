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
`FAMILIES`. Source: `train_gpt_small.py` and `train_gpt_medium.py` of modded-nanogpt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

RMS_EPS = 2.0**-23
SOFTMAX_SCALE = 0.12
WINDOW_BLOCK = 128
VOCAB_MULTIPLE = 128
NUM_VALUE_EMBEDS = 3
SCALARS_PER_LAYER = 5

AttentionFn = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Family:
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


FAMILIES: dict[str, Family] = {
    "small": Family(
        norm_attention_input=True,
        norm_values=False,
        skips=_mirrored_skips,
        window_pattern="LSSSLSSLSSSL",
        windows=(14, 7),
        logit_cap="sigmoid",
    ),
    "medium": Family(
        norm_attention_input=False,
        norm_values=True,
        skips=_three_fixed_skips,
        window_pattern="LSSSLSSSSSSLSSSL",
        windows=(27, 13),
        logit_cap="algebraic",
    ),
}


def _sigmoid_cap(logits: Tensor, model_dim: int) -> Tensor:
    return 30 * torch.sigmoid(logits / (7.5 * math.sqrt(model_dim)))


def _algebraic_cap(logits: Tensor, model_dim: int) -> Tensor:
    return 15 * logits * torch.rsqrt(logits.square() + 225)


LOGIT_CAPS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sigmoid": _sigmoid_cap,
    "algebraic": _algebraic_cap,
}


def next_multiple(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class GPTConfig:
    """Everything that shapes the network; plain values, so that it can be saved beside weights."""

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

    def to_dict(self) -> dict:
        """Plain numbers, strings and tuples: what `from_dict` takes back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> GPTConfig:
        """The config that `to_dict` wrote; ValueError where its keys are not those of a config."""
        expected = {field.name for field in fields(cls)}
        if set(values) != expected:
            differing = sorted(set(values) ^ expected)
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

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, H, d] -> the same shape and dtype, rotated by position."""
        T = x.size(1)
        cos, sin = self.cos[:T, None, :], self.sin[:T, None, :]  # [T, 1, d/2]
        x1, x2 = x.float().chunk(2, dim=-1)  # [B, T, H, d/2] each
        return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).type_as(x)


def _init_as_the_scripts_do(weight: Tensor) -> None:
    """Uniform of standard deviation 0.5 / sqrt(inputs); projections back are zero on top of it."""
    bound = math.sqrt(3) * 0.5 * weight.size(-1) ** -0.5
    nn.init.uniform_(weight, -bound, bound)


class CastedLinear(nn.Linear):
    """A linear layer without bias that computes in its input's dtype."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        _init_as_the_scripts_do(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.type_as(x))


class TrainingScriptAttention(nn.Module):
    """Self-attention with the parameter names of `train_gpt_small.py`.

    `attend(q, k, v, layer)` is given from outside: it alone looks across tokens.
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        inner_dim = config.num_heads * config.head_dim
        self.layer = layer
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
        rotary: Rotary,
        attend: AttentionFn,
    ) -> Tensor:
        """x [B, T, D], value_embedding [B, T, D] or None, sa_lambdas [2] -> [B, T, D]."""
        B, T, _ = x.shape
        if self.norm_input:
            x = rms_norm(x)
        qkv = F.linear(x, self.qkv_w.flatten(end_dim=1).type_as(x))  # [B, T, 3·H·d]
        q, k, v = qkv.view(B, T, -1, self.head_dim).chunk(3, dim=2)  # [B, T, H, d] each
        q, k = rotary(rms_norm(q)), rotary(rms_norm(k))
        if self.norm_values:
            v = rms_norm(v)
        v = sa_lambdas[0] * v
        if value_embedding is not None:
            v = v + sa_lambdas[1] * value_embedding.view_as(v)
        y = attend(q, k, v.type_as(q), self.layer)  # [B, T, H, d]
        return self.c_proj(y.reshape(B, T, -1))  # [B, T, D]


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
    """Mix with the embedding, attend (where the block has attention), then the MLP."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        has_attention = layer in config.attention_layers
        self.attn = TrainingScriptAttention(config, layer) if has_attention else None
        self.mlp = TrainingScriptMLP(config)

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        value_embedding: Tensor | None,
        lambdas: Tensor,
        sa_lambdas: Tensor,
        rotary: Rotary,
        attend: AttentionFn,
    ) -> Tensor:
        """x, x0 [B, T, D], lambdas and sa_lambdas [2] -> [B, T, D]."""
        x = lambdas[0] * x + lambdas[1] * x0
        if self.attn is not None:
            x = x + self.attn(x, value_embedding, sa_lambdas, rotary, attend)
        return x + self.mlp(rms_norm(x))


class GPTTrunk(nn.Module):
    """What `GPTFlexAttention` and `GPTBatched` share: parameters, blocks, the walk through them."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.model_dim)
        self.value_embeds = nn.ModuleList(
            nn.Embedding(config.vocab_size, config.model_dim) for _ in range(NUM_VALUE_EMBEDS)
        )
        self.blocks = nn.ModuleList(
            TrainingScriptBlock(config, layer) for layer in range(config.num_layers)
        )
        self.scalars = nn.Parameter(initial_scalars(config.num_layers))
        self.rotary = Rotary(config.head_dim, config.max_seq_len)

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
        return self._hidden_states(input_ids, attend)

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

    def _hidden_states(self, input_ids: Tensor, attend: AttentionFn) -> Tensor:
        L = self.config.num_layers
        skip_weights = self.scalars[:L]
        lambdas = self.scalars[L : 3 * L].view(L, 2)
        sa_lambdas = self.scalars[3 * L : 5 * L].view(L, 2)
        skips = {block: (source, weight) for block, source, weight in self.config.skips}
        sources = {source for source, _ in skips.values()}
        table_of_layer = dict(self.config.value_embed_layers)

        value_embeddings = [table(input_ids) for table in self.value_embeds]  # [B, T, D] each
        x = x0 = rms_norm(self.embed(input_ids))  # [B, T, D]
        outputs = {}
        for i, block in enumerate(self.blocks):
            if i in skips:
                source, weight = skips[i]
                x = x + skip_weights[weight] * outputs[source]
            value_embedding = value_embeddings[table_of_layer[i]] if i in table_of_layer else None
            x = block(x, x0, value_embedding, lambdas[i], sa_lambdas[i], self.rotary, attend)
            if i in sources:
                outputs[i] = x
        return rms_norm(x)


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
        self, input_ids: Tensor, lengths: Tensor, dropout_mask: Tensor | None = None
    ) -> Tensor:
        """Class logits from the last real token of every row.

        `input_ids` [B, T] padded on the right with any id, `lengths` [B] in tokens,
        `dropout_mask` [B, D/2] holding 0 or 1/(1-p): given from outside, so that an example's
        mask does not depend on how its batch was cut. -> [B, classes], float32.
        """
        features = self.pretrained_model.forward_features(input_ids)  # [B, T, D]
        rows = torch.arange(features.size(0), device=features.device)
        pooled = features[rows, lengths - 1]  # [B, D]
        hidden = F.relu(self.head["hidden"](pooled))  # [B, D/2]
        if dropout_mask is not None:
            hidden = hidden * dropout_mask
        return self.head["output"](hidden).float()  # [B, classes]


def initial_scalars(num_layers: int) -> Tensor:
    """[5L]: L skip weights of 1, L block lambdas (1, 0), L attention lambdas (0.5, 0.5)."""
    return torch.cat(
        [
            torch.ones(num_layers),
            torch.tensor([1.0, 0.0]).repeat(num_layers),
            torch.tensor([0.5, 0.5]).repeat(num_layers),
        ]
    )


def attention_rule(docs: Tensor | None, window: int) -> Callable[..., Tensor]:
    """Which key a query may see, as a FlexAttention `mask_mod`; `window` in blocks of 128."""

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = key // WINDOW_BLOCK > query // WINDOW_BLOCK - window
        visible = (query >= key) & near
        return visible if docs is None else visible & (docs[query] == docs[key])

    return allowed


def dense_mask(rule: Callable[..., Tensor], num_tokens: int, device: torch.device) -> Tensor:
    """`rule` for every pair of positions: bool [T, T], True where query (row) sees key."""
    positions = torch.arange(num_tokens, device=device)
    return rule(None, None, positions[:, None], positions[None, :])


_compiled_flex: dict[str, Callable[..., Tensor]] = {}


def _flex_for(device_type: str) -> Callable[..., Tensor]:
    if device_type != "cuda":
        return flex_attention
    if device_type not in _compiled_flex:
        _compiled_flex[device_type] = torch.compile(flex_attention)
    return _compiled_flex[device_type]


def _drop_scalar_padding(
    module: GPTFlexAttention, state_dict: dict[str, Tensor], prefix: str, *_: object
) -> None:
    name = prefix + "scalars"
    if name in state_dict:
        state_dict[name] = state_dict[name][: SCALARS_PER_LAYER * module.config.num_layers]
