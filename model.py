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

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xnli_gpt.network.attention import AttentionFn, TrainingScriptAttention, with_values_kept
from xnli_gpt.network.config import (
    VOCAB_MULTIPLE,
    GPTConfig,
    next_multiple,
)
from xnli_gpt.network.heads import HEADS
from xnli_gpt.network.layers import (
    LOGIT_CAPS,
    CastedLinear,
    Embedding,
    Rotary,
    RotaryTables,
    TokenEmbedding,
    rms_norm,
)
from xnli_gpt.network.masks import attention_rule, dense_mask
from xnli_gpt.network.mixing import INITIAL, initial_weights, join_scalars, name_scalars
from xnli_gpt.network.packed_row import PackedRow, pack_padded
from xnli_gpt.network.parts import MLPS, NORMS, Smear, token_before
from xnli_gpt.network.row_attention import (
    DEFAULT_ROW_ATTENTION,
    ROW_ATTENTION,
    SHARING_ATTENTION,
    flex_for,
)


class TrainingScriptBlock(nn.Module):
    """Mix with the embedding, attend (where the block has attention), then the MLP.

    `attend(q, k, v, layer)` is given from outside: it alone looks across tokens. What stands
    before and after it is apart, so that it can be compiled without it.
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        has_attention = layer in config.attention_layers
        self.attn = TrainingScriptAttention(config, layer) if has_attention else None
        self.norm = NORMS[config.norm](config)
        self.mlp = MLPS[config.mlp](config)

    def forward(self, attend: AttentionFn, *inputs: Tensor | RotaryTables | None) -> Tensor:
        """Return the stream [B, T, D], or [B, P, D] with `pooled`; `inputs` are those of
        `before_attention`."""
        stream, heads, gate = self.before_attention(*inputs)
        y = attend(*heads, self.layer) if heads else None
        return self.after_attention(stream, y, gate)

    def before_attention(
        self,
        x: Tensor,
        x0: tuple[Tensor, ...],
        value_embedding: Tensor | None,
        lambdas: Tensor | None,
        sa_lambdas: Tensor | None,
        rotary: RotaryTables | None,
        pooled: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None, Tensor | None]:
        """Return the mixed stream [B, T, D], where there is attention q, k, v [B, T, H, d], and the
        gate of what it gives.

        x and every x0 [B, T, D], lambdas one more than there are x0, and sa_lambdas [2]. With
        `pooled` [P] the output is computed at these places alone: the stream is [B, P, D], and q
        has P places.
        """
        if lambdas is not None:
            x = lambdas[0] * x
            for place, embedding in enumerate(x0, start=1):
                x = x + lambdas[place] * embedding
        heads = gate = None
        if self.attn is not None:
            heads, gate = self.attn(x, value_embedding, sa_lambdas, rotary, pooled)
        return (x if pooled is None else x[:, pooled]), heads, gate

    def after_attention(
        self, stream: Tensor, y: Tensor | None, gate: Tensor | None = None
    ) -> Tensor:
        """Add the heads' outputs [B, T, H, d] and the MLP to the stream [B, T, D]."""
        if y is not None:
            stream = stream + self.attn.output(y, gate)
        return stream + self.mlp(self.norm(stream))


