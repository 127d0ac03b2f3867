"""What a folder of images holds, before training: `python -m flowers.describe FOLDER`.

Writes `report.html` and `images.csv`, a row for each image: part, class, size, kind of pixels, the image it equals (same bytes), the image it
resembles (perceptual hash), and why it cannot be read.
"""

import collections
import hashlib
import sys
from pathlib import Path

from flowers.settings import FlowerParameters
from resnet_study.command_line import Parser, add_flags
from resnet_study.errors import UsageError, run_command
from resnet_study.run_folder import RunFolder

_NEAR = 4  # bits of 64 in which the hashes of images that resemble each other differ at most
_BANDS = _NEAR + 1  # so many parts of a hash, of which one is equal then
_SHOWN = 100  # rows of a table on the page
_CLASSES_SHOWN, _SAMPLES, _SAMPLE_SIZE = 40, 10, 64  # of the grid; pixels


def describe(config: FlowerParameters) -> Path:
    """Reads all images of a data set once and writes what they are.

    Args:
        config: uses data_dir, labels, label_separator, label_level, value_range, runs_dir.

    Returns:
        The folder `<runs_dir>/describe-<name of the images>`.

    Raises:
        UsageError: as `find_labelled`; there are no images; or the extra `describe` is not installed.
    """
    import pandas as pd

    from resnet_study.data.folder_data import read_all
    from resnet_study.data.image_files import decode_pixels, read_content
    from resnet_study.data.labelled_files import describe_lack, find_labelled
    from resnet_study.data.pixel_values import to_colors
    from resnet_study.files import write_atomically

    try:
        import imagehash
    except ImportError as error:
        raise UsageError(
            "flowers.describe needs ImageHash, which is not installed; install the extra describe: pip install -e '.[describe]' in the clone"
        ) from error
    import PIL.Image

    found = find_labelled(config.data_dir, config.labels, config.label_level, config.label_separator)
    print("\n".join(found.found))
    members = [
        (file, part, "; ".join(label) if found.multi_label else label)
        for part, pairs in found.parts.items()
        for file, label in pairs
    ]
    members += [(file, "test", "") for file in found.unlabelled]
    if not members:
        raise UsageError(
            f"{found.place} must hold images, received {describe_lack(found, config.data_dir, config.labels)}"
        )
    folder = Path(config.runs_dir).expanduser() / f"describe-{config.folder_name}"
    _check_folder(folder, [file for file, *_ in members])
    facts: dict[str, dict] = {}
    value_range = config.reading()["value_range"]

    def read(file):
        content = read_content(Path(file))
        image, has_alpha = decode_pixels(file, content)
        bands = image.shape[2] if image.ndim == 3 else 1
        is_transparent = has_alpha and bands in (2, 4) and image[..., -1].min() < image[..., -1].max()
        kind = ("grey" if bands < 3 else "colour") + (", transparent" if is_transparent else "")
        facts[file] = {"width": image.shape[1], "height": image.shape[0], "kind": f"{kind}, {image.dtype}"} | {
            "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()
        }  # fmt: skip
        colors = to_colors(image, has_alpha, file, value_range)
        colors = colors[..., 0] if colors.shape[-1] == 1 else colors
        return imagehash.phash(PIL.Image.fromarray(colors)).hash.ravel()

    hashes, reasons = read_all([file for file, *_ in members], read, (64,))
    rows = []
    for number, (file, part, label) in enumerate(members):
        row = {"image": file, "part": part, "class": label} | facts.get(file, {})
        rows.append(row | {"cannot_be_read": reasons.get(number, "")})
    table = pd.DataFrame(rows)
    sizes = [name for name in ("width", "height", "bytes") if name in table]
    table[sizes] = table[sizes].astype("Int64")  # whole numbers, also where an image that cannot be read has none
    good = [number for number in range(len(rows)) if number not in reasons]
    same = table.loc[good].groupby("sha256")["image"].transform("first") if good else pd.Series(dtype=str)
    table["equals"] = same.where(same != table["image"].loc[good])
    parts = pd.factorize(table["part"])[0][good]
    near = {good[here]: rows[good[there]]["image"] for here, there in find_near(hashes[good], parts).items()}
    table["resembles"] = pd.Series(near, dtype=object)
    table.loc[table["equals"].notna(), "resembles"] = None
    write_atomically(folder / "images.csv", table.drop(columns=["sha256"], errors="ignore").to_csv(index=False))
    _write_page(folder / "report.html", config, found, table)
    return folder


def _check_folder(folder, files):
    """Raises UsageError where the page of a run, or of images of which none are described now, would be lost."""
    import pandas as pd

    if RunFolder(folder).holds_run():
        raise UsageError(f"{folder} must hold no run, received one; give another --runs_dir")
    before = folder / "images.csv"
    if not before.is_file():
        return
    try:
        told = pd.read_csv(before, dtype=str)["image"].fillna("")
    except (ValueError, KeyError):  # of another program
        told = []
    # The folder may have been named from another place.
    if {Path(file).resolve() for file in told}.isdisjoint(Path(file).resolve() for file in files):
        raise UsageError(f"{before} tells of other images; give another --runs_dir, or delete it")


