"""A GPT of the modded-nanogpt line that classifies pairs of texts, for the transformers library.

This file travels with the weights and needs nothing but torch and transformers:

    AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)

It computes in a padded batch what the code that trained the weights computes in a packed row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

RMS_EPS = 2.0**-23
SOFTMAX_SCALE = 0.12
WINDOW_BLOCK = 128
NUM_VALUE_EMBEDS = 3
SCALARS_PER_LAYER = 5


class XNLIGPTConfig(PretrainedConfig):
    """The shape of the network; config.json says what the family of a checkpoint makes of it.

    `skips` are (block, source block, weight index), `value_embed_layers` (layer, table), and
    `windows` (long, short) in blocks of 128 tokens.
    """

    model_type = "xnli_gpt"
    attribute_map = {
        "hidden_size": "model_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "max_position_embeddings": "max_seq_len",
    }

    def __init__(
        self,
        vocab_size: int = 128,
        num_layers: int = 6,
        num_heads: int = 1,
        head_dim: int = 128,
        model_dim: int = 128,
        max_seq_len: int = 1024,
        norm_attention_input: bool = True,
        norm_values: bool = False,
        skips: list[list[int]] | tuple = (),
        attention_layers: list[int] | tuple = (),
        value_embed_layers: list[list[int]] | tuple = (),
        long_window_layers: list[int] | tuple = (),
        windows: list[int] | tuple = (14, 7),
        **others: object,
    ):
        self.vocab_size = vocab_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.model_dim = model_dim
        self.max_seq_len = max_seq_len
        self.norm_attention_input = norm_attention_input
        self.norm_values = norm_values
        self.skips = skips
        self.attention_layers = attention_layers
        self.value_embed_layers = value_embed_layers
        self.long_window_layers = long_window_layers
        self.windows = windows
        super().__init__(**others)


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x²) + 2^-23) over the last dimension, without gain."""
    return F.rms_norm(x, (x.size(-1),), eps=RMS_EPS)


def rotary_tables(num_tokens: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [T, 1, d/2] in float32; half of the frequencies are zero.

    Made where they are used: a buffer that is no weight would be lost in loading. On the CPU, so
    that the tables are the same everywhere.
    """
    frequencies = (1 / 1024) ** torch.linspace(
        0, 1, steps=head_dim // 4, dtype=torch.float32, device="cpu"
    )
    frequencies = torch.cat([frequencies, torch.zeros(head_dim // 4, device="cpu")])
    positions = torch.arange(num_tokens, dtype=torch.float32, device="cpu")
    theta = torch.outer(positions, frequencies)[:, None]  # [T, 1, d/2]
    return theta.cos().to(device), theta.sin().to(device)


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, T, H, d] -> the same shape and dtype, rotated by position."""
    cos, sin = tables
    x1, x2 = x.float().chunk(2, dim=-1)  # [B, T, H, d/2] each
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).type_as(x)


def window_mask(num_tokens: int, window: int, device: torch.device) -> Tensor | None:
    """bool [T, T], True where a query (row) sees a key; None where no window binds."""
    if num_tokens <= window * WINDOW_BLOCK:
        return None
    places = torch.arange(num_tokens, device=device)
    query, key = places[:, None], places[None, :]
    return (query >= key) & (key // WINDOW_BLOCK > query // WINDOW_BLOCK - window)


class XNLIGPTAttention(nn.Module):
    """Causal self-attention with values mixed from a value embedding."""

    def __init__(self, config: XNLIGPTConfig):
        super().__init__()
        inner_dim = config.num_heads * config.head_dim
        self.head_dim = config.head_dim
        self.norm_input = config.norm_attention_input
        self.norm_values = config.norm_values
        self.qkv_w = nn.Parameter(torch.zeros(3, inner_dim, config.model_dim))
        self.c_proj = nn.Linear(inner_dim, config.model_dim, bias=False)

    def forward(
        self,
        x: Tensor,
        value_embedding: Tensor | None,
        lambdas: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> Tensor:
        """x and value_embedding [B, T, D], lambdas [2], mask bool [T, T] -> [B, T, D]."""
        if self.norm_input:
            x = rms_norm(x)
        projected = F.linear(x, self.qkv_w.flatten(end_dim=1))  # [B, T, 3·H·d]
        q, k, v = projected.unflatten(2, (3, -1, self.head_dim)).unbind(2)  # [B, T, H, d] each
        q, k = rotate(rms_norm(q), rotary), rotate(rms_norm(k), rotary)
        if self.norm_values:
            v = rms_norm(v)
        v = lambdas[0] * v
        if value_embedding is not None:
            v = v + lambdas[1] * value_embedding.view_as(v)
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))  # [B, H, T, d]
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=SOFTMAX_SCALE
        )
        return self.c_proj(y.transpose(1, 2).flatten(start_dim=2))


