"""Copies of the pictures: in which folder, how drawn, never lost or overwritten, and not made twice."""

import json
import os
import tempfile
from pathlib import Path

import helpers
import numpy as np
import pytest
from PIL import Image, ImageChops

from faces import annotate, cli, copies, finding

BOXES = ((60, 100, 140, 180), (260, 110, 360, 210))
SCENES = {"red": ("red", None), "blue": (None, "blue"), "reds": ("red", "red"), "both": ("red", "blue"), "none": ()}
EDGE = Image.new("RGB", (1, 1), annotate.PALETTE[1]).getpixel((0, 0))  # the second label's


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """A folder of grey pictures with coloured squares, which the detector takes for faces."""

    def find(_, picture, scale=1.0):
        middles = [picture.getpixel(((box[0] + box[2]) // 2, (box[1] + box[3]) // 2)) for box in BOXES]
        return [finding.Face(*box, 0.9) for box, (r, g, b) in zip(BOXES, middles, strict=True) if max(r, b) - g > 50]

    monkeypatch.setattr(finding.Detector, "find", find)
    monkeypatch.chdir(tmp_path)
    for name, colours in SCENES.items():
        picture = Image.new("RGB", (400, 300), "grey")
        for box, colour in zip(BOXES, colours, strict=False):
            if colour:
                picture.paste(colour, (box[0] - 10, box[1] - 10, box[2] + 20, box[3] + 40))
        (tmp_path / "photos").mkdir(exist_ok=True)
        picture.save(tmp_path / "photos" / f"{name}.png")
    os.utime(tmp_path / "photos" / "red.png", (1_000_000_000, 1_000_000_000))
    return tmp_path / "photos"


@pytest.fixture
def run(scenes, both):
    """Runs the command line on ``photos``."""

    def label(*arguments, status=0, tasks="colour"):
        asked = ",".join(f"{task}={both}" for task in tasks.split(","))
        assert cli.label(["photos", "--tasks", asked, "--faces", "detect", *map(str, arguments)]) == status

    return label


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def stamps(folder):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_photos_are_copied_into_folders_by_one_label_or_several_with_ages_as_decades(run, scenes, tmp_path):
    run("--sort", "out")
    sorted_ = ["blue/blue.png", "no_face/none.png", "red/red.png", "red/reds.png", "several/both.png"]
    assert tree(tmp_path / "out") == sorted_
    copy, photo = tmp_path / "out/red/red.png", scenes / "red.png"
    assert copy.read_bytes() == photo.read_bytes() and copy.stat().st_mtime == photo.stat().st_mtime == 1_000_000_000
    assert not copy.samefile(photo) and len(tree(scenes)) == len(SCENES)
    options = json.loads((tmp_path / cli.RUN).read_text())["options"]
    assert options["sort"] == "out" and "link" not in options
    for folder, by in (("more", "age/colour"), ("braces", "{age}/{colour}")):
        run("--sort", folder, "--by", by, tasks="colour,age")
        assert "20-29/red/red.png" in tree(tmp_path / folder) and "00-09/blue/blue.png" in tree(tmp_path / folder)


def test_what_is_unsure_is_unknown(run, scenes, tmp_path):
    picture = Image.new("RGB", (400, 300), (90, 60, 80))
    picture.paste((140, 50, 130), BOXES[0])
    picture.save(scenes / "unsure.png")
    run("--sort", "out", "--crops", "cut", "--min-confidence", "0.99")
    assert "unknown/unsure.png" in tree(tmp_path / "out") and "unknown/unsure_1.jpg" in tree(tmp_path / "cut")


def test_other_files_of_that_name_stay_and_nothing_is_copied_twice(run, scenes, tmp_path):
    (tmp_path / "out/red").mkdir(parents=True)
    (tmp_path / "out/red/red.png").write_text("mine")
    for _ in range(2):
        run("--sort", "out")
        assert (tmp_path / "out/red/red.png").read_text() == "mine"
        assert [name for name in tree(tmp_path / "out") if name.startswith("red/red")] == [
            *("red/red (2).png", "red/red.png", "red/reds.png")
        ]
    assert (tmp_path / "out/red/red (2).png").read_bytes() == (scenes / "red.png").read_bytes()


def test_pictures_of_one_stem_do_not_take_each_others_place(run, scenes, tmp_path):
    Image.open(scenes / "both.png").save(scenes / "red.bmp")
    run("--crops", "cut", "--annotate", "seen")
    assert [name for name in tree(tmp_path / "cut") if "red_1" in name] == ["red/red_1 (2).jpg", "red/red_1.jpg"]
    assert {"red.bmp.jpg", "red.png.jpg"} <= set(tree(tmp_path / "seen"))


@pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")
def test_links_instead_of_copies(run, scenes, tmp_path, monkeypatch, capsys):
    run("--sort", "out", "--link")
    assert (tmp_path / "out/red/red.png").samefile(scenes / "red.png")

    monkeypatch.setattr(os, "link", helpers.raising(OSError(18, "Invalid cross-device link", "a", None, "b")))
    run("--sort", "far", "--link", status=2)
    assert "(Invalid cross-device link): leave --link out to copy" in capsys.readouterr().err
    run("--sort", "far", "--resume")  # what was found is kept
    assert tree(tmp_path / "far") == tree(tmp_path / "out")


def test_links_to_another_disk_are_refused_before_anything_is_labelled(run, scenes, tmp_path, capsys):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other disk")
    with tempfile.TemporaryDirectory(dir=memory) as far:
        run("--sort", far, "--link", status=2)
        complaint = f"process.py: no link from photos to {far} can be made (other disk): leave --link out to copy\n"
        assert capsys.readouterr().err == complaint
        run("--sort", far)
        assert len(tree(Path(far))) == len(SCENES)


def test_a_run_that_was_cut_short_while_copying_goes_on(run, tmp_path, monkeypatch, capsys):
    copy, done = copies._copy, []

    def full(source, place):
        if len(done) == 2:
            raise OSError(28, "No space left on device", str(place))
        done.append(source)
        copy(source, place)

    monkeypatch.setattr(copies, "_copy", full)
    run("--sort", "out", status=2)
    assert "No space left on device" in capsys.readouterr().err
    assert len(tree(tmp_path / "out")) == 2 and not (tmp_path / "process_results.json").exists()
    before = stamps(tmp_path / "out")
    monkeypatch.setattr(copies, "_copy", copy)
    run("--sort", "out", "--resume")
    assert len(tree(tmp_path / "out")) == 5 and before.items() <= stamps(tmp_path / "out").items()
    assert (tmp_path / "process_results.json").exists()


def test_copies_within_the_folder_that_is_read_are_not_read(run, scenes, tmp_path):
    for _ in range(2):
        run("--recursive", "--sort", scenes / "out", "--annotate", scenes / "seen")
        assert len(json.loads((tmp_path / "process_results.json").read_text())) == len(SCENES)


def test_a_photo_that_has_gone_is_an_error_of_its_own(run, scenes, tmp_path, monkeypatch, capsys):
    answer = cli.to_record

    def remove(*arguments):
        (scenes / "red.png").unlink(missing_ok=True)
        return answer(*arguments)

    monkeypatch.setattr(cli, "to_record", remove)
    run("--sort", "out", "--crops", "cut", status=1)
    assert json.loads((tmp_path / cli.ERRORS).read_text()) == {"red.png": "No such file or directory"}
    assert "red.png" not in json.loads((tmp_path / "process_results.json").read_text())
    assert len(tree(tmp_path / "out")) == 4 and capsys.readouterr().err.startswith("red.png: No such file")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--sort", "photos"], "cannot write copies into photos, which is read: name another folder"),
        (["--annotate", "photos/../photos"], "which is read: name another folder"),
        (["--crops", "photos/red.png"], "cannot write copies into 'photos/red.png': name a folder"),
        (["--sort", ""], "cannot write copies into '': name a folder"),
        (["--link"], "--link is for --sort"),
        (["--by", "colour"], "--by is for --sort and --crops"),
        (["--sort", "out", "--by", "colour/hats"], "--by hats: no such task is asked for; there are colour"),
        (["--list", "red", "--sort", "out"], "--list writes no file"),
    ],
)
def test_copies_that_cannot_be_made(run, scenes, tmp_path, capsys, arguments, complaint):
    run(*arguments, status=2)
    assert complaint in capsys.readouterr().err
    assert len(tree(tmp_path)) == len(SCENES)


def test_names_from_several_inputs_keep_what_tells_them_apart(scenes, both, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes((scenes / f"{'red' if name == 'one' else 'reds'}.png").read_bytes())
    places = [str(tmp_path / name) for name in ("one", "two")]
    assert cli.label([*places, "--tasks", f"colour={both}", "--faces", "detect", "--sort", "out"]) == 0
    assert tree(tmp_path / "out") == ["red/one/a.png", "red/two/a.png"]
    assert cli.label([f"{places[0]}/a.png", "--tasks", f"colour={both}", "--faces", "detect", "--crops", "cut"]) == 0
    assert tree(tmp_path / "cut") == ["red/a_1.jpg"]


def test_every_face_is_cut_out_at_the_photos_resolution(run, tmp_path):
    run("--crops", "cut")
    assert tree(tmp_path / "cut") == [
        *("blue/blue_1.jpg", "blue/both_2.jpg", "red/both_1.jpg", "red/red_1.jpg", "red/reds_1.jpg", "red/reds_2.jpg")
    ]
    crop = Image.open(tmp_path / "cut/red/red_1.jpg")
    assert crop.size == (85, 85) and np.abs(np.asarray(crop).mean((0, 1)) - (255, 0, 0)).max() < 12


def changed(seen, photo):
    """The box around what differs of a copy, which is enlarged."""
    difference = ImageChops.difference(Image.open(seen), Image.open(photo).resize((480, 360))).convert("L")
    return difference.point(lambda value: 255 * (value > 40)).getbbox()


def test_boxes_and_answers_are_drawn_and_the_rest_stays(run, scenes, tmp_path):
    run("--annotate", "seen")
    left, top, _, bottom = (edge * 1.2 for edge in BOXES[0])
    line = Image.open(tmp_path / "seen/reds.png.jpg").getpixel((int(left) + 2, int(top + bottom) // 2))
    assert np.abs(np.subtract(line, EDGE)).max() < 60
    drawn = changed(tmp_path / "seen/reds.png.jpg", scenes / "reds.png")
    assert drawn[0] >= left - 3 and drawn[3] <= BOXES[1][3] * 1.2 + 3 and drawn[1] < top - 10  # a plate above
    assert changed(tmp_path / "seen/none.png.jpg", scenes / "none.png")[:2] == (0, 0)  # "no face"


def test_pictures_of_ours_are_replaced_when_the_answers_change_and_only_then(run, tmp_path):
    run("--annotate", "seen", "--crops", "cut")
    before = stamps(tmp_path / "seen") | stamps(tmp_path / "cut")
    assert len(before) == 5 + 6
    assert b"red.png" not in (tmp_path / "seen/red.png.jpg").read_bytes()  # where the photo lies is not handed on
    (tmp_path / "seen/red.png.jpg").unlink()
    run("--annotate", "seen", "--crops", "cut")
    after = stamps(tmp_path / "seen") | stamps(tmp_path / "cut")
    assert [path.name for path in after if before[path] != after[path]] == ["red.png.jpg"]
    run("--annotate", "seen", "--crops", "cut", tasks="colour,age")
    again = stamps(tmp_path / "seen") | stamps(tmp_path / "cut")
    assert again.keys() == after.keys() and not set(again.values()) & set(after.values())


def test_a_large_picture_is_drawn_at_a_fraction_with_its_boxes_in_place(scenes, monkeypatch):
    large = Image.open(scenes / "red.png").resize((1600, 1200))
    large.save(scenes / "large.png")
    monkeypatch.setattr("faces.images.MAX_RETURNED", 200_000)
    picture, scale = annotate.opened(str(scenes / "large.png"))
    assert (picture.size, scale) == ((400, 300), 0.25)
    crop = copies._crop(picture, scale, {"box": [4 * edge for edge in BOXES[0]]})
    assert np.abs(np.asarray(crop).mean((0, 1)) - (255, 0, 0)).max() < 12


def test_a_picture_with_damaged_metadata_is_copied_like_any_other(run, scenes, tmp_path):
    content = (scenes / "red.png").read_bytes()
    damaged = helpers.chunk(b"tEXt", b"no end of the key", crc=0)
    (scenes / "red.png").write_bytes(content[:33] + damaged + content[33:])
    run("--crops", "cut", "--annotate", "seen")
    assert "red/red_1.jpg" in tree(tmp_path / "cut")


@pytest.mark.parametrize("size", [(8, 8), (90, 60), (1200, 900), (3000, 40), (60, 2000)])
@pytest.mark.parametrize("text", ["x", "a long label 100%\n34 (27-42)"])
def test_plates_are_within_the_picture_wherever_the_face_is(size, text, monkeypatch):
    plates, plate = [], annotate._plate
    monkeypatch.setattr(annotate, "_plate", lambda *given: plates.append((given[4], plate(*given))) or plates[-1][1])
    width, height = size
    boxes = [(0, 0, 5, 5), (width - 5, height - 5, width, height), (-9, -9, width + 9, height + 9), (2, 1, 3, 2)]
    faces = [{"label": text, "label_probability": 1, "box": list(box)} for box in boxes]
    drawn = annotate.draw(
        Image.new("RGB", size), 1, [*faces, {"label": "crop", "label_probability": 1}], tasks=["label"]
    )
    assert max(drawn.size) >= annotate.SMALLEST and len(plates) == 5
    for (across, down), (left, top, right, bottom) in plates:
        assert left >= 0 and top >= 0 and right - left > 5
        assert (right < across or across < 200) and (bottom < down or down < 60)


def luminance(colour):
    """The relative luminance of WCAG."""
    values = (value / 255 for value in Image.new("RGB", (1, 1), colour).getpixel((0, 0)))
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return np.dot(linear, (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("colour", [*annotate.PALETTE, annotate.OTHER])
def test_every_colour_of_a_plate_has_a_readable_ink(colour):
    dark, light = sorted([luminance(colour), luminance(annotate._ink(colour))])
    assert (light + 0.05) / (dark + 0.05) > 4.5  # what WCAG asks of text
