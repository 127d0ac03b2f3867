"""Images of one's own: which layouts of folders, archives and tables are understood, and what is said of them."""

import dataclasses
import io
import json
import shutil
import unicodedata
import zipfile

import numpy as np
import PIL.Image
import pytest

import cifar10_input
import cifar10_main
import flowers.train
from flowers import data as flowers_data
from flowers.settings import FlowerParameters
from hyper_parameters import from_preset
from resnet_study import errors
from resnet_study.data import folder_data
from resnet_study.data.image_files import read_image
from resnet_study.data.labelled_files import find_labelled
from resnet_study.data.new_images import find_new
from resnet_study.data.splits import hold_out
from resnet_study.errors import UsageError
from resnet_study.files import write_json
from resnet_study.run_folder import RunFolder
from resnet_study.run_images import check_same_images
from resnet_study.training.run_log import note_many_epochs


def make(folder, *files):
    """Writes tiny images, each of a colour of its own, and empty files of other kinds; returns the folder."""
    for number, file in enumerate(files):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            color = np.random.default_rng(number).integers(0, 256, 3)
            PIL.Image.fromarray(np.full((10, 12, 3), color, np.uint8)).save(path)
        else:
            path.write_text("")
    return folder


def found(folder, **options):
    """{part: {class: names of the files}} of a layout, and all that is said of it."""
    data = find_labelled(str(folder), **options)
    parts = {}
    for part, members in data.parts.items():
        for file, label in members:
            parts.setdefault(part, {}).setdefault(label, []).append(file[len(str(folder)) + 1 :])
    return parts, data, "\n".join(data.found)


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (["train/a/1.png", "Validation/a/2.png", "Test/a/3.png"], {"training": "1", "validation": "2", "test": "3"}),
        (["Training/a/1.png", "Testing/a/3.png"], {"training": "1", "test": "3"}),
        (["train/a/1.png", "testing/a/3.png", "dev/a/2.png"], {"training": "1", "validation": "2", "test": "3"}),
        (["photos/TRAIN/a/1.png", "photos/val/a/2.png", "photos/readme.txt"], {"training": "1", "validation": "2"}),
        (["training_set/training_set/a/1.png", "test_set/test_set/a/3.png"], {"training": "1", "test": "3"}),
        (["a/train/1.png", "b/train/2.png", "a/test/3.png"], {"training": "12", "test": "3"}),
        # What lies beside the parts of a class is left aside.
        (
            ["a/train/1.png", "b/train/2.png", "b/test/3.png", "b/cover.png", "a/old/9.png"],
            {"training": "12", "test": "3"},
        ),
        (["a/1.png", "a/test/3.png", "b/2.png", "b/test/4.png"], {"training": "1324"}),  # no part to train on
        (["a/1.png", "b/2.png"], {"training": "12"}),
        (["a/1.png", "b/2.png", "__MACOSX/a/1.png"], {"training": "12"}),
        (["a/1.png", "b/2.png", "$RECYCLE.BIN/9.png", "a/@eaDir/1.png/9.png", "lost+found/8.png"], {"training": "12"}),
        (["inner/a/1.png", "inner/b/2.png"], {"training": "12"}),
        (["test/a/1.png", "test/b/2.png"], {"test": "12"}),
    ],
)
def test_parts_under_usual_names(tmp_path, files, parts):
    sorted_files, data, said = found(make(tmp_path, *files))
    numbers = {
        part: "".join(file[-5] for files in classes.values() for file in files)
        for part, classes in sorted_files.items()
    }
    assert numbers == parts and set(data.classes) <= {"a", "b"} and data.has_parts == (set(parts) != {"training"})
    assert all(f"{len(found)} {part if data.has_parts else 'labelled'}" in said for part, found in parts.items())


def test_a_class_may_be_called_train(tmp_path):
    vehicles = make(tmp_path, "bus/1.png", "car/2.png", "train/3.png", "train/4.png")
    _, data, said = found(vehicles)
    assert (
        data.classes == ("bus", "car", "train")
        and not data.has_parts
        and "one folder per class; 3 classes, 4 labelled images" in said
    )
    make(tmp_path, "train/steam/5.png", "bus/city/6.png")
    assert found(vehicles, label_level=1)[1].classes == ("bus", "car", "train")


def test_classes_that_are_nested_more_deeply(tmp_path):
    folder = make(tmp_path, "cats/wild/1.png", "cats/kaggle/2.png", "dogs/show/3.png")
    parts, _, said = found(folder)
    assert parts == {"training": {"cats": ["cats/kaggle/2.png", "cats/wild/1.png"], "dogs": ["dogs/show/3.png"]}}
    assert "such as those of kaggle, wild to cats; --label_level=2 makes the deeper folders the classes" in said
    assert found(folder, label_level=2)[1].classes == ("kaggle", "show", "wild")
    twofold = make(tmp_path / "twofold", "2021/a/1.png", "2021/b/2.png", "2022/a/3.png", "2022/b/4.png")
    with pytest.raises(UsageError, match=r"all hold the same folders \(a, b\).*--label_level=1 .* --label_level=2"):
        found(twofold)
    assert found(twofold, label_level=2)[0] == {"training": {"a": ["2021/a/1.png", "2022/a/3.png"], "b": ["2021/b/2.png", "2022/b/4.png"]}}  # fmt: skip
    assert found(twofold, label_level=1)[1].classes == ("2021", "2022")


