"""What the tests of the entry points share."""

import pytest


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    """The folders of the defaults are relative."""
    monkeypatch.chdir(tmp_path)
