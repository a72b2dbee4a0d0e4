"""Folder of labelled images -> manifest -> near-duplicate groups -> splits.

The manifest is a pandas DataFrame, one row an image. Each function takes one and returns a new one with
more columns, so that a notebook can stop after any line and look:

=============  ==========================================================================================
``read``       ``path``, ``name`` (path below its root), ``source``, ``subset`` (official split, if any), labels
``scan``       ``error``, ``width``, ``height``, ``sha256``, ``phash``
``group``      ``group``: one number for all near-duplicate photos
``split``      ``split``: train, val, test or excluded
=============  ==========================================================================================

Label columns keep the names of the field: ``gender`` (female/male), ``age`` (years), ``age_group`` (FairFace's
nine buckets), ``race`` (in the words of its source), ``label`` (the class folder of any other tree).
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import io
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import train_test_split
from tqdm.auto import tqdm

from faces import images
from faces.files import MACHINE_FOLDERS, atomic_write, is_litter

PUBLISHED_SPLITS = Path(images.__file__).parent.parent / "artifacts/results/splits.parquet"
AGE_GROUPS = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+")
AGE_BOUNDS = (0, 3, 10, 20, 30, 40, 50, 60, 70, 201)  # years at which they begin, and the end of the last
UTKFACE_RACES = ("White", "Black", "Asian", "Indian", "Others")
# FairFace's seven in UTKFace's five (whose "Others" are described as Hispanic, Latino and Middle Eastern).
COMMON_RACES = dict(zip(UTKFACE_RACES, UTKFACE_RACES, strict=True))
COMMON_RACES |= {"East Asian": "Asian", "Southeast Asian": "Asian"}
COMMON_RACES |= {"Latino_Hispanic": "Others", "Middle Eastern": "Others"}
SUBSETS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SUBSETS["testing"] = "test"
# Words that mean female or male, in the order of README's list. Folders and columns of other words keep their names.
GENDERS = dict.fromkeys(
    ("female", "f", "weiblich", "féminin", "femenino", "femminile", "feminino", "女", "女性"), "female"
)
GENDERS |= dict.fromkeys(("male", "m", "männlich", "masculin", "masculino", "maschile", "男", "男性"), "male")
# In a column that is called gender these mean the same, as long as there are only two: boys and men may be two classes.
PEOPLE = dict.fromkeys(("woman", "women", "girl", "girls"), "female") | dict.fromkeys(
    ("man", "men", "boy", "boys"), "male"
)
# What takes the place of an age, a gender or a person that is not known. Elsewhere they are labels like any other.
UNKNOWN = ("none", "na", "n/a", "nan", "null", "unknown", "?", "-")

# AGE_GENDER_RACE_DATE.jpg.chip.jpg; some real names lack the race or carry a damaged date, and still tell the rest.
UTKFACE_NAME = re.compile(r"^(?P<age>\d{1,3})_(?P<gender>[01])_(?:(?P<race>[0-4])_)?\d{8,}")
# The folders that UTKFace is handed out in; photos in any others were sorted by somebody.
UTKFACE_PARTS = re.compile(r"(crop[ _-]?)?part[ _-]?\d+|.*utk.*", re.IGNORECASE)
MEGLASS = "meta.txt"
FILE_COLUMNS: tuple[str, ...] = ("path", "file", "file_name", "filename", "image", "img", "image_path")
FILE_COLUMNS += ("file_path", "image_name", "name")
# Headings that are known in any spelling: File Name, AGE.
HEADINGS = {*FILE_COLUMNS, "label", "gender", "age", "real_age", "age_group", "race", "glasses"}
HEADINGS |= {"identity", "group", "split", "subset", "source"}
# Columns that the manifest has for itself; all others are labels.
OWN = {"path", "name", "source", "subset", "error", "width", "height", "sha256", "phash", "group", "split"}
OWN |= {"origin", "identity", "title"}
UNDERSTOOD = """Understood are:
  - class folders: DIR/female/*.jpg, DIR/male/*.jpg, or any tree of one folder a class (also below train/ and test/)
  - UTKFace names, in one folder: AGE_GENDER_RACE_DATE.jpg.chip.jpg
  - a CSV beside the images that names them in a column `file`, `file_name` or `path`, and their labels in others
    (FairFace's fairface_label*.csv, ChaLearn's labels.csv with file_name,real_age)
  - MeGlass's meta.txt beside its images: lines of a file's name and 1 (black glasses) or 0 (none)"""


class LayoutError(ValueError):
    """A folder whose labels cannot be read; says what was found and what is understood."""


# ---------------------------------------------------------------------------------------------------- read


def read(roots: str | os.PathLike | Iterable[str | os.PathLike]) -> pd.DataFrame:
    """Read the labels of one or several folders of images into one manifest.

    Parameters
    ----------
    roots : one folder or several. The layout of each is found out by looking (see ``UNDERSTOOD``).

    Returns
    -------
    DataFrame with ``path``, ``name``, ``source`` (the root's own name), ``subset`` and the label columns that
    the layouts give; sorted by source and name, so that the order of a directory listing has no influence.
    Nothing is opened yet: see ``scan``.

    Raises
    ------
    FileNotFoundError : a root does not exist.
    LayoutError : a root's layout is not understood, or holds no image.
    """
    roots = [roots] if isinstance(roots, (str, os.PathLike)) else list(roots)
    if not roots:
        raise LayoutError("no data folder was given")
    frames, understood = [], {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise FileNotFoundError(
                f"no such data folder: {root}. Put the images there, name another folder, "
                f"or draw a practice set: python -m faces.research.demo {root}"
            )
        frame, layout, left_out = _read_root(root, joined=len(roots) > 1)
        # Two roots of the same name must not pass for one source.
        name = root.resolve().name
        tries = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        source = next(source for source in tries if source not in understood)
        understood[source] = {"layout": layout, "left_out": left_out}
        frame.insert(2, "source", source)
        frames.append(frame)
    if any("gender" in frame for frame in frames):
        frames = [_label_as_gender(frame) for frame in frames]
    manifest = pd.concat(frames, ignore_index=True)
    if "age" in manifest:
        years = pd.cut(manifest["age"], AGE_BOUNDS, right=False, labels=AGE_GROUPS).astype(object)
        known = manifest.get("age_group", years)
        manifest["age_group"] = known.where(known.notna(), years)
    manifest = manifest.sort_values(["source", "name"], ignore_index=True)
    manifest.attrs["read"] = understood
    return manifest


def describe(manifest: pd.DataFrame, label: str | None = None) -> str:
    """What ``read`` understood, to be shown before anything is trained: layouts, counts of classes, what was left out.

    ``label`` is the column to count; by default all that are known by name.
    """
    lines = []
    for source, part in manifest.groupby("source"):
        about = manifest.attrs.get("read", {}).get(source, {"layout": "", "left_out": []})
        subsets = part["subset"].dropna().value_counts()
        official = "".join(f", {count:,} of them for {subset}" for subset, count in subsets.items())
        lines.append(f"{source}: {len(part):,} images by {about['layout']}{official}")
        if about["left_out"]:
            lines.append(f"  left out: {_listed(about['left_out'], 8)}")
    columns = [label] if label else ["gender", "age", "age_group", "race", "glasses", "label"]
    for column in (name for name in columns if name in manifest or label):
        values, missing = manifest[column].dropna(), int(manifest[column].isna().sum())
        counts = [f"{name} {count:,}" for name, count in values.value_counts().items()]
        if pd.api.types.is_float_dtype(values) and len(values):
            counts = [f"{values.min():g} to {values.max():g}"]
        none = f"; {missing:,} images have none" if missing else ""
        lines.append(f"{column}: {_listed(counts, 20) or 'none'}{none}")
    return "\n".join(lines)


def _listed(items: Sequence[str], most: int) -> str:
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _read_root(root: Path, *, joined: bool) -> tuple[pd.DataFrame, str, list[str]]:
    """The rows of one root, the layout that they were read by, and what was left out."""
    names, left_out = _walk(root)
    tables, refused = {}, []
    listed = sorted(file for file in root.iterdir() if file.suffix.lower() in (".csv", ".tsv"))
    for table in [file for file in listed if not file.name.startswith(".")] + [root / MEGLASS]:
        if table.name == MEGLASS and (tables or not table.is_file()):
            continue
        try:
            tables[table.name] = _read_table(root, table, names)
        except LayoutError as error:
            refused.append(str(error))
    if tables:
        frame = pd.concat(tables.values(), ignore_index=True)
        if unnamed := len(set(names).difference(frame["name"])):
            left_out.append(f"{unnamed:,} images that {' and '.join(tables)} do not name")
        return frame, " and ".join(tables), left_out + refused
    if not names:
        raise LayoutError(". ".join([f"{root} holds no image", *refused, UNDERSTOOD]))
    folders = _folders(names)
    classes = set(folders["label"].dropna())
    told = pd.Series(names).str.rsplit("/", n=1).str[-1].str.extract(UTKFACE_NAME)
    parts = len(classes) < 2 or "" in classes or all(map(UTKFACE_PARTS.fullmatch, classes))
    if parts and 2 * told["age"].notna().sum() > len(names):
        return _read_utkface(root, names, told), "UTKFace names", left_out + refused
    if "" in classes or len(classes) < (1 if joined else 2):
        loose = int((folders["label"] == "").sum())
        found = ", ".join(sorted(filter(None, classes))) or "none"
        told = f"{root} holds {len(names)} images, {loose} of them in no class folder (class folders found: {found}; "
        raise LayoutError(". ".join([f"{told}first image: {names[0]})", *refused, UNDERSTOOD]))
    outside = folders[folders["label"].isna()]
    if len(outside):
        subsets = " and ".join(folders["subset"].dropna().unique())
        left_out.append(f"{len(outside):,} images beside its folders of {subsets}")
        folders = folders.drop(outside.index).reset_index(drop=True)
    frame = pd.DataFrame({"path": [str(root / name) for name in folders["name"]], **folders})
    if {GENDERS.get(_word(name)) for name in classes} == {"female", "male"} and len(set(map(_word, classes))) == 2:
        frame = _label_as_gender(frame)
    return frame, "class folders", left_out + refused


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Paths below ``root`` (sorted, with forward slashes) of what goes by an image's suffix; and what was left out.

    Links to folders are followed once all others were read, each folder is read once.
    """
    names, left_out, hidden = [], [], 0
    waiting, links, seen = [""], [], set()
    while waiting or links:
        below = waiting.pop() if waiting else links.pop(0)
        real = os.path.realpath(root / below)
        if real in seen or (below and Path(os.path.realpath(root)).is_relative_to(real)):
            left_out.append(f"{below} (a link to what is read already)")
            continue
        seen.add(real)
        try:
            with os.scandir(root / below) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if not below:
                raise
            left_out.append(f"{below} ({error.strerror})")
            continue
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            shown = name.encode("utf-8", "backslashreplace").decode()
            if shown != name:
                left_out.append(f"{shown} (a name that is not UTF-8)")  # tables hold no other text
                continue
            linked, folder, file = entry.is_symlink(), False, False
            with contextlib.suppress(OSError):  # a link to itself, or to where one may not look
                folder, file = entry.is_dir(), entry.is_file()
            if folder:
                if entry.name.startswith(".") or entry.name.lower() in MACHINE_FOLDERS:
                    left_out.append(f"{name}/")
                else:
                    (links if linked else waiting).append(name)
            elif Path(entry.name).suffix.lower() in images.SUFFIXES:
                if not entry.name.startswith("."):
                    names.append(name)
                elif not is_litter(entry.name):
                    hidden += 1
            elif linked and not file:
                left_out.append(f"{name} (a link to nothing)")
    return sorted(names), sorted(left_out) + ([f"{hidden:,} hidden images"] if hidden else [])


def _folders(names: Sequence[str]) -> pd.DataFrame:
    """``name``, official ``subset`` and ``label`` by the folders that photos lie in: "" for none.

    A label is missing where a photo lies beside folders of official subsets.
    """
    parts = [name.split("/")[:-1] for name in names]
    # An archive often unpacks into one wrapping folder (or two); look below it.
    while len({tuple(part[:1]) for part in parts}) == 1 and len(parts[0]) > 1 and parts[0][0].lower() not in SUBSETS:
        parts = [part[1:] for part in parts]
    heads = [SUBSETS.get(part[0].lower()) if part else None for part in parts]
    # A class may be called train, as long as it does not stand beside test.
    if None in heads and len({*heads}) < 3:
        return pd.DataFrame({"name": names, "subset": None, "label": [part[0] if part else "" for part in parts]})
    labels = [(part[1] if len(part) > 1 else "") if head else None for head, part in zip(heads, parts, strict=True)]
    return pd.DataFrame({"name": names, "subset": heads, "label": labels}).astype(object)


def _word(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().lower()


def _label_as_gender(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with ``label`` as ``gender``, if all its labels mean female or male."""
    if "gender" in frame or "label" not in frame or not set(map(_word, frame["label"].dropna())) <= set(GENDERS):
        return frame
    genders = [None if pd.isna(name) else GENDERS[_word(name)] for name in frame["label"]]
    return frame.assign(label=genders).rename(columns={"label": "gender"})


def _read_utkface(root: Path, names: Sequence[str], told: pd.DataFrame) -> pd.DataFrame:
    """The rows of photos whose names tell ``age``, ``gender`` and ``race`` as digits, or are no such names."""
    labels = {"gender": ("male", "female"), "race": UTKFACE_RACES}
    words = {column: told[column].map({str(i): word for i, word in enumerate(labels[column])}) for column in labels}
    frame = pd.DataFrame({"path": [str(root / name) for name in names], "name": names, "subset": None})
    return frame.assign(age=told["age"].astype(float), **words)


def _meglass_rows(table: Path) -> pd.DataFrame:
    lines = [line.rsplit(maxsplit=1) for line in _text(table).splitlines() if line.strip()]
    wrong = [number for number, parts in enumerate(lines, 1) if len(parts) < 2 or parts[1] not in ("0", "1")]
    if wrong or not lines:
        raise LayoutError(f"{table}, entry {wrong[0] if wrong else 1}: not a file's name and 0 or 1")
    rows = pd.DataFrame(lines, columns=["file", "worn"])
    # 10032527@N08_identity_4@2897031059_1.jpg: the person, and one of their photos
    people = rows["file"].str.extract(r"^([^@]*@[^@]*)@", expand=False)
    return rows[["file"]].assign(glasses=rows["worn"].map({"0": "no_glasses", "1": "glasses"}), identity=people)


def _text(path: Path) -> str:
    """The text of a file in UTF-8 or UTF-16, with or without a mark, or in the code of Western Windows."""
    content = path.read_bytes()
    codes = ("utf-16",) if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ("utf-8-sig", "cp1252")
    for code in codes:
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode(code)
    return content.decode("latin-1")


def _table_of(path: Path) -> pd.DataFrame:
    """A CSV with whatever separates its columns, as text; only empty fields are missing, known headings small."""
    text = _text(path)
    if "\0" in text:
        raise LayoutError(f"{path} is not text")
    options = {"dtype": str, "keep_default_na": False, "na_values": [""], "skipinitialspace": True, "index_col": False}
    text = re.sub(r"\Asep=.\s*", "", text, flags=re.IGNORECASE)  # a line for Excel
    try:
        heads = {sep: pd.read_csv(io.StringIO(text), sep=sep, nrows=0, **options).columns for sep in ",;\t|"}
        named = [sep for sep, head in heads.items() if set(map(_heading, head)) & set(FILE_COLUMNS)]
        sep = named[0] if named else max(heads, key=lambda sep: len(heads[sep]))
        rows = pd.read_csv(io.StringIO(text), sep=sep, **options)
    except ValueError as error:  # pandas' own errors are among them
        raise LayoutError(f"{path} cannot be read as CSV: {error}") from None
    taken = set(rows.columns)
    return rows.rename(columns=lambda name: _heading(name) if _heading(name) not in taken else name.strip())


def _heading(name: str) -> str:
    """A known heading as it is written here; another as it is."""
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    return plain if plain in HEADINGS else name.strip()


def _read_table(root: Path, table: Path, found: Sequence[str]) -> pd.DataFrame:
    """What a CSV or MeGlass's list says of the files ``found`` below ``root``."""
    rows = _meglass_rows(table) if table.name == MEGLASS else _table_of(table)
    columns = [column for column in FILE_COLUMNS if column in rows]
    if not columns:
        headings = _listed(list(rows.columns), 8)
        raise LayoutError(f"{table} has no column `file`, `file_name` or `path` in its first line: {headings}")
    for column in columns:
        named = rows[rows[column].notna()].reset_index(drop=True)
        files = named[column].str.replace("\\", "/")
        folder = _folder_of(root, files.tolist(), found)
        if folder is not None:
            break
    else:
        files = rows[columns[0]].dropna()
        if files.empty:
            raise LayoutError(f"{table} names no file in its column `{columns[0]}`")
        raise LayoutError(f"{table} names {len(files)} files, the first {files.iloc[0]}, not found below {root}")
    rows = named
    names = files if folder == "." else folder + "/" + files
    frame = pd.DataFrame({"path": [str(root / name) for name in names], "name": names})
    given = rows.get("split", rows.get("subset", files.str.split("/").str[0]))
    frame["subset"] = given.astype(str).str.lower().map(SUBSETS).astype(object)
    # Names that the manifest uses for itself step aside.
    renamed = {"source": "origin", "group": "identity", "real_age": "age", "name": "title"}
    for name in rows.columns.difference([column, "path", "split", "subset"], sort=False):
        frame[renamed.get(name, name)] = class_names(rows[name])
    if not set(frame.columns) - OWN:
        raise LayoutError(f"{table} names files and says nothing of them")
    for name in {"gender", "identity"}.intersection(frame):
        frame[name] = frame[name].mask(frame[name].str.lower().isin(UNKNOWN), None)
    if "gender" in frame:
        words = frame["gender"].dropna().map(_word)
        people = GENDERS | PEOPLE
        two = words.nunique() == 2 and set(words.map(people)) == {"female", "male"}
        meant = words.map(people if two else GENDERS)
        frame["gender"] = meant.reindex(frame.index).astype(object).where(lambda known: known.notna(), frame["gender"])
    if "identity" in frame:
        # MTFL's photos from the web all have the identity "net:", a kind without a name: nobody knows who it is.
        frame["identity"] = frame["identity"].mask(frame["identity"].astype(str).str.endswith(":"), None)
    if "age" in frame:
        years = pd.to_numeric(frame["age"].str.replace(",", "."), errors="coerce")
        if 2 * years.notna().sum() >= (frame["age"].notna() & ~frame["age"].str.lower().isin(UNKNOWN)).sum():
            frame["age"] = years
        else:
            frame["age_group"] = frame.pop("age").replace("more than 70", "70+").astype(object)
    return frame


def class_names(values: pd.Series) -> pd.Series:
    """Values as names of classes, missing ones left missing: "0" and "1" for 0 and 1.0, "True" for TRUE.

    >>> class_names(pd.Series([1.0, None, 0.0])).tolist()
    ['1', None, '0']
    """
    known = values.dropna().map(lambda value: str(value).strip())
    if known.str.fullmatch(r"-?\d+(\.0+)?").all():
        known = known.str.replace(r"\.0+$", "", regex=True)
    if known.str.lower().isin(["true", "false"]).all():
        known = known.str.capitalize()
    return known.astype(object).reindex(values.index).where(values.notna(), None)


def _folder_of(root: Path, files: Sequence[str], found: Sequence[str]) -> str | None:
    """The folder below ``root`` that a CSV's names start from: some sets keep it one further down than they say."""
    for file in files[:100]:  # a few may be missing
        for folder in (".", "final_files", "images", "img"):
            if (root / folder / file).is_file():
                return folder
    for file in files[:100]:
        for name in found:
            if f"./{name}".endswith(f"/{file}"):
                return name[: -len(file) - 1] or "."
    return None


# ---------------------------------------------------------------------------------------------------- scan


def scan(manifest: pd.DataFrame, *, cache: str | os.PathLike | None = None) -> pd.DataFrame:
    """Open every image once: what cannot be decoded gets an ``error``, the rest a size and two fingerprints.

    Parameters
    ----------
    cache : folder that keeps the answers; a later scan of the same unchanged files takes them from there.

    Returns
    -------
    The manifest with ``error`` (missing where all is well), ``width`` and ``height`` in pixels, ``sha256`` of the
    file's bytes, and ``phash``, a 256-bit perceptual hash in hexadecimal (Zauner, "Implementation and Benchmarking
    of Perceptual Image Hash Functions", 2010; computed by the library imagehash).
    """
    paths = manifest["path"].tolist()
    kept = Path(cache) / f"scan-{_state_of(paths)}.csv" if cache else None
    if kept and kept.is_file():
        # As text: a hash may happen to hold digits only.
        found = pd.read_csv(kept, dtype=dict.fromkeys(("error", "sha256", "phash"), str))
    else:
        # Pillow decodes JPEG under Python's global lock, so threads would wait for each other.
        jobs = (os.cpu_count() or 1) if len(paths) > 2000 else 1
        rows = Parallel(n_jobs=jobs, batch_size=64, return_as="generator")(delayed(_look)(path) for path in paths)
        bar = tqdm(rows, total=len(paths), desc="scanning", unit="image", leave=False)
        found = pd.DataFrame(list(bar), columns=["error", "width", "height", "sha256", "phash"])
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(kept) as file:
                found.to_csv(file, index=False)
    found = found.astype({"error": object, "sha256": object, "phash": object})
    found.index = manifest.index
    joined = manifest.drop(columns=found.columns, errors="ignore").join(found)
    joined.attrs = manifest.attrs
    return joined


def _look(path: str) -> tuple[str | None, int | None, int | None, str | None, str | None]:
    try:
        content = Path(path).read_bytes()
        picture = images.open_rgb(io.BytesIO(content)) if content else images.open_rgb(path)
    except (images.ImageError, OSError) as error:
        return getattr(error, "strerror", None) or str(error), None, None, None, None
    phash = str(imagehash.phash(picture, hash_size=16))
    return None, picture.width, picture.height, hashlib.sha256(content).hexdigest(), phash


def _state_of(paths: Sequence[str]) -> str:
    """Changes when a file is added, removed, resized or rewritten."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = Path(path).stat()
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"{path}\0{state}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def usable(manifest: pd.DataFrame, *labels: str) -> pd.DataFrame:
    """The rows that can be trained or tested on: decodable, and every one of ``labels`` known.

    Raises
    ------
    LayoutError : the data have no such label at all; names those that they have.
    """
    keep = manifest["error"].isna() if "error" in manifest else pd.Series(True, manifest.index)
    for label in labels:
        if label not in manifest:
            known = [name for name in manifest if name not in OWN and not str(name).startswith("Unnamed")]
            raise LayoutError(f"the data have no label `{label}` (known: {', '.join(known) or 'none'})")
        keep &= manifest[label].notna()
    return manifest[keep]


# --------------------------------------------------------------------------------------------------- group


def group(manifest: pd.DataFrame, *, max_distance: int = 52) -> pd.DataFrame:
    """Give near-duplicate photos one ``group`` number.

    Two photos are near duplicates when their 256-bit perceptual hashes differ in at most ``max_distance`` bits, or
    when one source gives them the same ``identity``; groups are the connected components. The default lies at
    the upper end of the gap in the distances between all pairs of photos (notebook 01 draws it): copies, re-crops and
    re-coloured versions of one photo lie below it, and the few strangers joined by mistake only move to the same
    split together.

    Time grows with the square of the number of images: about 20 s for 50,000, so count on hours for a million.
    Rows that could not be decoded get groups of their own.
    """
    n = len(manifest)
    codes = hash_codes(manifest["phash"])
    readable = np.flatnonzero(manifest["phash"].notna())
    first, second, _ = near_pairs(codes[readable], max_distance)
    links = [np.stack([readable[first], readable[second]])]
    if "identity" in manifest:
        known = manifest.assign(row=range(n)).dropna(subset="identity")
        # Person 7 of one source is not person 7 of another.
        firsts = known.groupby(["source", "identity"])["row"].transform("first")
        links.append(np.stack([known["row"], firsts]))
    rows, columns = np.concatenate(links, axis=1)
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(n, n))
    return manifest.assign(group=connected_components(graph, directed=False)[1])


def hash_codes(phash: pd.Series) -> np.ndarray:
    """Hexadecimal hashes as ``uint64 [n, 4]``; missing ones as zeros."""
    text = phash.fillna("0" * 64).astype(str)
    return np.frombuffer(bytes.fromhex("".join(text)), dtype=">u8").reshape(len(text), 4).astype(np.uint64)


def near_pairs(codes: np.ndarray, max_distance: int, *, block: int = 256) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs ``i < j`` of hashes, uint64 ``[n, words]``, that differ in at most ``max_distance`` bits.

    Returns
    -------
    first, second, distance : int arrays, one entry a pair.
    """
    found = [np.empty((3, 0), int)]
    columns = np.ascontiguousarray(codes.T)
    for start in range(0, len(codes), block):
        rows = codes[start : start + block]
        distance = np.zeros((len(rows), len(codes) - start), np.uint16)
        for word, column in enumerate(columns):
            distance += np.bitwise_count(rows[:, word, None] ^ column[None, start:])
        first, second = np.nonzero(distance <= max_distance)
        upper = second > first
        first, second = first[upper], second[upper]
        found.append(np.stack([first + start, second + start, distance[first, second]]))
    first, second, distance = np.concatenate(found, axis=1).astype(int)
    return first, second, distance


# --------------------------------------------------------------------------------------------------- split


def split(
    manifest: pd.DataFrame,
    *,
    stratify: Sequence[str] = ("gender", "age_group"),
    val: float = 0.1,
    test: float = 0.15,
    seed: int = 0,
) -> pd.DataFrame:
    """Assign whole groups to train, val and test: seeded, stratified, independent of the order of the rows.

    A source that comes with an official test set (or, failing that, an official val set, as FairFace does) keeps it
    as its test split and gives up nothing else to it. Rows whose near duplicate sits in such a test set are
    ``excluded``: they may not be trained on and are not part of that test either.

    Parameters
    ----------
    stratify : label columns whose joint distribution the splits share, as far as the data have them; the source
        is always one of them.
    val, test : fractions of the groups; ``val`` also of those of a source with an official test set.

    Returns
    -------
    The manifest with ``split``: "train", "val", "test" or "excluded" (unreadable rows too).

    Raises
    ------
    ValueError : fractions below 0, or that leave nothing to train on.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise ValueError(f"val and test must be fractions that leave some training data, not {val} and {test}")
    rows = usable(manifest)
    official = _official_test(rows)
    whole = rows.sort_values(["source", "name"])
    # A group is led by its first member, whose labels stand for it.
    leaders = whole[~whole["group"].isin(whole.loc[official[whole.index], "group"])].drop_duplicates("group")
    keys = ["source", *(c for c in stratify if c in leaders)]
    known = leaders[keys].astype(object).where(leaders[keys].notna(), "")
    strata = known.astype(str).agg("/".join, axis=1)
    has_official = leaders["source"].isin(rows.loc[official, "source"].unique())
    free = leaders.loc[~has_official, "group"]
    testing = _draw(free, strata[~has_official], test, seed)
    rest = leaders[~leaders["group"].isin(testing)]
    share = np.where(has_official[rest.index], val, val / (1 - test))
    validating = set()
    for fraction in np.unique(share):
        part = rest[share == fraction]
        validating |= set(_draw(part["group"], strata[part.index], fraction, seed + 1))

    sides = dict.fromkeys(leaders["group"], "train") | dict.fromkeys(testing, "test") | dict.fromkeys(validating, "val")
    names = rows["group"].map(sides).astype(object).mask(official, "test")
    return manifest.assign(split=names.reindex(manifest.index).fillna("excluded"))


def _official_test(rows: pd.DataFrame) -> pd.Series:
    subset = rows["subset"] if "subset" in rows else pd.Series(None, rows.index, dtype=object)
    with_test = rows.loc[subset == "test", "source"].unique()
    return (subset == "test") | ((subset == "val") & ~rows["source"].isin(with_test))


def _draw(groups: pd.Series, strata: pd.Series, fraction: float, seed: int) -> list[int]:
    """A stratified, seeded sample of ``fraction`` of the groups (strata of a few join into one)."""
    size = max(1, round(fraction * len(groups)))
    if fraction == 0 or size >= len(groups):
        return []
    counts = strata.map(strata.value_counts())
    strata = strata.where(counts * fraction >= 1, "few")
    if (strata == "few").sum() == 1:
        strata = strata.replace("few", strata.mode()[0])
    stratified = strata.nunique() <= min(size, len(groups) - size) and strata.value_counts().min() > 1
    how = {"test_size": size, "random_state": seed, "stratify": strata if stratified else None}
    return train_test_split(groups.to_numpy(), **how)[1].tolist()


def prepare(
    roots: str | os.PathLike | Iterable[str | os.PathLike] | pd.DataFrame,
    *,
    stratify: Sequence[str] = ("gender", "age_group"),
    seed: int = 0,
    cache: str | os.PathLike | None = None,
) -> pd.DataFrame:
    """``read``, ``scan``, ``group`` and ``split`` in one call: the manifest that training starts from.

    ``roots`` are as for ``read``; or what it gave, where its columns had to be looked at first.
    """
    manifest = roots if isinstance(roots, pd.DataFrame) else read(roots)
    return published_split(split(group(scan(manifest, cache=cache)), stratify=stratify, seed=seed))


def published_split(manifest: pd.DataFrame) -> pd.DataFrame:
    """Put the photos of the published data sets, after ``split``, where the published models had them.

    What a random draw gives hangs on every photo beside; a table of hashed names does not. Where that makes a group
    of near duplicates straddle the splits, its training photos, and where there is a test photo its validation photos,
    are ``excluded``.
    """
    if not PUBLISHED_SPLITS.is_file():
        return manifest
    table = pd.read_parquet(PUBLISHED_SPLITS)
    known = photo_hashes(manifest).map(table.set_index("photo")["split"].astype(object))
    if known.isna().all():
        return manifest
    split = known.fillna(manifest["split"]).mask(manifest["split"] == "excluded", "excluded")
    rank = split.map({"excluded": 0, "train": 1, "val": 2, "test": 3})
    behind = rank < rank.groupby(manifest["group"]).transform("max")
    return manifest.assign(split=split.mask(behind, "excluded"))


def photo_hashes(manifest: pd.DataFrame) -> pd.Series:
    """What stands for each photo in the table of published splits: 64 bits of a hash of its source and name."""
    names = manifest["source"].astype(str) + "/" + manifest["name"]
    digests = (hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names)
    return pd.Series([int.from_bytes(digest[:8], "big") for digest in digests], manifest.index, dtype="uint64")


def extend(manifest: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """Add the photos of further sources to a manifest that is already split, without moving any photo of it.

    Parameters
    ----------
    manifest : as from ``prepare``.
    more : as from ``scan``. Its official test photos become test, all others train; none is validated on.

    Returns
    -------
    Both, with ``split`` and ``group``. A photo of ``more`` is ``excluded`` where it could not be decoded, and where
    a near duplicate of it, in ``manifest`` or in ``more`` itself, is on another side.
    """
    testing = _official_test(more)
    side = pd.Series(np.where(testing, "test", "train"), more.index, dtype=object)
    side[more["error"].notna()] = "excluded"
    both = pd.concat([manifest, group(more).assign(split=side)], ignore_index=True)
    is_more = np.arange(len(both)) >= len(manifest)
    joined = group(both)["group"]
    is_test = (both["split"] == "test").to_numpy()
    # What is validated on is learnt from too, when it comes to being tested.
    near_test = joined.isin(joined[is_test])
    near_other = joined.isin(joined[both["split"].isin(["train", "val"]).to_numpy() & ~is_more])
    near_val = joined.isin(joined[(both["split"] == "val").to_numpy()])
    leaks = (is_test & near_other) | ((both["split"] == "train") & (near_test | near_val))
    both.loc[leaks & is_more, "split"] = "excluded"
    both.loc[is_more, "group"] += manifest["group"].max() + 1
    return both


def fingerprint(manifest: pd.DataFrame) -> str:
    """A hash of what the data are, for metrics files: 16 hexadecimal digits.

    It covers every image's content, labels and split, and neither the order of rows nor where the folders lie.
    """
    columns = sorted(set(manifest.columns) - {"path", "error", "width", "height", "phash", "group"})
    rows = manifest[columns].astype(object).where(manifest[columns].notna(), "").astype(str)
    lines = sorted(rows.agg("|".join, axis=1))
    return hashlib.sha256("\n".join([",".join(columns), *lines]).encode("utf-8", "surrogateescape")).hexdigest()[:16]
