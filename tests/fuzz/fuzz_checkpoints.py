"""Checkpoint files for the fuzzer: any damage, and what no script would say."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from checkpoint_judge import Base, Case, check, check_inspector
from checkpoint_writer import SIZES, content_of, file_of
from damaged_bytes import (
    around_the_zip,
    big_endian,
    compressed_member,
    cut_short,
    extra_member,
    flipped_bits,
    lost_or_added_bytes,
    lying_header,
    missing_member,
    other_bytes,
    overlapping_members,
    renamed_member,
    shuffled_members,
    sound,
    swapped_decoy,
    zip64_records,
)
from fuzzing import Kind
from made_checkpoints import random_state
from odd_states import (
    lost_names,
    lost_or_extra_blocks,
    moved_scalar,
    no_checkpoint,
    no_floating_point,
    odd_code,
    odd_entries,
    odd_names,
    of_two_formats,
    other_dtypes,
    other_number_of_scalars,
    other_order,
    other_shapes,
    other_values,
    swapped_names,
    value_not_finite,
    wrapped_names,
)
from odd_tensors import (
    blocks_of_one_storage,
    changed_opcodes,
    changed_pickle,
    expanded_weights,
    odd_tensor,
    other_layout,
    two_kinds_of_one_storage,
)


class Checkpoints(Kind):
    """Files with any damage, and files that say something else than a script would."""

    def __init__(self, folder: Path):
        self.path, self.marker = folder / "case.pt", folder / "marker"
        self.bases = {}
        for fmt, size in SIZES.items():
            shape = (size["layers"], size["heads"], size["dim"])
            self.bases[fmt] = content_of(random_state(**size), *shape)
        self.files = {fmt: file_of(base) for fmt, base in self.bases.items()}

    def run(self, generator: random.Random) -> str:
        # A small-format file can't be tiny: its heads are of 128.
        fmt = "small" if generator.random() < 0.03 else "medium"
        base = Base(self.bases[fmt], self.files[fmt], SIZES[fmt], self.marker)
        mutate = generator.choice(MUTATORS)
        self.doing = mutate.__name__.replace("_", " ")
        case = mutate(base, generator)
        self.path.write_bytes(case.data)
        outcome = check(self.path, case)
        if generator.random() < 0.02:
            check_inspector(self.path, outcome, case)
        return outcome


MUTATORS: Sequence[Callable[[Base, random.Random], Case]] = (
    sound,
    *[flipped_bits, other_bytes, changed_pickle, changed_opcodes, odd_tensor] * 3,
    cut_short,
    lost_or_added_bytes,
    *[lying_header, swapped_decoy] * 2,
    renamed_member,
    extra_member,
    shuffled_members,
    missing_member,
    around_the_zip,
    zip64_records,
    compressed_member,
    big_endian,
    overlapping_members,
    two_kinds_of_one_storage,
    other_layout,
    expanded_weights,
    blocks_of_one_storage,
    other_values,
    value_not_finite,
    other_dtypes,
    no_floating_point,
    moved_scalar,
    other_number_of_scalars,
    other_order,
    wrapped_names,
    lost_names,
    odd_names,
    swapped_names,
    other_shapes,
    lost_or_extra_blocks,
    of_two_formats,
    odd_code,
    odd_entries,
    no_checkpoint,
)