def test_what_is_left_aside_is_said(tmp_path):
    files = [
        "train/a/1.png",
        "train/b/2.png",
        "train/3.png",
        "4.png",
        "extra/5.png",
        "train/a/x.raw",
        "train/a/y.raw",
        "n",
        ".h.png",
    ]
    parts, data, said = found(make(tmp_path, *files, "test/6.png"))
    assert parts == {"training": {"a": ["train/a/1.png"], "b": ["train/b/2.png"]}}
    assert [file[-5] for file in data.unlabelled] == ["6"] and "1 test images without labels, which are predicted and not scored" in said  # fmt: skip
    for reason in ("1 file(s) in extra, which is no part", f"1 file(s) in {tmp_path}/train itself, without a class",
                   "1 file(s) in no folder", "3 file(s) that are no images of a kind that is read (2 .raw, 1 without ending)"):  # fmt: skip
        assert reason in said
    beside = make(tmp_path / "beside", "a/1.png", "b/2.png", "test/3.png")
    assert found(beside)[1].classes == ("a", "b") and len(found(beside)[1].unlabelled) == 1


def test_an_archive_is_read_as_its_folder(tmp_path):
    folder = make(tmp_path / "set", "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png", "test/5.png")
    (folder / "cat_to_name.json").write_text('{"a": "bee", "b": "bee"}')
    assert find_labelled(str(folder)).class_names == ("bee (a)", "bee (b)")  # or nobody could tell them apart
    (folder / "cat_to_name.json").write_text('{"a": "ant"}')
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
        archive.writestr("__MACOSX/set/train/a/._1.png", b"")
    config = FlowerParameters(data_dir=str(folder), image_size=32)
    plain = flowers_data.load_images(config)
    packed = flowers_data.load_images(FlowerParameters(data_dir=str(tmp_path / "set.zip"), image_size=32))
    assert packed.class_names == ("ant", "b") and packed.fingerprint == plain.fingerprint and packed.leak_count == 0
    np.testing.assert_array_equal(plain.training.images, packed.training.images)
    assert packed.unlabelled == (f"{tmp_path}/set.zip/set/test/5.png",)
    content = bytearray((tmp_path / "set.zip").read_bytes())
    content[content.rindex(b"IDAT") + 8] ^= 255
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(UsageError, match=r"1 image\(s\) .*set\.zip/set/val/b/4.png cannot be unpacked"):
        flowers_data.load_images(FlowerParameters(data_dir=str(tmp_path / "set.zip"), image_size=32))
    (tmp_path / "no.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"no\.zip must be a folder or a \.zip, received BadZipFile"):
        find_labelled(str(tmp_path / "no.zip"))


TABLES = {
    "ids without ending": "id,label\n1,a\n2,b\n3,a\n",
    "other order and separator": "target;path\na;train/1.png\nb;train/2.png\na;train/3.png\n",
    "more columns": "width,Image,CLASS\n9,1.png,a\n9,./train/2.png,b\n\n9,3,a\n",
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_gives_the_labels(tmp_path, kind):
    folder = make(tmp_path, "train/1.png", "train/2.png", "train/3.png", "test/1.png", "train/9.png")
    (folder / "labels.csv").write_text(TABLES[kind], encoding="utf-8-sig")
    with pytest.raises(UsageError, match=r"images that lie in .*--labels=labels\.csv"):
        flowers_data.load_images(FlowerParameters(data_dir=str(folder)))
    parts, data, said = found(folder, labels="labels.csv")
    assert parts == {"training": {"a": ["train/1.png", "train/3.png"], "b": ["train/2.png"]}} and not data.has_parts
    assert (
        data.unlabelled == (f"{folder}/test/1.png",)
        and "1 file(s) that labels.csv has no label for, such as 9.png" in said
    )


def test_a_table_may_name_the_parts(tmp_path):
    folder = make(tmp_path / "x", "1.png", "2.png", "3.png", "4.png")
    table = tmp_path / "table.csv"
    table.write_text(
        "filename,label,split\n1.png,a,train\n2.png,b,Training\n3.png,b,val\n4.png,,test\n4.png,,test\n5.png,a,test\n"
    )
    parts, data, said = found(folder, labels=str(table))
    assert parts == {"training": {"a": ["1.png"], "b": ["2.png"]}, "validation": {"b": ["3.png"]}} and data.has_parts
    assert len(data.unlabelled) == 1 and "1 row(s) of table.csv name no image that is there, such as 5.png" in said


@pytest.mark.parametrize(
    ("files", "rows", "expected"),
    [
        # Rows of images that are gone do not name those of the same number in another part or class.
        (["train/1.png", "train/2.png", "test/1.png", "test/3.png"], "1,a\n2,b\n3,b", {"a": ["train/1.png"], "b": ["train/2.png"]}),
        (["train/1.png", "test/1.png", "test/3.png"], "train/1.png,a\ntrain/3.png,b", {"a": ["train/1.png"]}),
        (["cats/1.png", "dogs/1.png", "dogs/3.png"], "cats/1.png,a\ncats/3.png,a\ndogs/1.png,b", {"a": ["cats/1.png"], "b": ["dogs/1.png"]}),
        (["cats/1.png", "dogs/3.png", "birds/3.png"], "cats/1.png,a\ncats/3.png,b", {"a": ["cats/1.png"]}),
        # Folders of another machine, more of them than are here or others.
        (["cats/1.png", "dogs/1.png"], "/home/me/b/cats/1.png,a\n/home/me/b/dogs/1.png,b", {"a": ["cats/1.png"], "b": ["dogs/1.png"]}),
        (["1.png", "2.png"], "C:\\photos\\1.png,a\nC:\\photos\\2.png,b", {"a": ["1.png"], "b": ["2.png"]}),
        (["train/x/1.png", "train/y/2.png"], "train/1.png,a\ntrain/2.png,b", {"a": ["train/x/1.png"], "b": ["train/y/2.png"]}),
        # Where some of the folders are here, images of the others are missing, also where the data folder itself is one of them.
        (["2021/1.png", "2021/2.png"], "2021/2.png,b\n2022/1.png,a", {"b": ["2021/2.png"]}),
        (["1.png", "2.png"], "x/2.png,b\n2022/1.png,a", {"b": ["2.png"]}),
        (["train/1.png", "test/1.png", "test/3.png"], "x/1.png,a\nx/3.png,b", {"a": ["train/1.png"]}),
        # Parts that are not numbered alike.
        (["train/1.png", "test/1.png", "valid/7.png"], "1,a\n7,b", {"a": ["train/1.png"]}),
        # Names that no two parts share.
        (["train/1.png", "test/2.png"], "1,a\n2,b", {"a": ["train/1.png"]}),
    ],
)  # fmt: skip
def test_a_row_names_no_other_image_of_the_same_name(tmp_path, files, rows, expected):
    table = tmp_path / "table.csv"
    table.write_text(f"id,label\n{rows}\n")
    parts = found(make(tmp_path / "x", *files), labels=str(table))[0]
    assert parts["training"] == expected
    assert parts.get("test", {}) == ({"b": ["test/2.png"]} if files[-1] == "test/2.png" else {})
    assert parts.get("validation", {}) == ({"b": ["valid/7.png"]} if "valid/7.png" in files else {})


def test_a_table_of_folders_that_are_not_there_says_that_names_decide(tmp_path):
    folder = make(tmp_path / "2021", "1.png", "2.png")
    (folder / "t.csv").write_text("path,label\nold/1.png,a\n2.png,b\n")
    said = found(folder, labels="t.csv")[2]
    assert "no folder that t.csv names is there, such as old, so the names of the files alone decide" in said


def test_parts_of_a_table_go_before_those_of_folders(tmp_path):
    folder = make(tmp_path, "train/1.png", "train/2.png", "test/1.png", "test/2.png")
    (folder / "t.csv").write_text("id,label,split\n1,a,train\n2,b,val\n")
    assert found(folder, labels="t.csv")[0] == {
        "training": {"a": ["train/1.png"]},
        "validation": {"b": ["train/2.png"]},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "received nothing; name the columns so"),
        ("1.png,a\n", "must have a column filename, image, path or id, and one label.*received 1.png, a;"),
        ("id,label,split\n1,a,some\n", "has 'some' in row 2 of its column of parts"),
        ("id,label\n1\n", "has 1 cells in row 2, expected 2"),
        ("id,label\n1,a\n1,b\n", "gives 1 the labels a and b"),
        ("id,label,split\n1,a,train\n1,a,val\n2,b,train\n", "gives 1 the parts training and validation, expected one row"),
        ("id,label,split\n1,a,train\n1,,test\n2,b,train\n", "gives 1 the labels a and none, expected one row for each image; leave one out"),
        ("id,label\n7,a\n8,b\n", r"received no image that .* has a label for"),
        ("id,label\nsame,a\n", r"names same, which may be train/same\.jpg or train/same\.png; give paths"),
        (b"id,label\n\xff\xfe,a\n", "must be a CSV file in UTF-8"),
        ('id,label\n1,"a\n2,b\n3,c\n', "must be a CSV file in UTF-8 whose quotes are closed, received unexpected end of data"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used(tmp_path, text, message):
    folder = make(tmp_path, "train/1.png", "train/2.png", "train/same.png", "train/same.jpg")
    (folder / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=message):
        flowers_data.load_images(FlowerParameters(data_dir=str(folder), labels="t.csv"))
    with pytest.raises(UsageError, match="neither here nor in"):
        find_labelled(str(folder), labels="nowhere.csv")


def test_blanks_beside_quotes_are_no_part_of_a_cell(tmp_path):
    folder = make(tmp_path, "train/1.png", "train/2.png")
    (folder / "t.csv").write_text('id,label\n"1.png" ,  "a, or b" \n"2.png","c ""d"" e"  \n')
    found = find_labelled(str(folder), labels="t.csv")
    assert set(found.class_names) == {"a, or b", 'c "d" e'}


# The small networks


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """40 grey images of 12 x 12 in two classes, as class folders and as one folder with a table."""
    place = tmp_path_factory.mktemp("shapes")
    rng, rows = np.random.default_rng(0), ["id,label"]
    (place / "flat").mkdir()
    for name in ("dark", "light"):
        (place / "folders" / name).mkdir(parents=True)
    for number in range(40):
        name = ("dark", "light")[number % 2]
        image = PIL.Image.fromarray(rng.integers(0, 120, (12, 12), np.uint8) + np.uint8(120 * (number % 2)))
        image.save(place / "folders" / name / f"{number:02d}.png")
        image.save(place / "flat" / f"{number:02d}.png")
        rows.append(f"{number:02d},{name}")
    (place / "flat" / "labels.csv").write_text("\n".join(rows))
    return place


def test_folder_and_table_give_the_same_arrays(shapes, monkeypatch):
    config = from_preset("folder", data_dir=str(shapes / "folders"), image_size=8)
    folders = cifar10_input.load_data(config)
    table_config = from_preset("folder", data_dir=str(shapes / "flat"), labels="labels.csv", image_size=8)
    table = cifar10_input.load_data(table_config)
    assert folders.train.images.shape == (36, 8, 8, 1) and folders.class_names == ("dark", "light")
    for part in ("train", "test"):
        np.testing.assert_array_equal(getattr(folders, part).images, getattr(table, part).images)
        np.testing.assert_array_equal(getattr(folders, part).labels, getattr(table, part).labels)
    with monkeypatch.context() as patch:  # what was read last is not read again
        patch.setattr(folder_data, "read_image", None)
        assert cifar10_input.load_data(table_config) is table
    colour = cifar10_input.load_data(from_preset("folder", data_dir=str(shapes / "folders"), channels=3, image_size=8))
    np.testing.assert_array_equal(colour.train.images[..., :1], folders.train.images)
    assert [len(part) for part in cifar10_input.split_data(folders, config)] == [32, 4]


def test_a_table_that_leaves_one_class_says_what_it_did_not_find(shapes):
    table = shapes / "typo.csv"
    table.write_text("image,label\n00,dark\n1x,light\n2x,light\n")
    config = from_preset("folder", data_dir=str(shapes / "flat"), labels=str(table), image_size=8)
    with pytest.raises(
        UsageError,
        match=r"the one class 'dark' \(.*2 row\(s\) of typo.csv name no image that is there, such as 1x.*; mend the table$",
    ):
        cifar10_input.load_data(config)


def test_own_parts_are_kept(tmp_path):
    files = [f"{part}/{name}/{number}.png" for part in ("train", "dev", "test") for name in "ab" for number in range(3)]
    config = from_preset("folder", data_dir=str(make(tmp_path, *files)), image_size=8)
    training, validation = cifar10_input.split_data(cifar10_input.load_data(config), config)
    assert len(training) == 6 and len(validation) == 6 and training.images.shape[1:] == (8, 8, 3)
    everything = from_preset("folder", data_dir=str(tmp_path), image_size=8, validation_fraction=0.0)
    assert [len(part) for part in cifar10_input.split_data(cifar10_input.load_data(everything), everything)] == [12, 0]


def test_a_folder_is_trained_tested_and_asked(shapes, tmp_path, capsys):
    errors._said.clear()
    photos = shutil.copytree(shapes / "folders", tmp_path / "photos")
    shutil.copytree(photos / "light", photos / "test", ignore=shutil.ignore_patterns("[123]*"))
    place = [f"--runs_dir={tmp_path}", "--version=x"]
    flags = [
        "--mode=train",
        "--dataset=folder",
        f"--data_dir={photos}",
        "--image_size=8",
        "--model=resnet8",
        "--tensorboard=false",
    ]
    assert (
        cifar10_main.main(
            [*flags, *place, "--train_batch_size=8", "--report_freq=4", "--warmup_steps=1", "--train_steps=8"]
        )
        == 0
    )
    assert (
        capsys.readouterr().out.splitlines()[0]
        == f"{photos}: one folder per class, test/ = test; 2 classes, 40 labelled images, 5 test images without labels, which are predicted and not scored"
    )
    run = RunFolder(tmp_path / "x")
    assert len((run.path / "unlabelled" / "predictions.csv").read_text().splitlines()) == 6
    before = run.result.read_bytes()
    # Wherever it lies, and given by its folder alone, it is tested on its own test part.
    moved = shutil.move(photos, tmp_path / "moved")
    assert cifar10_main.main(["--mode=test", *place, f"--data_dir={moved}"]) == 0
    assert json.loads(run.result.read_text())["test"] == json.loads(before)["test"]
    before = run.result.read_bytes()
    shutil.move(moved, photos)
    assert cifar10_main.main(["--mode=test", place[0], f"--test_ckpt_path={run.path}"]) == 0
    result = json.loads((tmp_path / "test-x-photos" / "result.json").read_text())
    assert result["test"] == json.loads(before)["test"]
    capsys.readouterr()
    assert cifar10_main.main(["--mode=predict", *place, "--images", str(photos / "dark")]) == 0
    assert "of the 20 images that lie in folders named like classes" in capsys.readouterr().out
    stored, others = run.config.read_bytes(), shutil.copytree(photos, tmp_path / "others")
    shutil.copy(photos / "dark" / "00.png", others / "light")
    assert cifar10_main.main(["--mode=train", *place, "--resume", f"--data_dir={others}", "--train_steps=12"]) == 2
    assert run.config.read_bytes() == stored
    capsys.readouterr()
    shutil.copy(photos / "dark" / "00.png", photos / "light")
    for named in ([], ["--dataset=folder", f"--data_dir={photos}"]):  # which would test it on its training images
        assert cifar10_main.main(["--mode=test", *place, *named]) == 2
        assert "have changed since" in capsys.readouterr().err
    assert cifar10_main.main(["--mode=test", place[0], f"--test_ckpt_path={run.path}"]) == 2
    assert "have changed since" in capsys.readouterr().err
    assert cifar10_main.main(["--mode=export", *place, "--format=keras"]) == 2
    assert "have changed since" in capsys.readouterr().err
    assert cifar10_main.main(["--mode=train", *place, "--resume"]) == 2
    assert "are others; give the same --data_dir" in capsys.readouterr().err and run.result.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=folder"], "--data_dir must be a folder"),
        (["--dataset=digits", "--labels=x.csv"], "--labels is for --dataset=folder"),
        (["--dataset=digits", "--image_size=16"], "--image_size and --channels are for --dataset=folder"),
        (["--dataset=folder", "--channels=2"], "--channels must be 1, 3"),
        (["--dataset=folder", "--image_size=7"], "--image_size must be at least 8"),
        (["--dataset=folder", "--value_range=5,1"], "--value_range must be LOW,HIGH with LOW below HIGH"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, capsys, flags, message):
    assert cifar10_main.main(["--mode=train", f"--runs_dir={tmp_path}", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_few_images_is_told_how_to_train_it_sooner():
    assert "seen 1,053 times; --train_steps=189 --warmup_steps=18 (100 times)" in note_many_epochs(2000, 128, 243, True)
    assert note_many_epochs(2000, 128, 5000, True) == ""
    assert "patience" not in note_many_epochs(2000, 128, 243, False)


def test_what_is_left_aside_for_one_reason_is_told_once_and_of_many_reasons_the_largest(tmp_path):
    make(tmp_path, *(f"{folder}/{number}.png" for folder in "abcdefgh" for number in range(2)))
    (tmp_path / "labels.csv").write_text("image,label\na/0.png,x\nb/0.png,y\n")
    assert (
        "left aside: 14 file(s) that labels.csv has no label for, such as " in found(tmp_path, labels="labels.csv")[2]
    )
    loose = make(tmp_path / "loose", "train/x/1.png", "test/x/2.png", *(f"other{number}/1.png" for number in range(9)))
    assert ", which is no part; 4 file(s) elsewhere" in found(loose)[2]


def test_a_table_within_an_archive_or_the_folder_around_everything(tmp_path):
    make(tmp_path / "kaggle" / "flowers", *(f"images/{number}.png" for number in range(4)))
    table = "id,label\n0,x\n1,y\n2,x\n3,y\n"
    (tmp_path / "kaggle" / "flowers" / "train_labels.csv").write_text(table)
    (tmp_path / "kaggle" / "flowers" / "class_names.json").write_text('{"x": "rose", "y": "tulip"}')
    shutil.make_archive(str(tmp_path / "whole"), "zip", tmp_path / "kaggle")
    for place in (tmp_path / "kaggle", tmp_path / "whole.zip"):
        data = find_labelled(str(place), "train_labels.csv")
        assert data.classes == ("x", "y") and data.class_names == ("rose", "tulip")
        with pytest.raises(UsageError, match=r"give the table of labels that lies there, --labels=.*train_labels\.csv"):
            flowers_data.load_images(FlowerParameters(data_dir=str(place), model="resnet20"))
    with pytest.raises(UsageError, match="which is neither here nor in"):
        find_labelled(str(tmp_path / "whole.zip"), "other.csv")


def test_folders_without_images_are_named(tmp_path):
    make(tmp_path, "a/1.png", "b/1.png", "c/notes.txt")
    (tmp_path / "d" / "e").mkdir(parents=True)
    assert "3 folder(s) without images: c, d, d/e" in found(tmp_path)[2]
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(UsageError, match=r"file\.txt', which is neither"):
        found(tmp_path / "file.txt")


def test_a_column_of_parts_is_known_by_what_it_holds_and_tables_may_be_those_of_excel(tmp_path):
    make(tmp_path, *(f"{number}.png" for number in range(4)))
    table = "image,fold,label\n0,train,x\n1,train,y\n2,dev,x\n3,test,y\n"
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "t.csv").write_text(table, encoding=encoding)
        parts, _, said = found(tmp_path, labels="t.csv")
        assert parts["test"] == {"y": ["3.png"]} and parts["validation"] == {"x": ["2.png"]} and "by its column" in said


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ("image,label,is_valid\n0,a,True\n1,a,False\n2,b,False\n3,b,\n", {"training": 3, "validation": 1}),
        ("image,label,is_valid,is_test\n0,a,1,0\n1,a,0,1\n2,b,0,0\n3,a,0,0\n", {"training": 2, "validation": 1, "test": 1}),
        ("image,cat,dog,is_valid\n0,1,0,1\n1,0,1,0\n2,1,0,0\n3,0,1,0\n", {"training": 3, "validation": 1}),
        ("image,label,is_train\n0,a,1\n1,a,0\n2,b,1\n3,b,1\n", {"training": 3, "validation": 1}),
        ("image,label,is_valid,is_blurry\n0,a,1,0\n1,a,0,1\n2,b,0,0\n3,b,0,0\n", {"training": 3, "validation": 1}),
        ("image,label,is_train,is_valid\n0,a,1,0\n1,b,1,0\n2,a,0,1\n3,b,0,0\n", {"training": 2, "validation": 1, "test": 1}),
        ("image,is_train,is_car\n0,1,0\n1,0,1\n2,1,0\n3,1,0\n", {"training": 4}),  # a train is no part
    ],
)  # fmt: skip
def test_columns_of_true_and_false_mark_parts(tmp_path, table, parts):
    make(tmp_path, *(f"{number}.png" for number in range(4)))
    (tmp_path / "t.csv").write_text(table)
    data = find_labelled(str(tmp_path), "t.csv")
    assert {part: len(members) for part, members in data.parts.items() if members} == parts
    assert data.has_parts == (len(parts) > 1) and "is_valid" not in data.classes


def test_a_row_in_two_parts_is_refused(tmp_path):
    make(tmp_path, "1.png", "2.png")
    (tmp_path / "t.csv").write_text("image,label,is_valid,is_test\n1,a,1,1\n2,b,0,0\n")
    with pytest.raises(UsageError, match="has row 2 in no part or several by is_valid and is_test, expected one"):
        find_labelled(str(tmp_path), "t.csv")


def test_a_column_called_set_need_not_name_parts(tmp_path, capsys):
    make(tmp_path, "1.png", "2.png")
    (tmp_path / "t.csv").write_text("image,label,set\n1,a,left\n2,b,right\n")
    assert not find_labelled(str(tmp_path), "t.csv").has_parts
    assert "note: the column set of" in capsys.readouterr().out
    (tmp_path / "t.csv").write_text("image,cat,dog,set\n1,0,1,1\n2,1,0,0\n")
    assert find_labelled(str(tmp_path), "t.csv").classes == ("cat", "dog")  # nor is it a class
    (tmp_path / "t.csv").write_text("image,label,set\n1,a,left\n2,b,test\n")
    with pytest.raises(UsageError, match="has 'left' in row 2 of its column of parts"):
        find_labelled(str(tmp_path), "t.csv")


def test_a_list_in_class_names_json_is_told_and_names_nothing(tmp_path, capsys):
    make(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "class_names.json").write_text('["cat", "dog"]')
    assert found(tmp_path)[1].class_names == ("a", "b")
    assert "so it names no classes" in capsys.readouterr().out


def test_other_images_have_labels_of_their_own(tmp_path):
    old = make(tmp_path / "old", "0.png", "1.png", "2.png", "3.png")
    table = tmp_path / "old.csv"
    table.write_text("id,label\n0,dog\n1,dog\n2,cat\n3,cat\n")
    stored = FlowerParameters(data_dir=str(old), labels=str(table))
    run = RunFolder(tmp_path / "run")
    write_json(run.data, {"fingerprint": find_labelled(str(old), str(table)).fingerprint()})
    new = make(tmp_path / "new", "cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png")
    found = find_new({"data_dir": str(new)}, stored, run, "folder")
    assert [label for _, label in found.parts["training"]] == ["cat", "cat", "dog", "dog"]
    assert find_new({"data_dir": str(shutil.move(old, tmp_path / "moved"))}, stored, run, "folder") is None
    inner = dataclasses.replace(stored, labels="inner.csv")
    assert len(find_new({"data_dir": str(new)}, inner, run, "folder").classes) == 2
    (new / "inner.csv").write_text("id,label\n0,dog\n2,cat\n")
    assert len(find_new({"data_dir": str(new)}, inner, run, "folder").parts["training"]) == 2
    (new / "inner.csv").write_text(
        "id,sort\n0,dog\n2,cat\n"
    )  # which is no table of labels, and the folders are not asked instead
    with pytest.raises(UsageError, match=r"inner\.csv must have a column.* or give --labels= to take"):
        find_new({"data_dir": str(new)}, inner, run, "folder")
    with pytest.raises(UsageError, match="neither here nor in"):
        find_new({"data_dir": str(new), "labels": "gone.csv"}, stored, run, "folder")
    flags = {"data_dir": str(new), "on_bad_image": "skip"}  # which is about these images, not those of the run
    assert find_new(flags, stored, run, "folder").on_bad_image == "skip" and flags == {"version": "run"}
    # Without --version the run is that of their name, whether there is one or not, and not one of other settings.
    flags = {"data_dir": str(new)}
    assert find_new(flags, None, RunFolder(tmp_path / "resnet50-new-seed0"), "folder")
    assert flags == {"version": "resnet50-new-seed0"}


def test_a_place_beside_a_run_whose_data_set_has_none_is_that_of_other_images(tmp_path, capsys):
    new = str(make(tmp_path / "new", "cat/0.png", "dog/1.png"))
    run = RunFolder(tmp_path / "x")
    write_json(run.data, {"class_names": ["cat", "dog"], "fingerprint": "of other files"})
    for stored in (FlowerParameters(dataset="oxford102"), from_preset("demo", dataset="digits")):
        flags = {"data_dir": new}
        assert find_new(flags, stored, run, "folder").classes == ("cat", "dog") and flags == {"version": "x"}
        flags = {"data_dir": new, "test_ckpt_path": "x"}
        assert find_new(flags, stored, run, "folder").place == new and flags["dataset"] == "folder"
    assert find_new({"data_dir": new}, from_preset("fast", dataset="cifar10"), run, "cifar10") is None
    for command, mode in ((flowers.train, []), (cifar10_main, ["--mode=train"])):
        assert command.main([*mode, "--dataset=digits", f"--data_dir={new}", f"--runs_dir={tmp_path}"]) == 2
        assert f"--dataset=digits reads no --data_dir, received --data_dir={new}; leave" in capsys.readouterr().err


def test_images_that_may_be_those_of_a_run_with_changes_since_are_told(tmp_path, monkeypatch, capsys):
    photos = make(tmp_path / "photos", "cat/0.png", "dog/1.png", "dog/2.png")
    run = RunFolder(tmp_path / "x")
    write_json(run.data, {"fingerprint": find_labelled(str(photos)).fingerprint()})
    stored = FlowerParameters(data_dir="../photos")  # from a folder beside it
    (photos / "dog" / "1.png").unlink()
    monkeypatch.chdir(tmp_path)
    assert find_new({"data_dir": "photos"}, stored, run, "folder")
    said = capsys.readouterr().out
    assert "x was trained on ../photos" in said and "that it was trained on are among those tested" in said
    assert find_new({"data_dir": str(photos.rename(tmp_path / "others"))}, stored, run, "folder")
    assert capsys.readouterr().out == ""  # a run of before there were samples
    write_json(run.data, {"fingerprint": "of before", "sample": find_labelled(str(tmp_path / "others")).sample()})
    make(tmp_path / "others", "dog/3.png")
    assert find_new({"data_dir": str(tmp_path / "others")}, stored, run, "folder")
    assert "of a sample of 2 images of" in (said := capsys.readouterr().out) and ", 2 are among those of" in said
    others = make(tmp_path / "new", "cat/0.png")
    (others / "cat" / "0.png").write_bytes((others / "cat" / "0.png").read_bytes() + b"another")
    assert find_new({"data_dir": str(others)}, stored, run, "folder") and capsys.readouterr().out == ""


def test_other_images_may_have_fewer_levels_of_folders_than_those_of_the_run(tmp_path, capsys):
    new = make(tmp_path / "new", "cat/0.png", "dog/1.png")
    stored, run = FlowerParameters(data_dir=str(tmp_path), label_level=2), RunFolder(tmp_path / "x")
    assert find_new({"data_dir": str(new)}, stored, run, "folder").classes == ("cat", "dog")
    assert f"no images in folders of --label_level=2, which {run} has" in capsys.readouterr().out
    assert find_new({"data_dir": str(new), "label_level": 2}, stored, run, "folder").classes == ()


@pytest.mark.parametrize(
    "flag", ["validation_fraction=0.3", "test_fraction=0.3", "split_seed=1", "folds=5", "test_flip", "test_shifts"]
)
def test_flags_that_a_test_of_other_images_would_ignore_are_refused(tmp_path, capsys, flag):
    new = make(tmp_path / "new", "cat/0.png", "dog/1.png")
    RunFolder(tmp_path / "x").path.mkdir()
    RunFolder(tmp_path / "x").begin(from_preset("demo"), resume=False, overwrite=False)
    flags = ["--mode=test", f"--runs_dir={tmp_path}", "--version=x", "--dataset=folder", f"--data_dir={new}"]
    assert cifar10_main.main([*flags, f"--{flag}"]) == 2
    error = capsys.readouterr().err
    assert f"all images of {new} are tested" in error and f"received --{flag.partition('=')[0]}" in error


def test_runs_that_lie_among_the_images_are_passed_over(tmp_path):
    folder = make(tmp_path, "a/1.png", "b/1.png", "runs/x/figures/1.png", "runs/x/2.png", "runs/test-x/1.png")
    expected = found(make(tmp_path / "without", "a/1.png", "b/1.png"))[0]
    shutil.rmtree(tmp_path / "without")
    for name in ("x/config.json", "x/environment.json", "test-x/predictions.csv", "test-x/probabilities.npy"):
        (folder / "runs" / name).write_text("")
    parts, _, said = found(folder)
    assert parts == expected and "passed over 2 folder(s) of runs, such as runs/" in said


def test_names_within_an_archive_are_written_in_any_way(tmp_path):
    image = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), "red").save(image, "png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("./a/1.png", "/a/2.png", "b//1.png", "b/./2.png"):
            archive.writestr(name, image.getvalue())
    parts, data, _ = found(tmp_path / "x.zip")
    assert parts == {"training": {"a": ["a/1.png", "a/2.png"], "b": ["b/1.png", "b/2.png"]}}
    assert all(read_image(file, (8, 8, 3))[0, 0].tolist() == [255, 0, 0] for file, _ in data.parts["training"])


def test_a_level_beside_a_table_is_told_to_change_nothing(tmp_path):
    (make(tmp_path, "1.png", "2.png") / "t.csv").write_text("id,label\n1,a\n2,b\n")
    assert "so --label_level=2 changes nothing" in found(tmp_path, labels="t.csv", label_level=2)[2]


def test_an_archive_below_a_path_whose_letters_grow_when_made_small(tmp_path):
    place = tmp_path / "İndirilenler"
    place.mkdir()
    make(tmp_path / "set", "a/1.png", "b/2.png")
    shutil.make_archive(str(place / "photos"), "zip", tmp_path / "set")
    parts, _, _ = found(place / "photos.zip")
    (file,) = parts["training"]["a"]
    assert read_image(place / "photos.zip" / file, (10, 12, 3)).shape == (10, 12, 3)


def test_flags_of_a_split_that_the_folders_make_are_refused(tmp_path):
    whole = make(tmp_path / "whole", *(f"{name}/{i}.png" for name in "ab" for i in range(4)))
    parts = make(tmp_path / "parts", *(f"{part}/{name}/1.png" for part in ("train", "valid", "test") for name in "ab"))
    some = make(tmp_path / "some", *(f"{part}/{name}/1.png" for part in ("train", "test") for name in "ab"))
    for place, flags, refused in (
        (whole, {"validation_fraction": 0.3, "test_fraction": 0.2, "split_seed": 1}, ""),
        (parts, {"validation_fraction": 0.3}, "validation_fraction"),
        (parts, {"split_seed": 1}, "split_seed"),
        (parts, {"validation_fraction": 0.0}, ""),
        (some, {"validation_fraction": 0.3, "split_seed": 1}, ""),
        (some, {"test_fraction": 0.3}, "test_fraction"),
    ):
        config = from_preset("folder", dataset="folder", data_dir=str(place), **flags)
        if refused:
            with pytest.raises(UsageError, match=f"--{refused} splits images that have no such part"):
                folder_data.check_split_flags(config, flags)
        else:
            folder_data.check_split_flags(config, flags)
    command = [f"--data_dir={parts}", "--dataset=folder", f"--runs_dir={tmp_path}", "--test_fraction=0.3"]
    assert cifar10_main.main(["--mode=train", *command]) == 2 and not (tmp_path / "resnet20-parts").exists()


def test_a_run_does_not_go_on_with_images_that_could_not_be_read_before(tmp_path):
    run = RunFolder(tmp_path / "x")
    facts = {"class_folders": ["a"], "images": {"training": 8}, "found": "photos", "fingerprint": "f"}
    write_json(run.data, facts)
    check_same_images(run, facts)
    with pytest.raises(UsageError, match=r"expected images \{'training': 8\}, received \{'training': 9\}"):
        check_same_images(run, facts | {"images": {"training": 9}})
    with pytest.raises(UsageError, match="those of photos are others"):
        check_same_images(run, facts | {"fingerprint": "g"})
    write_json(run.data, {"class_names": ["a"]})  # of before there were these
    check_same_images(run, facts)


def test_a_class_of_one_image_is_told_what_helps():
    with pytest.raises(UsageError, match="give more images, or leave the class out"):
        hold_out([0, 1, 1, 1], {"validation_fraction": 0.1}, 0, ["a", "b"])
    with pytest.raises(UsageError, match="or a smaller --validation_fraction, or leave"):
        hold_out([0, 0, 1, 1, 1], {"validation_fraction": 0.9}, 0, ["a", "b"])


def test_names_are_the_same_however_an_umlaut_is_written(tmp_path):
    """macOS stores it as two characters, other systems and tables as one."""
    one, two = (unicodedata.normalize(form, "Möwe") for form in ("NFC", "NFD"))
    make(tmp_path, f"train/{two}/1.png", "train/b/2.png", f"valid/{one}/3.png", "valid/b/4.png")
    (tmp_path / "class_names.json").write_text(json.dumps({one: "gull", "b": "bee"}))
    data = find_labelled(str(tmp_path))
    assert data.class_names == ("gull", "bee")
    assert len(data.classes) == 2 and all((tmp_path / file).is_file() for file, _ in data.parts["training"])

    make(tmp_path / "flat", f"{two}.png", f"{one}s.png", "b.png")
    (tmp_path / "flat" / "t.csv").write_text(f"image,label\n{one}.png,x\n{two}s.png,y\nb.png,x\n")
    data = find_labelled(str(tmp_path / "flat"), labels="t.csv")
    assert sorted(label for _, label in data.parts["training"]) == ["x", "x", "y"]


def test_a_table_that_was_written_where_case_is_the_same(tmp_path):
    make(tmp_path, "a.png", "b.png", "B.png")
    (tmp_path / "t.csv").write_text("sep=,\nimage,label\nA.PNG,x\nb.png,y\nB.png,x\n")
    data = find_labelled(str(tmp_path), labels="t.csv")
    assert {file.rpartition("/")[2]: label for file, label in data.parts["training"]} == {"a.png": "x", "b.png": "y", "B.png": "x"}  # fmt: skip
