"""Whatever a file holds, its reader returns something sound or raises an error of ours: one sentence, no traceback.

    uv run python -m pytest tests/fuzz --hypothesis-profile=long -n 0

No reader may take long or much memory over it either: each call has BOUND_S seconds, each test MOST_MB.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import resource
import shutil
import signal
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save as save_tensors

from cvtune import checkpoint, compact, journal, model_file, study
from cvtune.data import guard, read_source
from cvtune.data.decode import decode, decode_bytes, mask_values
from cvtune.data.inspect import _header
from cvtune.errors import CvtuneError, DataError
from cvtune.history import History
from cvtune.kinds import MOST_CHANNELS
from cvtune.printable import printable
from cvtune.recipe import FIELDS, Recipe
from cvtune.sections import Source
from tests.fuzz.spoil import VALUES, altered, spoiled
from tests.report.made import write_study

BOUND_S = 30  # for one input, of kilobytes: far beyond what any takes, so that what hangs is told
MOST_MB = 400
AS_GIVEN = 30_000  # letters of an error that quotes the name or value that was given, which has up to 10,000 here
PIXELS = 2_000_000  # an image may have so many here, that drawing many is quick


@pytest.fixture(autouse=True, scope="module")
def _modest() -> Iterator[None]:
    before, most = guard.MAX_PIXELS, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    guard.MAX_PIXELS = PIXELS
    yield
    guard.MAX_PIXELS = before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < MOST_MB * 1000


@contextlib.contextmanager
def sound(allowed: type[CvtuneError] = CvtuneError, most: int = 3000) -> Iterator[None]:
    """Errors of ours pass if they are one line of `most` letters; what else is raised, or lasts too long, fails."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done after {BOUND_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, BOUND_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except allowed as error:
        assert str(error) and len(str(error)) < most and "\n" not in str(error).strip()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# --- images and masks

SMALL = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)


def encoded(form: str, pixels: np.ndarray = SMALL, **options: Any) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, form, **options)
        return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def array(pixels: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.save(file, pixels)
        return file.getvalue()


def dicom() -> bytes:
    pydicom = pytest.importorskip("pydicom")
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
    made.Rows, made.Columns, made.SamplesPerPixel, made.PhotometricInterpretation = 6, 7, 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.PixelData = SMALL[..., 0].astype(np.uint16).tobytes()
    with io.BytesIO() as file:
        made.save_as(file, enforce_file_format=True)
        return file.getvalue()


PICTURES = {
    "a.jpg": encoded("JPEG", exif=turned()),
    "b.jpg": encoded("JPEG", SMALL[..., 0], progressive=True),
    "a.png": encoded("PNG"),
    "b.png": encoded("PNG", SMALL[..., 0].astype(np.uint16) * 256),
    "c.png": encoded("PNG", SMALL[..., :2], exif=turned()),
    "a.gif": encoded("GIF"),
    "a.bmp": encoded("BMP"),
    "a.webp": encoded("WEBP", lossless=True, exif=turned()),
    "b.webp": encoded("WEBP"),
    "a.ppm": encoded("PPM"),
    "b.pgm": encoded("PPM", SMALL[..., 0].astype(np.uint16) * 256),
    "a.tif": encoded("TIFF"),
    "b.tif": encoded("TIFF", SMALL[..., 0].astype(np.uint16)),
    "c.tif": encoded("TIFF", SMALL[..., 0].astype(np.float32)),
    "d.tif": encoded("TIFF", compression="tiff_lzw"),
    "a.npy": array(SMALL),
    "b.npy": array(SMALL.astype(np.float64)),
    "a.dcm": dicom(),
}
with contextlib.suppress(KeyError, OSError):
    PICTURES |= {"avif.jpg": encoded("AVIF"), "jp2.jpg": encoded("JPEG2000")}


@given(spoiled(PICTURES))
def test_images(place: Path, made: tuple[str, bytes]) -> None:
    path = place / made[0]
    path.write_bytes(made[1])
    with sound(DataError):
        assert _header(path, is_hashed=True).width >= 0
        image = decode(path)
        assert image.ndim == 3 and image.dtype.name in ("uint8", "uint16", "float32") and np.isfinite(image).all()
        assert 0 < image.shape[0] * image.shape[1] <= PIXELS and image.shape[2] <= MOST_CHANNELS


@given(spoiled(PICTURES))
def test_images_in_memory(made: tuple[str, bytes]) -> None:
    with sound(DataError):
        decode_bytes(made[1], "\n".join(made[0]))


@given(spoiled({**PICTURES, "m.png": encoded("PNG", SMALL[..., 0] % 3), "m.npy": array(SMALL[..., 0] % 3)}))
def test_masks(place: Path, made: tuple[str, bytes]) -> None:
    path = place / made[0]
    path.write_bytes(made[1])
    with sound(DataError):
        values = mask_values(path)
        assert values.ndim == 2 and values.dtype == np.uint8 and values.size <= PIXELS


# --- tables and archives of images

FILES = {f"{name}/{i}.png": encoded("PNG", SMALL + np.uint8(i)) for name in "ab" for i in range(4)}


def zipped(method: int) -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)
        return file.getvalue()


