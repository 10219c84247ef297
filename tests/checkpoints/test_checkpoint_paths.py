"""Which file a pattern names."""

from pathlib import Path

import pytest

from load_checkpoint_helper import (
    main,
)
from xnli_gpt.checkpoints.paths import resolve_checkpoint_path
from xnli_gpt.errors import CheckpointError


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize(
    "names, best",
    [
        (["s_step000009.pt", "s_step000100.pt", "s_step000020.pt"], "s_step000100.pt"),
        (["s_step000100_val1.3.pt", "s_step000050_val1.2727.pt"], "s_step000050_val1.2727.pt"),
        (["s_step000900.pt", "s_step000001_val9.5.pt"], "s_step000001_val9.5.pt"),
        (["s_step1_val10.1.pt", "s_step2_val9.9.pt"], "s_step2_val9.9.pt"),
        (["s_step1_val2.0.pt", "s_step2_val2.0.pt"], "s_step2_val2.0.pt"),
    ],
)
def test_the_best_of_a_glob(tmp_path, names, best):
    touched(tmp_path, *names)
    assert resolve_checkpoint_path(str(tmp_path / "s_*.pt")) == tmp_path / best


def test_the_best_of_several_patterns(tmp_path):
    touched(tmp_path, "a_val3.1.pt", "a_val3.0.pt", "b_val2.9.pt")
    patterns = [str(tmp_path / "a_*.pt"), str(tmp_path / "b_val2.9.pt")]
    assert resolve_checkpoint_path(patterns).name == "b_val2.9.pt"


def test_a_literal_path_may_hold_glob_characters(tmp_path):
    touched(tmp_path, "run[1].pt", "run1.pt")
    assert resolve_checkpoint_path(str(tmp_path / "run[1].pt")).name == "run[1].pt"


@pytest.mark.parametrize("name, match", [("none_*.pt", "matches no file"), ("none.pt", "no such")])
def test_a_pattern_that_matches_nothing_is_named_among_others(tmp_path, capsys, name, match):
    touched(tmp_path, "there.pt")
    pattern = str(tmp_path / name)
    with pytest.raises(CheckpointError, match=match) as caught:
        resolve_checkpoint_path([str(tmp_path / "there.pt"), pattern])
    assert pattern in str(caught.value)
    assert main([pattern]) == 2
    assert pattern in capsys.readouterr().err