class GPTTrunk(nn.Module):
    """What `GPTFlexAttention` and `GPTBatched` share: parameters, blocks, the walk through them."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.embed = TokenEmbedding(config.vocab_size, config.model_dim)
        self.more_embeds = nn.ModuleList(
            TokenEmbedding(config.vocab_size, config.model_dim)
            for _ in range(config.num_embeddings - 1)
        )
        self.value_embeds = nn.ModuleList(
            TokenEmbedding(config.vocab_size, config.kv_dim) for _ in range(config.num_value_embeds)
        )
        self.blocks = nn.ModuleList(
            TrainingScriptBlock(config, layer) for layer in range(config.num_layers)
        )
        initial = initial_weights(config)
        for name in INITIAL:
            self.register_parameter(name, nn.Parameter(initial[name]) if name in initial else None)
        self.register_load_state_dict_pre_hook(_name_scalars)
        self.positions = None
        if config.learned_positions:
            self.positions = Embedding(config.max_seq_len, config.model_dim)
        self.rotary = None if config.rotary == "none" else Rotary(config)
        # A mix of two layers has normed both of them.
        has_mix = config.final_layer is not None
        self.final_norm = nn.Identity() if has_mix else NORMS[config.norm](config)
        self.smear = Smear(config.smear) if config.smear is not None else None
        self.backout = nn.Parameter(torch.zeros(1)) if config.backout else None
        self.gradient_checkpointing = False

    def forward_features(
        self,
        input_ids: Tensor,
        docs: Tensor | None = None,
        windows: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the final normalised hidden states.

        `input_ids` [B, T], or [T] for one row. On one row, `docs` [T] numbers the document of
        every token: attention stays inside a document. `windows` (long, short) counts blocks of
        128 tokens; by default those of the end of pretraining. -> [B, T, D], or [T, D] for [T].
        """
        if input_ids.dim() == 1:
            return self.forward_features(input_ids[None], docs, windows)[0]
        self._check_row(input_ids, docs)
        return self.features_of(self.embed_tokens(input_ids), docs, windows)

    def embed_tokens(self, input_ids: Tensor) -> list[Tensor]:
        """Return all that the network reads from ids [B, T]: the embeddings and the value
        embeddings, each [B, T, D]."""
        return [table(input_ids) for table in (self.embed, *self.more_embeds, *self.value_embeds)]

    def features_of(
        self,
        embeddings: Sequence[Tensor],
        docs: Tensor | None = None,
        windows: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the features of `embed_tokens`' result, as `forward_features`: [B, T, D]."""
        T, device = embeddings[0].size(1), embeddings[0].device
        attend = self._attention(T, docs, windows or self.config.windows)
        position_ids = torch.arange(T, device=device)
        if docs is not None and self.config.counts_positions:
            # Each counts its own, from its first token on.
            begins = torch.cat([docs.new_ones(1, dtype=torch.bool), docs[1:] != docs[:-1]])
            position_ids = position_ids - torch.where(begins, position_ids, 0).cummax(0).values
        return self._hidden_states(embeddings, position_ids, attend)

    def lm_logits(self, features: Tensor) -> Tensor:
        """Return capped language-model logits of `features` [..., D] -> [..., head rows],
        float32."""
        logits = F.linear(features, self._lm_head_weight().type_as(features)).float()
        return LOGIT_CAPS[self.config.logit_cap](logits, self.config.model_dim)

    def lm_loss(
        self,
        input_ids: Tensor,
        targets: Tensor,
        docs: Tensor | None = None,
        windows: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the mean next-token cross-entropy in nats; targets are shaped as `input_ids`, of
        which -100 is left out."""
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
        embeddings: Sequence[Tensor],
        position_ids: Tensor,
        attend: AttentionFn,
        pooled: Tensor | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """Return [B, T, D] for `embed_tokens`' result and position_ids [T]; with `pooled` [P] only
        these: [B, P, D]. `before` [T] is where the token before stands, if elsewhere than one place
        back.

        The stream has the dtype of the surrounding autocast, as it had in pretraining.
        """
        count = self.config.num_embeddings
        (first, *others), value_embeddings = embeddings[:count], embeddings[count:]  # [B, T, D]
        device_type = first.device.type
        dtype = self.embed.weight.dtype
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
        # Every operation follows the stream's dtype; autocast would cast it back and forth.
        with torch.autocast(device_type, enabled=False):
            value_embeddings = [values.to(dtype) for values in value_embeddings]
            if self.positions is not None:
                first = first + self.positions(position_ids)
            x0 = (first, *others)
            if self.config.norm_embedding:
                x0 = tuple(rms_norm(embedding) for embedding in x0)
            x0 = tuple(embedding.to(dtype) for embedding in x0)  # [B, T, D] each
            if self.smear is not None:
                x0 = (self.smear(x0[0], position_ids, before), *x0[1:])
            rotary = None if self.rotary is None else self.rotary(position_ids)
            # A smear at the end reads one token more than is returned.
            places = None if self.config.final_smear else pooled
            x = self._through_blocks(x0, value_embeddings, rotary, attend, places)
            x = self.final_norm(x)
            if self.config.final_smear:
                x = x + self.final_smear[0] * token_before(x, position_ids, before)
                x = x if pooled is None else x[:, pooled]
            return x

    def _through_blocks(
        self,
        x0: tuple[Tensor, ...],
        value_embeddings: list[Tensor],
        rotary: RotaryTables | None,
        attend: AttentionFn,
        pooled: Tensor | None,
    ) -> Tensor:
        L = self.config.num_layers
        # unbind has one gradient for all; indexing each would add up L tensors of mostly zeros.
        lambdas = self.block_lambdas.unbind() if self.config.mixes else [None] * L
        sa_lambdas = self.value_lambdas.unbind() if self.config.mixes else [None] * L
        skip_weights = () if self.skip_weights is None else self.skip_weights.unbind()
        skips = {block: (source, weight) for block, source, weight in self.config.skips}
        sources = {source for source, _ in skips.values()} | {self.config.reused_layer}
        table_of_layer = dict(self.config.value_embed_layers)

        if self.config.value_of_first_layer:
            attend, values = with_values_kept(attend)
        x = x0[0]  # [B, T, D]
        outputs = {}
        for i, block in enumerate(self.blocks):
            if i in skips:
                source, weight = skips[i]
                x = x + skip_weights[weight] * outputs[source]
            value_embedding = value_embeddings[table_of_layer[i]] if i in table_of_layer else None
            if self.config.value_of_first_layer:
                # The first layer's own values are what it would be mixed with.
                value_embedding = values[0].flatten(start_dim=2) if i else None
            places = pooled if i == L - 1 else None
            x = self._block(
                block, attend, x, x0, value_embedding, lambdas[i], sa_lambdas[i], rotary, places
            )
            if i in sources:
                outputs[i] = x
        if self.config.reused_layer is None:
            return x
        earlier = outputs[self.config.reused_layer]
        earlier = earlier if pooled is None else earlier[:, pooled]
        if self.backout is not None:
            return x - self.backout.type_as(x) * earlier
        return self.final_lambdas[0] * rms_norm(x) + self.final_lambdas[1] * rms_norm(earlier)

    def _block(self, block: TrainingScriptBlock, *inputs: object) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


class GPTFlexAttention(GPTTrunk):
    """The pretraining script's own form: one packed row, FlexAttention, language-model head.

    Its state dict has the keys of a small-format file (without a wrapper's prefix), with `scalars`
    in place of what stands there; `load_state_dict(strict=True)` takes these, whatever the padding
    of `scalars`, and the names of the parameters. The size is that of the script's call, whose
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
        self.register_state_dict_post_hook(_join_scalars)

    @classmethod
    def from_config(cls, config: GPTConfig) -> GPTFlexAttention:
        """Return a model of any family, in this form."""
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
        """Return of one row [T] the mean language-model loss where targets [T] are given, else
        logits."""
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
        # It imports torch's compiler, for a second.
        from torch.nn.attention.flex_attention import create_block_mask

        device, scale = self.embed.weight.device, self.config.softmax_scale
        block = self.config.window_block
        rules = {
            long: attention_rule(docs, windows[0] if long else windows[1], block=block)
            for long in (True, False)
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
                y = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
            else:
                y = flex_for(device.type)(q, k, v, block_mask=masks[long], scale=scale)
            return y.transpose(1, 2)

        return attend

    @property
    def scalars(self) -> Tensor:
        """Return a copy of the mixing weights as the script has them, in one row."""
        own = dict(self.named_parameters(recurse=False))
        return join_scalars({name: own[name] for name in self.config.mixing_weights}, self.config)

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
        """Return a copy of `flex` in this form, on the same device."""
        state = {k: v.detach().clone() for k, v in flex.state_dict().items()}
        return cls.from_state_dict(flex.config, state)

    @classmethod
    def from_state_dict(cls, config: GPTConfig, state: dict[str, Tensor]) -> GPTBatched:
        """Return a trunk that takes over the tensors of `state` (names of the small format, no
        copy).

        `lm_head.weight` may be absent: then there is no language-model loss. Any other missing or
        unknown name, or a wrong shape, raises RuntimeError (`load_state_dict`, strict).
        """
        with torch.device("meta"):
            trunk = cls(config)
        parameters = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
        trunk.load_state_dict(parameters, strict=True, assign=True)
        trunk.lm_head_weight = state.get("lm_head.weight")
        return trunk.requires_grad_(True).to(trunk.embed.weight.device)

    def forward(
        self,
        input_ids: Tensor,
        docs: Tensor | None = None,
        windows: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the same as `forward_features`."""
        return self.forward_features(input_ids, docs, windows)

    @property
    def shares_beginnings(self) -> bool:
        """Return whether examples of a row may share their beginnings (`PackedRow.sharing`)."""
        return self._row_attention() in SHARING_ATTENTION

    def _row_attention(self) -> str:
        device_type = self.embed.weight.device.type
        return self.row_attention or DEFAULT_ROW_ATTENTION.get(device_type, "groups")

    def pooled_features(self, row: PackedRow) -> Tensor:
        """Return the final normalised hidden state of every example's last token, [B, D].

        No example sees another one, and positions and windows count from its beginning: the
        result is that of the example alone. The last block computes only what is returned, unless
        a smear at the end reads more.
        """
        position_ids, last_token_idx = row.position_ids, row.last_token_idx
        longest = max(row.seq_lens[: len(last_token_idx)])
        if longest > self.config.max_seq_len:
            raise ValueError(
                f"an example of {longest} tokens, but the model was built for max_seq_len "
                f"{self.config.max_seq_len}: cut it or load with a larger max_seq_len"
            )
        attend = ROW_ATTENTION[self._row_attention()](self.config, row)
        embeddings = self.embed_tokens(row.input_ids[None])
        return self._hidden_states(embeddings, position_ids, attend, last_token_idx, row.before)[0]

    def _attention(
        self, num_tokens: int, docs: Tensor | None, windows: tuple[int, int]
    ) -> AttentionFn:
        device, block = self.embed.weight.device, self.config.window_block
        num_blocks = next_multiple(num_tokens, block) // block
        longest = self.config.max_seq_len
        # The first holds for any length, which an exported graph does not know.
        masks = {
            long: None
            if docs is None and (longest <= window * block or num_blocks <= window)
            else dense_mask(attention_rule(docs, window, block=block), num_tokens, device)
            for long, window in zip((True, False), windows, strict=True)
        }

        def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
            mask = masks[layer in self.config.long_window_layers]
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, T, d]
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.config.softmax_scale
            )
            return y.transpose(1, 2)

        return attend

    def _lm_head_weight(self) -> Tensor:
        if self.lm_head_weight is None:
            raise ValueError("this trunk was built without a language-model head")
        return self.lm_head_weight


class GPTClassification(nn.Module):
    """A trunk and a classification head (a name in `HEADS`) on its last token."""

    def __init__(self, trunk: GPTBatched, num_classes: int, head: str = "mlp"):
        super().__init__()
        self.pretrained_model = trunk
        self.head_name = head
        self.head = HEADS[head](trunk.config.model_dim, num_classes)

    @property
    def config(self) -> GPTConfig:
        """Return the trunk's configuration with the name of the head."""
        return replace(self.pretrained_model.config, head=self.head_name)

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return self.head.output.out_features

    @property
    def shares_beginnings(self) -> bool:
        """Return whether examples of a row may share their beginnings (`PackedRow.sharing`)."""
        return self.pretrained_model.shares_beginnings

    @property
    def dropout_width(self) -> int:
        """Return the number of values of one example's dropout mask."""
        return self.head.output.in_features

    @classmethod
    def from_saved(cls, config: dict, state: dict[str, Tensor]) -> GPTClassification:
        """Return the model of a saved config (`GPTConfig.to_dict`) and state dict, in evaluation
        mode.

        Raises ValueError or RuntimeError where the two do not fit each other.
        """
        prefix = "pretrained_model."
        trunk_state = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.items()
            if name.startswith(prefix)
        }
        gpt_config = GPTConfig.from_dict(config)
        trunk = GPTBatched.from_state_dict(gpt_config, trunk_state)
        model = cls(trunk, len(state["head.output.weight"]), gpt_config.head)
        model.load_state_dict(state, strict=True)
        return model.eval()

    def forward(
        self,
        inputs: PackedRow | Tensor,
        lengths: Tensor | None = None,
        dropout_mask: Tensor | None = None,
    ) -> Tensor:
        """Return class logits [B, classes], float32, from the last real token of every example.

        `inputs` is a packed row, or ids [B, T] padded on the right with any id beside `lengths`
        [B] in tokens; then only the real tokens are packed. `dropout_mask` [B, dropout_width]
        holds 0 or 1/(1-p): given from outside, so that an example's mask does not depend on how
        its batch was cut.
        """
        if isinstance(inputs, Tensor):
            inputs = pack_padded(inputs, lengths)
        pooled = self.pretrained_model.pooled_features(inputs)  # [B, D]
        return self.head(pooled, dropout_mask).float()  # [B, classes]


def _name_scalars(module: GPTTrunk, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Take what older files and the scripts have in one row."""
    name_scalars(state_dict, module.config, prefix)


def _join_scalars(
    module: GPTFlexAttention, state_dict: dict[str, Tensor], prefix: str, *_: object
) -> None:
    weights = {name: state_dict.pop(prefix + name) for name in module.config.mixing_weights}
    if weights:
        state_dict[f"{prefix}scalars"] = join_scalars(weights, module.config)
