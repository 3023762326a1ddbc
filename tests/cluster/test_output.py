"""Placing a folder: the old one is there until the new one is, whatever the file system can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.errors import ArtifactError
from cluster import output
from cluster.output import place


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "text").write_text(text)
    return path


@pytest.mark.parametrize("can_swap", [True, False])
def test_replaced_folder_becomes_the_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_swap: bool
) -> None:
    if not can_swap:
        monkeypatch.setattr(output, "_swapped", lambda _one, _other: False)
    draft, old = folder(tmp_path / "draft", "new"), folder(tmp_path / "out", "old")
    place(draft, old, replace=True)
    assert ((old / "text").read_text(), (draft / "text").read_text()) == ("new", "old")
    assert {item.name for item in tmp_path.iterdir()} == {"draft", "out"}


def test_this_system_swaps_in_one_step(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", "1"), folder(tmp_path / "other", "2")
    assert output._swapped(one, other)
    assert (one / "text").read_text() == "2"


def test_what_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    draft, other = folder(tmp_path / "draft", "new"), folder(tmp_path / "out", "theirs")
    with pytest.raises(ArtifactError, match="appeared meanwhile"):
        place(draft, other, replace=False)
    assert (other / "text").read_text() == "theirs"