class XNLIGPTMLP(nn.Module):
    """W_proj · relu(W_fc · x)²."""

    def __init__(self, config: XNLIGPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.model_dim, 4 * config.model_dim, bias=False)
        self.c_proj = nn.Linear(4 * config.model_dim, config.model_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())  # [B, T, D]


class XNLIGPTBlock(nn.Module):
    """Mix with the embedding, attend (where the block has attention), then the MLP."""

    def __init__(self, config: XNLIGPTConfig, layer: int):
        super().__init__()
        has_attention = layer in config.attention_layers
        self.attn = XNLIGPTAttention(config) if has_attention else None
        self.mlp = XNLIGPTMLP(config)

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        value_embedding: Tensor | None,
        lambdas: Tensor,
        attention_lambdas: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> Tensor:
        """x, x0 and value_embedding [B, T, D] -> [B, T, D]."""
        x = lambdas[0] * x + lambdas[1] * x0
        if self.attn is not None:
            x = x + self.attn(x, value_embedding, attention_lambdas, rotary, mask)
        return x + self.mlp(rms_norm(x))


class XNLIGPTTrunk(nn.Module):
    """The pretrained network without its language-model head."""

    def __init__(self, config: XNLIGPTConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.model_dim)
        self.value_embeds = nn.ModuleList(
            nn.Embedding(config.vocab_size, config.model_dim) for _ in range(NUM_VALUE_EMBEDS)
        )
        self.blocks = nn.ModuleList(XNLIGPTBlock(config, i) for i in range(config.num_layers))
        self.scalars = nn.Parameter(torch.zeros(SCALARS_PER_LAYER * config.num_layers))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Final normalised hidden states: ids [B, T] -> [B, T, D]."""
        config, L, T = self.config, self.config.num_layers, input_ids.size(1)
        skip_weights = self.scalars[:L]
        lambdas = self.scalars[L : 3 * L].view(L, 2)
        attention_lambdas = self.scalars[3 * L :].view(L, 2)
        skips = {block: (source, weight) for block, source, weight in config.skips}
        table_of_layer = {layer: table for layer, table in config.value_embed_layers}
        rotary = rotary_tables(T, config.head_dim, input_ids.device)
        long_mask, short_mask = (window_mask(T, w, input_ids.device) for w in config.windows)

        value_embeddings = [table(input_ids) for table in self.value_embeds]
        x = x0 = rms_norm(self.embed(input_ids))  # [B, T, D]
        outputs = []
        for i, block in enumerate(self.blocks):
            if i in skips:
                source, weight = skips[i]
                x = x + skip_weights[weight] * outputs[source]
            value_embedding = value_embeddings[table_of_layer[i]] if i in table_of_layer else None
            mask = long_mask if i in config.long_window_layers else short_mask
            x = block(x, x0, value_embedding, lambdas[i], attention_lambdas[i], rotary, mask)
            outputs.append(x)
        return rms_norm(x)


class XNLIGPTForSequenceClassification(PreTrainedModel):
    """The network with its head on the last real token of every row.

    Where a row's tokens are is read from `attention_mask` alone, never from the ids; padding may
    stand on either side.
    """

    config_class = XNLIGPTConfig
    _supports_sdpa = True

    def __init__(self, config: XNLIGPTConfig):
        super().__init__(config)
        self.pretrained_model = XNLIGPTTrunk(config)
        self.head = nn.ModuleDict(
            {
                "hidden": nn.Linear(config.model_dim, config.model_dim // 2),
                "output": nn.Linear(config.model_dim // 2, config.num_labels),
            }
        )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Class logits, float32, and with `labels` [B] their mean cross-entropy.

        `input_ids` [B, T]; `attention_mask` [B, T] is 1 on tokens and 0 on padding, and without
        it there is no padding. Raises ValueError for a row of no tokens, or of more than the
        network was built for.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        input_ids, lengths = self._tokens_first(input_ids, attention_mask)
        features = self.pretrained_model(input_ids)  # [B, T, D]
        rows = torch.arange(len(features), device=features.device)
        pooled = features[rows, lengths - 1]  # [B, D]
        logits = self.head["output"](F.relu(self.head["hidden"](pooled))).float()  # [B, classes]
        loss = None if labels is None else F.cross_entropy(logits, labels.view(-1))
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output

    def _tokens_first(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, T] with all padding on the right and none of it in the longest row, where
        causal attention never sees it, and lengths [B]."""
        is_token = attention_mask.ne(0).int()  # [B, T]
        lengths = is_token.sum(dim=1)  # [B]
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < 1:
            raise ValueError("attention_mask: a row without tokens")
        if longest > self.config.max_seq_len:
            raise ValueError(
                f"a row of {longest} tokens, but this model takes {self.config.max_seq_len}: "
                'tokenise with truncation="only_first", which cuts premises'
            )
        order = is_token.argsort(dim=1, descending=True, stable=True)
        return input_ids.gather(1, order)[:, :longest], lengths