def tarred(beside: bool) -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, content in FILES.items():
                flat = {name.replace("/", ""): content, name.replace("/", "")[:-3] + "cls": name[:1].encode()}
                for each, data in (flat if beside else {name: content}).items():
                    info = tarfile.TarInfo(each)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        return file.getvalue()


def stored(columns: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def archive_of_arrays() -> bytes:
    with io.BytesIO() as file:
        np.savez(file, x=np.stack([SMALL] * 8), y=np.arange(8) % 2, class_names=np.array(["a", "b"]))
        return file.getvalue()


PATHS, LABELS = list(FILES), [name[0] for name in FILES]
ROWS = "".join(f"{path},{path[0]},,{i},1.5\n" for i, path in enumerate(PATHS))
CSV = f"path,label,split,group,weight\n{ROWS}"
SOURCES = {
    "a.csv": CSV.replace(",split", ",other").encode(),
    "b.csv": ("path,labels\n" + "".join(f'{path},"a;b"\n' for path in PATHS)).encode(),
    "c.csv": ("path,label:a,label:b\n" + "".join(f"{path},0.3,0.7\n{path},1,0\n" for path in PATHS)).encode(),
    "d.csv": ("path,mask\n" + "".join(f"{path},{path}\n" for path in PATHS)).encode(),
    "a.parquet": stored({"path": PATHS, "label": LABELS}),
    "b.parquet": stored({"image": list(FILES.values()), "label": LABELS}),
    "a.zip": zipped(zipfile.ZIP_STORED),
    "b.zip": zipped(zipfile.ZIP_DEFLATED),
    "a.tar": tarred(False),
    "b.tar": tarred(True),
    "a.npz": archive_of_arrays(),
}


@given(spoiled(SOURCES))
def test_tables_and_archives(place: Path, made: tuple[str, bytes]) -> None:
    """Listed, then every image of it decoded."""
    path = place / made[0]
    path.write_bytes(made[1])
    for name in () if (place / "a").exists() else FILES:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(FILES[name])
    with sound():
        listing = read_source(Source(source=str(path)))
        assert all(printable(name) == name for name in (*listing.names(), *listing.classes))
        for item in listing.items():
            if not isinstance(item, np.ndarray):
                with contextlib.suppress(DataError):
                    decode(item)


CELLS = st.one_of(
    st.sampled_from(PATHS), st.sampled_from(("", "a", "b;c", "train", "1", "-1", "nan", "../x", "/x", "a\0")), st.text()
)
COLUMNS = st.sampled_from(
    ("path", "label", "labels", "mask", "split", "group", "weight", "label:a", "labels:b", "other")
)


@given(st.lists(COLUMNS, min_size=1, max_size=4, unique=True), st.lists(st.lists(CELLS, min_size=4, max_size=4)))
def test_manifests_of_any_columns_and_cells(place: Path, names: list[str], rows: list[list[str]]) -> None:
    table = [names, *(row[: len(names)] for row in rows)]
    text = "\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in table)
    (place / "any.csv").write_bytes(text.encode(errors="surrogatepass"))
    with sound():
        read_source(Source(source=str(place / "any.csv")))


# --- what a study leaves


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study folder; its journal is long enough for copies by column."""
    folder = write_study(tmp_path_factory.mktemp("studies"), trials=8)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compact, "SEGMENT", 20_000)
        compact.catch_up(folder)
    assert len(list((folder / "journal").glob("*.arrow"))) > 1
    return folder


def study_json() -> Any:
    return json.loads(study.for_data("digits").to_json({}))


@given(altered(study_json()))
def test_a_study_of_any_values(place: Path, tree: Any) -> None:
    (place / "study.json").write_text(json.dumps(tree))
    with sound(most=AS_GIVEN):
        again = study.read(place / "study.json")
        assert study.make(again.model_dump(mode="json")) == again


@given(spoiled({"study.json": json.dumps(study_json()).encode()}))
def test_a_study_of_any_bytes(place: Path, made: tuple[str, bytes]) -> None:
    (place / "study.json").write_bytes(made[1])
    with sound():
        study.read(place / "study.json")


TEXTS = st.one_of(
    st.sampled_from([json.dumps(value) for value in VALUES]),
    st.text(max_size=30),
    st.integers().map(str),
    st.sampled_from(("[" * 9_000, "9" * 5_000, "1e999", '{"a":' * 3_000, "\0", "{'a'}")),
)


@given(st.one_of(st.sampled_from(sorted(FIELDS)), st.text(max_size=20)), TEXTS)
def test_settings(name: str, value: str) -> None:
    with sound(most=AS_GIVEN):
        path, parsed = study.parse_assignment(f"{name}={value}")
        study.for_data("digits").set({path: parsed})


def line_of(content: Any) -> bytes:
    body = json.dumps(content, separators=(",", ":"))[:-1]
    return f'{body},"crc":"{zlib.crc32(body.encode()):08x}"}}\n'.encode()


def events() -> list[Any]:
    """The first of each kind of event, and some reports."""
    with pytest.MonkeyPatch.context():
        import tempfile

        with tempfile.TemporaryDirectory() as root:
            folder = write_study(Path(root), trials=3, tested=True)
            told = [dict(event) for event in journal.read(folder)]
    kinds: dict[str, int] = {}
    kept = []
    for event in told:
        kinds[event["kind"]] = kinds.get(event["kind"], 0) + 1
        if kinds[event["kind"]] <= 3:
            kept.append(event)
    return kept


def replayed(folder: Path) -> None:
    history = History()
    for event in journal.read(folder):
        history.apply(event)


@given(altered(events()))
def test_a_journal_of_any_events(place: Path, tree: Any) -> None:
    """Their checksums are right."""
    folder = place / "any"
    (folder / "journal").mkdir(parents=True, exist_ok=True)
    lines = tree if isinstance(tree, list) else [tree]
    told = b"".join(line_of(line) if isinstance(line, dict) and line else b"x\n" for line in lines)
    (folder / "journal" / "0001.jsonl").write_bytes(told)
    with sound():
        replayed(folder)


@given(spoiled({"0001.jsonl": b"".join(map(line_of, events()))}), st.sampled_from(("0001", "0002", "x", "")))
def test_a_journal_of_any_bytes(place: Path, made: tuple[str, bytes], name: str) -> None:
    folder = place / "bytes"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "journal").mkdir(parents=True)
    (folder / "journal" / f"{name}.jsonl").write_bytes(made[1])
    with sound():
        replayed(folder)


@pytest.fixture(scope="module")
def told(made: Path) -> list[dict[str, Any]]:
    """What the lines of that journal say."""
    return [dict(event) for event in journal.read(made)]


@given(st.data())
def test_copies_of_a_journal(made: Path, told: list[dict[str, Any]], data: st.DataObject) -> None:
    """Whatever bytes a copy holds, the events are those of the lines."""
    path = data.draw(st.sampled_from(sorted((made / "journal").glob("*.arrow"))))
    before = path.read_bytes()
    try:
        path.write_bytes(data.draw(spoiled({"x": before}))[1])
        with sound():
            assert [dict(event) for event in journal.read(made)] == told
    finally:
        path.write_bytes(before)


def saved() -> tuple[Any, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as root:
        checkpoint.save(Path(root) / "1", {"w": torch.zeros(2, 3), "deep": [{"b": torch.ones(1)}]}, {"step": 1})
        told = json.loads((Path(root) / "1" / checkpoint.MANIFEST).read_text())
        return told, (Path(root) / "1" / checkpoint.TENSORS).read_bytes()


MANIFEST, TENSORS = saved()


def unpacked(place: Path, told: Any, tensors: bytes) -> None:
    folder = place / "checkpoint"
    folder.mkdir(exist_ok=True)
    (folder / checkpoint.TENSORS).write_bytes(tensors)
    (folder / checkpoint.MANIFEST).write_text(json.dumps(told))
    with sound(checkpoint.CheckpointError):
        state, numbers = checkpoint.load(folder)
        assert isinstance(state, dict) and isinstance(numbers, dict)
    with sound(checkpoint.CheckpointError):
        checkpoint.evaluated(folder, packed=True)


@given(altered(MANIFEST))
def test_a_checkpoints_manifest(place: Path, tree: Any) -> None:
    unpacked(place, tree, TENSORS)


@given(spoiled({"x": TENSORS}))
def test_a_checkpoints_tensors(place: Path, made: tuple[str, bytes]) -> None:
    """Their hashes are right."""
    (place / "tensors").write_bytes(made[1])
    file = {"size": len(made[1]), "blake2b": checkpoint._digest(place / "tensors")}
    unpacked(place, {**MANIFEST, "files": {checkpoint.TENSORS: file}}, made[1])


ABOUT = model_file.About("classify", ("a", "b"), Recipe()).to_json()


@given(altered(ABOUT))
def test_what_weights_say_of_themselves(place: Path, tree: Any) -> None:
    (place / model_file.FILE).write_bytes(save_tensors({"w": torch.zeros(2)}, {model_file.KEY: json.dumps(tree)}))
    with sound(most=AS_GIVEN):
        about = model_file.read(place / model_file.FILE)
        assert about.classes and pickle.dumps(about.recipe)