def find_near(hashes, parts) -> dict[int, int]:
    """Images that resemble an earlier one.

    Args:
        hashes: 0 or 1, uint8 [n, 64].
        parts: int [n], the part of the data that each image is in; the images of a part stand together.

    Returns:
        {0-based number of an image: that of an earlier image whose hash differs in 4 bits at most: the nearest in another part, or where
        there is none, the nearest}.

    Example:
        import numpy as np
        from flowers.describe import find_near

        print(find_near(np.eye(64, dtype=np.uint8)[[0, 0, 1]], np.zeros(3, int)))  # {1: 0, 2: 0}
    """
    import numpy as np

    nearest: dict[int, tuple[bool, int, int]] = {}  # whether in the same part, bits, number of the other
    kinds = np.column_stack([hashes, parts])
    _, first, which = np.unique(kinds, axis=0, return_index=True, return_inverse=True)
    # Hashes that differ in few bits are equal in a band at least: only such are compared.
    for columns in np.array_split(np.arange(64), _BANDS):
        groups = collections.defaultdict(list)
        for number in np.sort(first):
            groups[hashes[number, columns].tobytes()].append(int(number))
        for group in groups.values():
            bits = hashes[group]
            for place in range(1, len(group)):
                distances = (bits[:place] != bits[place]).sum(axis=1)
                same = parts[group[:place]] == parts[group[place]]
                closest = int((distances + (_NEAR + 1) * same + 64 * (distances > _NEAR)).argmin())
                if distances[closest] <= _NEAR:
                    pair = bool(same[closest]), int(distances[closest]), group[closest]
                    nearest[group[place]] = min(pair, nearest.get(group[place], pair))
    for number, start in enumerate(first[which.ravel()]):
        if start < number:  # of the same part and hash
            here = (True, 0, int(start))
            nearest[number] = min(here, nearest.get(int(start), here))
    return {number: other for number, (*_, other) in sorted(nearest.items())}


def _write_page(path, config, found, table):
    from resnet_study.data.image_files import read_image
    from resnet_study.reports.gallery import encode_image
    from resnet_study.reports.page import write_page

    parts = dict(zip(table["image"], table["part"], strict=True))
    pairs = {}
    for column in ("equals", "resembles"):
        rows = table[table[column].notna()]
        listed = [(row["image"], row["part"], row[column], parts[row[column]]) for _, row in rows.iterrows()]
        listed.sort(key=lambda pair: pair[1] == pair[3])  # those between parts first
        pairs[column] = {
            "count": len(listed), "between": sum(one != two for _, one, _, two in listed), "rows": listed[:_SHOWN]
        }  # fmt: skip
    read = table[table["cannot_be_read"] == ""]
    shape, value_range = (_SAMPLE_SIZE, _SAMPLE_SIZE, 3), config.reading()["value_range"]

    def by_class(rows):
        if found.multi_label:  # each image with each of its classes
            rows = rows.assign(**{"class": rows["class"].str.split("; ")}).explode("class")
        return rows.groupby("class", sort=False)

    samples = [
        (
            name,
            [encode_image(read_image(Path(file), shape, value_range, "pad")) for file in files.head(_SAMPLES)],
        )
        for name, files in list(by_class(read)["image"])[:_CLASSES_SHOWN]
    ]
    counts = {
        "sizes (width x height)": (read["width"].astype(int).astype(str) + " x " + read["height"].astype(int).astype(str)) if len(read) else read["part"],
        "kinds of pixels": read["kind"] if len(read) else read["part"],
    }  # fmt: skip
    counts = {name: values.value_counts() for name, values in counts.items()}
    class_count = len(by_class(read))
    broken = table[table["cannot_be_read"] != ""]
    write_page(
        path, "describe.html", {}, title="images", name=found.place, found=found.found, pairs=pairs, samples=samples,
        parts=list(dict.fromkeys(table["part"])), broken=list(broken["cannot_be_read"])[:_SHOWN], broken_count=len(broken),
        classes=[(name, rows["part"].value_counts().to_dict()) for name, rows in by_class(table)],
        counts={name: (len(values), list(values.head(_SHOWN).items())) for name, values in counts.items()},
        class_count=class_count, is_split={"validation", "test"} <= found.parts.keys(),
    )  # fmt: skip
    for column, facts in pairs.items():
        print(
            f"{facts['count']:,} image(s) {column[:-1]} an earlier one, {facts['between']:,} of them one of another part"
        )
    if not {"validation", "test"} <= found.parts.keys() and pairs["equals"]["count"]:
        print(
            "parts that are missing are drawn by seed, so equal images may come into different ones; remove the copies first"
        )
    print(f"{len(broken):,} image(s) cannot be read")
    for reason in broken["cannot_be_read"][:3]:
        print(f"  {reason}")


def main(argv=None) -> int:
    """Runs one command. Returns the exit code, see `resnet_study.errors.run_command`."""
    return run_command(lambda: _run(argv))


def _run(argv):
    parser = Parser(
        prog="python -m flowers.describe",
        description="Says what a folder of images holds: classes, sizes, kinds, duplicates, broken files; as a page and as CSV.",
        usage="%(prog)s FOLDER [flags]",
        shown=("folder", "labels", "label_level"),
        examples="python -m flowers.describe FOLDER",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder or .zip of images, as for flowers.train")
    add_flags(parser, FlowerParameters, ("labels", "label_level", "label_separator", "value_range", "runs_dir"))
    flags = vars(parser.parse_args(argv))
    folder = describe(FlowerParameters(data_dir=flags.pop("folder"), **flags))
    print(f"written: {folder / 'report.html'}, {folder / 'images.csv'}")


if __name__ == "__main__":
    sys.exit(main())
