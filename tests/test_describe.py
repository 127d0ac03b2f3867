"""The report on a folder of images before training."""

import cv2
import numpy as np
import pandas as pd
import pytest

import flowers.describe
from flowers.describe import find_near

pytest.importorskip("imagehash")


def test_a_folder_is_described(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for part, name, number in [("train", "a", 1), ("train", "<b>", 2), ("train", "<b>", 3), ("valid", "a", 4), ("valid", "a", 5), ("valid", "<b>", 6)]:  # fmt: skip
        folder = tmp_path / "data" / part / name
        folder.mkdir(parents=True, exist_ok=True)
        seed = np.random.default_rng(1 if number == 4 else number)
        image = cv2.resize(seed.integers(0, 256, (6, 6, 3), np.uint8), (64, 48), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    near = cv2.imread(str(tmp_path / "data/train/<b>/2.png")).astype(int) + rng.integers(-2, 3, (48, 64, 3))
    cv2.imwrite(str(tmp_path / "data/valid/a/5.png"), np.clip(near, 0, 255))
    (tmp_path / "data/valid/<b>/7.png").write_bytes(b"no image")
    assert flowers.describe.main([str(tmp_path / "data"), f"--runs_dir={tmp_path}"]) == 0
    told = capsys.readouterr().out
    assert "1 image(s) equal an earlier one, 1 of them one of another part" in told
    assert "1 image(s) resemble an earlier one, 1 of them one of another part" in told
    table = pd.read_csv(tmp_path / "describe-data" / "images.csv").set_index("image")
    table.index = table.index.str[-5:]
    assert table.loc["4.png", "equals"].endswith("train/a/1.png") and table["equals"].count() == 1
    assert table.loc["5.png", "resembles"].endswith("train/<b>/2.png") and table["resembles"].count() == 1
    assert "no image of a kind" in table.loc["7.png", "cannot_be_read"] and table["cannot_be_read"].count() == 1
    assert table.loc["1.png", ["part", "class", "width", "height"]].tolist() == ["training", "a", 64, 48]
    page = (tmp_path / "describe-data" / "report.html").read_text()
    assert "&lt;b&gt;" in page and "<b>" not in page and "64 x 48" in page and page.count("<img") == 6
    # Other images of that name leave the page as it is.
    (tmp_path / "other" / "data" / "a").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "other" / "data" / "a" / "1.png"), image)
    assert flowers.describe.main([str(tmp_path / "other" / "data"), f"--runs_dir={tmp_path}"]) == 2
    assert "tells of other images; give another --runs_dir" in capsys.readouterr().err
    assert (tmp_path / "describe-data" / "report.html").read_text() == page
    assert flowers.describe.main([str(tmp_path / "data"), f"--runs_dir={tmp_path}"]) == 0
    # Without a test part, equal images may come into different ones.
    for name in ("x", "y"):
        (tmp_path / "whole" / "train" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "whole" / "train" / name / "1.png"), image)
    capsys.readouterr()
    assert flowers.describe.main([str(tmp_path / "whole"), f"--runs_dir={tmp_path}"]) == 0
    page = (tmp_path / "describe-whole" / "report.html").read_text()
    assert "are drawn by seed" in capsys.readouterr().out and "are drawn by seed" in page
    (tmp_path / "empty").mkdir()
    assert flowers.describe.main([str(tmp_path / "empty")]) == 2


def test_near_images_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, (20, 64), np.uint8)
    hashes = base[rng.integers(0, 20, 200)] ^ (rng.random((200, 64)) < 0.04).astype(np.uint8)
    distances = (hashes[:, None] != hashes[None]).sum(2)
    expected = {i for i in range(200) if i and distances[i, :i].min() <= 4}
    found = find_near(hashes, np.zeros(200, int))
    assert set(found) == expected and all(distances[i, j] == distances[i, :i].min() for i, j in found.items())
    parts = rng.integers(0, 3, 200)
    found, crossing = find_near(hashes, parts), 0
    assert set(found) == expected
    _, first = np.unique(np.column_stack([hashes, parts]), axis=0, return_index=True)
    for i in set(found) & set(first):
        others = [j for j in range(i) if parts[j] != parts[i] and distances[i, j] <= 4]
        crossing += bool(others)
        assert distances[i, found[i]] == min(distances[i, others or range(i)])
        assert not others or parts[found[i]] != parts[i]
    assert crossing > 20
