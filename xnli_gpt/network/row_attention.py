"""The ways to compute a packed row's attention by name, and those by kernels of a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xnli_gpt.network.config import GPTConfig
from xnli_gpt.network.grouped_attention import GroupedAttention
from xnli_gpt.network.masks import attention_rule, document_mask, pooled_mask, window_of
from xnli_gpt.network.packed_row import PackedRow


class FlexRowAttention:
    """A packed row's attention by FlexAttention with a document mask: what suits a GPU."""

    def __init__(self, config: GPTConfig, row: PackedRow):
        self.config = config

        def rule(window: int) -> Callable[..., Tensor]:
            block = config.window_block
            return attention_rule(row.docs, window, row.position_ids, block, row.branches)

        self.masks = {window: document_mask(row, rule(window)) for window in set(config.windows)}
        self.pooled_masks = {
            window: pooled_mask(row, rule(window))
            for window in {window_of(config, config.num_layers - 1)}
        }

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Attend: q, k, v [1, N, H, d] -> [1, N, H, d]; q [1, B, H, d] are queries of last tokens
        alone."""
        masks = self.masks if q.size(1) == k.size(1) else self.pooled_masks
        mask = masks[window_of(self.config, layer)]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [1, H, N, d]
        y = flex_for(q.device.type)(q, k, v, block_mask=mask, scale=self.config.softmax_scale)
        return y.transpose(1, 2)


class VarlenRowAttention:
    """A packed row's attention by FlashAttention's kernel for rows of different lengths.

    It knows no window of blocks, so rows for which a window binds are refused.
    """

    def __init__(self, config: GPTConfig, row: PackedRow):
        assert row.places is None, "the kernel knows no shared beginnings"
        # It imports torch's compiler, for a second.
        from torch.nn.attention.varlen import varlen_attn

        B, N = len(row.last_token_idx), len(row.input_ids)
        longest = max(row.seq_lens[:B])
        if longest > config.tokens_within_windows:
            raise ValueError(
                f"an example of {longest} tokens, beyond the window of {min(config.windows)} "
                f"blocks of {config.window_block}: use `attention` flex, or a smaller `block_size`"
            )
        self.scale = config.softmax_scale
        self.attend = varlen_attn
        self.longest = max(row.seq_lens)
        # Of every example and of the filler, which may be of no tokens.
        cu_seqlens = F.pad(F.pad(row.last_token_idx + 1, (1, 0)), (0, 1), value=N)
        self.cu_seqlens_k = cu_seqlens.to(torch.int32)  # [B + 2]
        # One query an example and none of the filler, whose keys and values must be in the
        # kernel's reach all the same: its backward pass writes no gradient beyond the last bound.
        queries = torch.arange(B + 2, dtype=torch.int32, device=row.last_token_idx.device)
        self.cu_seqlens_q = queries.clamp(max=B)  # [B + 2]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Attend: q, k, v [1, N, H, d] -> [1, N, H, d]; q [1, B, H, d] are queries of last tokens
        alone."""
        q, k, v = q[0], k[0], v[0]  # [N, H, d]
        if len(q) == len(k):
            bounds, longest, window = (self.cu_seqlens_k, self.cu_seqlens_k), self.longest, (-1, 0)
        else:
            bounds, longest, window = (self.cu_seqlens_q, self.cu_seqlens_k), 1, (-1, -1)
        y = self.attend(
            q, k, v, *bounds, longest, self.longest, scale=self.scale, window_size=window
        )
        return y[None]


ROW_ATTENTION = {
    "groups": GroupedAttention,
    "flex": FlexRowAttention,
    "varlen": VarlenRowAttention,
}
# Those that know examples which share their beginning.
SHARING_ATTENTION = ("groups", "flex")
DEFAULT_ROW_ATTENTION = {"cpu": "groups", "cuda": "flex"}


def allow_recompiling() -> None:
    """Allow some dozen versions: with and without attention, value embeddings, pooling, gradients.

    Beyond its limit torch silently runs uncompiled code, flex with all scores in memory.
    """
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)


_compiled_flex: dict[str, Callable[..., Tensor]] = {}


def flex_for(device_type: str) -> Callable[..., Tensor]:
    """Return FlexAttention: compiled on a GPU, unless the surrounding code is being compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    if device_type != "cuda" or torch.compiler.is_compiling():
        return flex_attention
    if device_type not in _compiled_flex:
        allow_recompiling()
        _compiled_flex[device_type] = torch.compile(flex_attention, dynamic=True)
    return _compiled_flex[device_type]
