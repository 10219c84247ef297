"""Examples one after the other in one row, without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


def row_multiple(num_tokens: int) -> int:
    """Return what a row's length should be a multiple of, so that lengths, and with them the shapes
    that a machine prepares for, come again: as much as costs at most 1.5 % of the row."""
    return min(128, 1 << max(0, int(0.015 * num_tokens).bit_length() - 1))


@dataclass(frozen=True)
class PackedRow:
    """Examples one after the other in one row: all that the trunk computes on is real tokens.

    An example too many at the end (`filler`) may bring the row to a round length. Examples that
    begin alike may share their beginning, which then stands once: as attention is causal, its
    states are the same in all of them.
    """

    input_ids: Tensor  # [N]
    position_ids: Tensor  # [N], counted from the beginning of the example
    docs: Tensor  # [N], the number of the example, or of the examples that share a beginning
    last_token_idx: Tensor  # [B], where each example ends; the filler left out
    seq_lens: tuple[int, ...]  # tokens of each example and of the filler, on the host
    doc_lens: tuple[int, ...]  # of each doc
    # Where beginnings are shared: where the tokens of all examples stand in the row, one example
    # after the other; [N] the continuation that a token is of, -1 in a beginning; and [N] where
    # the token before it stands.
    places: Tensor | None = None
    branches: Tensor | None = None
    before: Tensor | None = None

    @classmethod
    def sharing(
        cls, input_ids: Tensor, docs: Sequence[tuple[int, Sequence[int]]], multiple: int = 1
    ) -> PackedRow:
        """Pack examples that share their beginnings: each doc is the tokens of a beginning, and
        then those of every continuation, as `input_ids` [N] has them. N is filled up to a
        `multiple`.

        Raises ValueError where the lengths are not those of the row.
        """
        B, filler = sum(len(continuations) for _, continuations in docs), -len(input_ids) % multiple
        if filler:
            input_ids, docs = F.pad(input_ids, (0, filler)), [*docs, (0, [filler])]
        # Of every beginning and continuation its tokens, where it begins in the row and in an
        # example, its number as a continuation, and where the token before it stands.
        parts, places, lengths, end = [], [], [], 0
        for beginning, continuations in docs:
            shared = torch.arange(end, end + beginning)
            parts.append((beginning, end, 0, -1, end - 1))
            end += beginning
            last_shared = end - 1
            for length in continuations:
                parts.append((length, end, beginning, len(lengths), last_shared))
                places += [shared, torch.arange(end, end + length)]
                lengths.append(beginning + length)
                end += length
        if end != len(input_ids) or min(lengths, default=0) < 1:
            raise ValueError(
                f"docs of {end} tokens, for {len(input_ids)} ids: expected one token or more an "
                "example, and all of them"
            )
        sizes, begins, firsts, branches, before = torch.tensor(parts).T
        part = torch.arange(len(parts)).repeat_interleave(sizes)  # [N]
        offsets = torch.arange(end) - begins[part]  # [N]
        position_ids = firsts[part] + offsets
        # The filler may be longer than any example may be.
        position_ids[end - filler :] = 0
        doc_lens = tuple(first + sum(others) for first, others in docs)
        places, ends = torch.cat(places), torch.tensor(lengths).cumsum(0)
        return cls(
            input_ids,
            position_ids,
            torch.arange(len(docs)).repeat_interleave(torch.tensor(doc_lens)),
            places[ends[:B] - 1],
            tuple(lengths),
            doc_lens,
            places,
            branches[part],
            torch.where(offsets > 0, torch.arange(end) - 1, before[part]).clamp(min=0),
        )

    @classmethod
    def of(cls, input_ids: Tensor, lengths: Sequence[int], multiple: int = 1) -> PackedRow:
        """Pack examples of `lengths` tokens from `input_ids` [N]; N is filled up to a `multiple`.

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
        position_ids = torch.arange(int(ends[-1])) - (ends - sizes)[docs]  # [N]
        # The filler may be longer than any example may be.
        position_ids[len(input_ids) :] = 0
        return cls(
            F.pad(input_ids, (0, filler)),
            position_ids.to(device),
            docs.to(device),
            (ends[:B] - 1).to(device),
            lengths,
            lengths,
        )

    def to(self, device: torch.device) -> PackedRow:
        """Return the row on `device`, without waiting for the copy where its memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PackedRow:
        """Return the row in memory that a GPU can fetch by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> PackedRow:
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


def pack_padded(input_ids: Tensor, lengths: Tensor | None) -> PackedRow:
    """Pack ids [B, T], padded on the right, of which `lengths` [B] are real.

    Raises ValueError where they are not of these shapes.
    """
    if lengths is None or input_ids.dim() != 2 or lengths.shape != input_ids.shape[:1]:
        raise ValueError(
            f"ids {tuple(input_ids.shape)}: a padded batch is ids [B, T] with lengths [B]"
        )
    lengths = lengths.to(input_ids.device)
    real = torch.arange(input_ids.size(1), device=input_ids.device) < lengths[:, None]  # [B, T]
    return PackedRow.of(input_ids[real], lengths.tolist())
