"""Several processes that train together: one downloads, verifies and decides; a mistake of its ends all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed.launch import together
from distributed.programs import loud_training

from vmamba.train.folder.run_folder import RunFolder


def said_by_two(folder: Path, *words: str) -> list[str]:
    """What two processes print."""
    ended = together(folder, loud_training, *words)
    assert [status for status, _ in ended] == [0, 0], ended
    return "".join(said for _, said in ended).splitlines()


@pytest.mark.long
def test_one_process_reads_the_data_and_the_others_wait(colour_images: Path, colour_run: Path, tmp_path: Path) -> None:
    said = said_by_two(tmp_path, str(colour_images), str(tmp_path / "run"), str(colour_run))
    assert [line for line in said if "refused" in line] == []
    done = [line for line in said if line.startswith("did")]
    assert sorted(line for line in done if not line.startswith("did init_file")) == [
        "did find_faults in 0", *["did fingerprint in 0"] * 3, "did load in 0",
    ]  # fmt: skip
    assert done.count("did init_file in 0") == 2  # once to find the file, once as the path that it is
    state = RunFolder(tmp_path / "run").read_state()
    assert (state["processes"], len(state["rows"])) == (2, 1)
    assert state["engine"]["updates"] == 2  # 27 images: 5+5 and, for either process, 4 of what is left


@pytest.mark.long
def test_a_mistake_that_one_process_finds_ends_all(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = said_by_two(tmp_path, str(tmp_path / "empty"), str(tmp_path / "run"), "")
    for rank in (0, 1):
        assert any(line.startswith(f"refused in {rank} DataError no class folders") for line in said), said
    assert not (tmp_path / "run").exists()
