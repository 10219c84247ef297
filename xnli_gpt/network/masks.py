"""Which key a query may see: as a rule, as a dense mask, and as block masks of a packed row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xnli_gpt.network.config import WINDOW_BLOCK, GPTConfig, next_multiple
from xnli_gpt.network.packed_row import PackedRow

# This module of torch imports its compiler, for a second: it is imported where it is used, and
# before anything is compiled.
if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def attention_rule(
    docs: Tensor | None,
    window: int,
    position_ids: Tensor | None = None,
    block: int = WINDOW_BLOCK,
    branches: Tensor | None = None,
) -> Callable[..., Tensor]:
    """Return which key a query may see, as a FlexAttention `mask_mod`; `window` in blocks of
    `block` tokens.

    Blocks are counted along the row, or by `position_ids` [T] where documents count their own. With
    `branches` [T] a document is a beginning (-1) and continuations that don't see each other.
    """

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = query >= key
        if docs is not None:
            visible = visible & (docs[query] == docs[key])
        if branches is not None:
            visible = visible & ((branches[key] < 0) | (branches[key] == branches[query]))
        if position_ids is not None:
            query, key = position_ids[query], position_ids[key]
        return visible & (key // block > query // block - window)

    return allowed


def dense_mask(rule: Callable[..., Tensor], num_tokens: int, device: torch.device) -> Tensor:
    """Return `rule` for every pair of positions: bool [T, T], True where query (row) sees key."""
    positions = torch.arange(num_tokens, device=device)
    return rule(None, None, positions[:, None], positions[None, :])


def window_of(config: GPTConfig, layer: int) -> int:
    """Return the attention window of a layer, in blocks."""
    return config.windows[0 if layer in config.long_window_layers else 1]


def document_mask(row: PackedRow, rule: Callable[..., Tensor]) -> BlockMask:
    """Return `rule` on every pair of places; key blocks from a query block's first document on.

    `create_block_mask` would look at every pair to find the blocks that the lengths tell.
    """
    from torch.nn.attention.flex_attention import BlockMask

    N = len(row.input_ids)
    lengths = torch.tensor(row.doc_lens)
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


def pooled_mask(row: PackedRow, rule: Callable[..., Tensor]) -> BlockMask:
    """Return `rule` between the last token of every example and every place: every block is looked
    at, since there are few queries."""
    from torch.nn.attention.flex_attention import BlockMask

    N, B = len(row.input_ids), len(row.last_token_idx)
    blocks = torch.arange(
        next_multiple(N, WINDOW_BLOCK) // WINDOW_BLOCK, device=row.last_token_idx.device
    )
    queries = next_multiple(B, WINDOW_BLOCK) // WINDOW_BLOCK
    indices = blocks.int().expand(1, 1, queries, -1).contiguous()

    def from_last(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule(batch, head, row.last_token_idx[query], key)

    return BlockMask.from_kv_blocks(
        torch.full_like(indices[..., 0], len(blocks)),
        indices,
        BLOCK_SIZE=WINDOW_BLOCK,
        mask_mod=from_last,
        seq_lengths=(B, N),
    )
