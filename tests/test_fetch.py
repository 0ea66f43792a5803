"""`cvtune fetch` and a real server of this machine: what is brought, what a broken download leaves, what runs say."""

from __future__ import annotations

import gzip
import hashlib
import json
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.models import MobileNet_V3_Small_Weights, ResNet18_Weights

from cvtune import Choice, PerChoice, Recipe, Source, Study, When, space
from cvtune.errors import ConfigError, DataError
from cvtune.fetch import Item, fetch, model_pairs, pretrained_models, require_weights

FASHION = "torchvision:FashionMNIST"


class Server(ThreadingHTTPServer):
    """Serves `files` by name. A name in `cut` breaks off halfway, one in `silent` after the first bytes, for good."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.silent: set[str] = set()
        self.asked: list[str] = []

    def url(self, name: str = "") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.asked.append(name)
        content = self.server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self.server.cut | self.server.silent else content)
        self.wfile.flush()
        if name in self.server.silent:
            time.sleep(60)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("CVTUNE_DATA", str(tmp_path / "data"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def publish_weights(server: Server, patch: pytest.MonkeyPatch, weights: Any, stem: str) -> str:
    """Has torchvision's best weights of an architecture come from `server`. Returns the name of the file."""
    content = stem.encode() * 1000
    name = f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.files[name] = content
    patch.setattr(weights.DEFAULT.value, "url", server.url(name))
    return name


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def publish_fashion(server: Server) -> list[tuple[str, str]]:
    """300 + 100 digits in the four files of FashionMNIST. Returns their names and MD5 sums."""
    digits = load_digits()
    resources = []
    for part, rows in (("train", slice(0, 300)), ("t10k", slice(300, 400))):
        images = np.stack([cv2.resize((image * 15).astype(np.uint8), (28, 28)) for image in digits.images[rows]])
        for kind, array in (("images-idx3", images), ("labels-idx1", digits.target[rows].astype(np.uint8))):
            name = f"{part}-{kind}-ubyte.gz"
            server.files[name] = gzip.compress(idx(array))
            resources.append((name, hashlib.md5(server.files[name]).hexdigest()))
    return resources


@pytest.fixture
def fashion(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.FashionMNIST, "resources", publish_fashion(server))
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [server.url()])


def study(source: str = "digits", **values: Any) -> Study:
    return Study(data=Source(source=source), recipe=Recipe().replace(values))


def fetched(chosen: Study) -> list[Item]:
    return list(fetch(chosen))


def files_in(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir())


PRETRAINED = {"model.name": "torchvision:resnet18", "model.pretrained": "default"}


# --- which weights


def test_weights_of_base_candidates_and_choices_each_once() -> None:
    chosen = Study(
        recipe=Recipe().replace(PRETRAINED),
        space=space({"model.name": Choice("torchvision:resnet18", "torchvision:vit_b_16")}),
        candidates={
            "mine": Recipe().replace({**PRETRAINED, "model.name": "torchvision:convnext_tiny"}),
            "same": Recipe().replace({**PRETRAINED, "optim.lr": 0.01}),
            "scratch": Recipe().replace({"model.name": "torchvision:resnet50"}),
        },
    )
    assert pretrained_models(chosen) == [f"torchvision:{n}" for n in ("resnet18", "convnext_tiny", "vit_b_16")]


def test_weights_only_where_the_space_allows_them() -> None:
    domains = {
        "model.name": Choice("small_resnet", "torchvision:resnet18"),
        "model.pretrained": Choice(None, "default"),
    }
    depends = space(domains, conditions={"model.pretrained": When("model.name", "torchvision:resnet18")})
    assert pretrained_models(Study(space=depends)) == ["torchvision:resnet18"]
    assert pretrained_models(Study(space=space(domains))) == ["small_resnet", "torchvision:resnet18"]
    cases = {"torchvision:resnet18": Choice(None, "default"), "small_resnet": Choice(None, "mine.pt")}
    by_case = space({"model.name": domains["model.name"], "model.pretrained": PerChoice("model.name", cases)})
    assert model_pairs(Study(space=by_case)) == [("small_resnet", "mine.pt"), ("torchvision:resnet18", "default")]
    with pytest.raises(ConfigError, match=r"no weights are published for small_resnet.*depend on model\.name"):
        require_weights(Study(space=space(domains)))


# --- weights


def test_weights_are_brought_once_and_found_where_models_look(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = publish_weights(server, monkeypatch, ResNet18_Weights, "resnet18")
    with pytest.raises(ConfigError, match=rf"{name} is not in .*`cvtune fetch TARGET`.*{server.url(name)}"):
        require_weights(study(**PRETRAINED))
    (item,) = fetched(study(**PRETRAINED))
    assert item.where == home / "torch" / "hub" / "checkpoints" / name
    assert item.where.read_bytes() == server.files[name]
    assert str(item).endswith(f", 8 kB, SHA-256 {hashlib.sha256(server.files[name]).hexdigest()[:12]}, downloaded")
    require_weights(study(**PRETRAINED))
    (again,) = fetched(study(**PRETRAINED))
    assert not again.downloaded and str(again).endswith(", there already")
    assert server.asked == [name]


def test_a_broken_file_of_weights_is_replaced(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = publish_weights(server, monkeypatch, ResNet18_Weights, "resnet18")
    (item,) = fetched(study(**PRETRAINED))
    item.where.write_bytes(b"half")
    assert fetched(study(**PRETRAINED)) == [item]
    assert item.where.read_bytes() == server.files[name]


@pytest.mark.parametrize("fault", ["absent", "cut", "wrong"])
def test_weights_that_cannot_be_had(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    kept = publish_weights(server, monkeypatch, MobileNet_V3_Small_Weights, "mobilenet")
    name = publish_weights(server, monkeypatch, ResNet18_Weights, "resnet18")
    if fault == "absent":
        del server.files[name]
    elif fault == "cut":
        server.cut.add(name)
    else:
        server.files[name] += b"more"
    chosen = Study(
        recipe=Recipe().replace({**PRETRAINED, "model.name": "torchvision:mobilenet_v3_small"}),
        candidates={"large": Recipe().replace(PRETRAINED)},
    )
    with pytest.raises(ConfigError) as told:
        fetched(chosen)
    assert all(text in str(told.value) for text in (server.url(name), f"as {name} into", str(home / "torch")))
    assert files_in(home / "torch") == [f"hub/checkpoints/{kept}"]


# --- data


@pytest.mark.usefixtures("fashion")
def test_a_data_set_is_brought_once(server: Server, home: Path) -> None:
    (item,) = fetched(study(FASHION))
    raw = home / "data" / "FashionMNIST" / "raw"
    assert (item.where, item.downloaded) == (raw, True)
    assert files_in(home / "data") == sorted(f"FashionMNIST/raw/{name.removesuffix('.gz')}" for name in server.files)
    assert item.bytes == sum(file.stat().st_size for file in raw.iterdir())
    server.files.clear()
    (again,) = fetched(study(FASHION))
    assert (again.sha256, again.downloaded) == (item.sha256, False)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(100, np.uint8)))
    assert fetched(study(FASHION))[0].sha256 != item.sha256


@pytest.mark.usefixtures("fashion")
@pytest.mark.parametrize("fault", ["absent", "cut"])
def test_a_broken_download_leaves_nothing(server: Server, home: Path, fault: str) -> None:
    last = "t10k-labels-idx1-ubyte.gz"
    if fault == "cut":
        server.cut.add(last)
    else:
        del server.files[last]
    with pytest.raises(DataError) as told:
        fetched(study(FASHION))
    assert all(text in str(told.value) for text in (server.url(last), f"FashionMNIST/raw/{last} into {home / 'data'}"))
    assert list((home / "data").iterdir()) == []


@pytest.mark.usefixtures("fashion")
def test_archives_put_there_by_hand_are_unpacked_without_a_network(server: Server, home: Path) -> None:
    raw = home / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in server.files.items():
        (raw / name).write_bytes(content)
    server.files.clear()
    (item,) = fetched(study(FASHION))
    assert item.downloaded and not server.asked
    assert len(files_in(raw)) == 8 and not any(file.is_symlink() for file in raw.iterdir())


@pytest.mark.usefixtures("fashion")
def test_what_is_there_stays_untouched(home: Path) -> None:
    fetched(study(FASHION))
    raw = home / "data" / "FashionMNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte").unlink()
    before = (raw / "train-images-idx3-ubyte").stat()
    assert fetched(study(FASHION))[0].downloaded
    after = (raw / "train-images-idx3-ubyte").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.usefixtures("fashion")
def test_a_folder_that_cannot_be_made(home: Path) -> None:
    (home / "data").write_text("a file")
    with pytest.raises(DataError, match=r"could not be downloaded .*FileExistsError.*\$CVTUNE_DATA"):
        fetched(study(FASHION))


def test_a_disk_of_this_machine_is_told(tmp_path: Path) -> None:
    def note(where: Path) -> str:
        return Item("weights", where, "TORCH_HOME", 1, "0" * 64, True).note()

    assert note(Path("/proc/1/weights.pth")) == ""  # a kind of file system that says nothing about other machines
    if (text := note(Path("/dev/shm/weights.pth"))) or sys.platform == "linux":
        assert "(tmpfs)" in text and "set TORCH_HOME" in text


# --- the command


def cli(*arguments: str, cwd: Path, **patched: Any) -> subprocess.CompletedProcess[str]:
    """`cvtune` in a process of its own, where torchvision's FashionMNIST comes from another server."""
    return subprocess.run(
        command(*arguments, **patched), capture_output=True, text=True, check=False, timeout=300, cwd=cwd
    )


def command(*arguments: str, **patched: Any) -> list[str]:
    if not patched:
        return [sys.executable, "-m", "cvtune.cli", *arguments]
    code = "import json, sys; from torchvision.datasets import FashionMNIST; from cvtune.cli import main\n"
    code += "for name, value in json.loads(sys.argv.pop(1)).items(): setattr(FashionMNIST, name, value)\n"
    return [sys.executable, "-c", f"{code}main()", json.dumps(patched), *arguments]


def test_a_study_that_needs_nothing_says_so(home: Path) -> None:
    done = cli("fetch", "digits", cwd=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("study 'digits' needs nothing")


def test_exit_codes(home: Path) -> None:
    nowhere = {"mirrors": ["http://127.0.0.1:9/"]}
    done = cli("fetch", FASHION, cwd=home, **nowhere)
    assert done.returncode == 3 and "http://127.0.0.1:9/train-images-idx3-ubyte.gz" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    done = cli("fetch", "torchvision:FashonMNIST", cwd=home)
    assert done.returncode == 2 and f"Did you mean {FASHION!r}" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_removes_what_is_half_there(server: Server, home: Path, number: int, code: int) -> None:
    resources = publish_fashion(server)
    server.silent.add(resources[1][0])
    line = command("fetch", FASHION, resources=resources, mirrors=[server.url()])
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 300
    while resources[1][0] not in server.asked and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    assert [path.name[:7] for path in (home / "data").iterdir()] == [".fetch-"]
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode == code
    assert list((home / "data").iterdir()) == []


@pytest.mark.slow
def test_run_says_what_is_missing_then_fetch_then_run(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        *("max_epochs=1", "data.image_size=16", "model.width=4", "noise_seeds=0", "confirm.top=0"),
        *("budget.trials=1", "name=it"),
    ]
    quick = [part for setting in settings for part in ("--set", setting)]
    run = ["run", FASHION, *quick, "--storage", str(home / "studies"), "--cache", str(home / "cache")]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # exit code 4, were Ray asked for before the data
    done = cli(*run, cwd=home)
    monkeypatch.delenv("RAY_ADDRESS")
    assert done.returncode == 3, done.stderr
    assert "cvtune fetch TARGET" in done.stderr and str(home / "data") in done.stderr
    assert not (home / "studies" / "it").exists() and not (home / "data").exists()

    patched = {"resources": publish_fashion(server), "mirrors": [server.url()]}
    done = cli("fetch", FASHION, *quick, cwd=home, **patched)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"data set {FASHION}: {home / 'data' / 'FashionMNIST' / 'raw'}, ")
    assert done.stdout.endswith(", downloaded\n") and "Traceback" not in done.stderr
    asked = len(server.asked)
    done = cli(*run, cwd=home)
    assert done.returncode == 0, done.stderr
    images = json.loads((home / "studies" / "it" / "study.json").read_text())["provenance"]["images"]
    assert sum(images.values()) == 400 and images["test"] == 100 and len(server.asked) == asked


@pytest.mark.slow
def test_run_names_weights_that_are_missing(home: Path) -> None:
    pretrained = [part for name, value in PRETRAINED.items() for part in ("--set", f"{name}={value}")]
    done = cli("run", "digits", *pretrained, "--storage", str(home / "studies"), cwd=home)
    assert done.returncode == 2, done.stderr
    checkpoints = home / "torch" / "hub" / "checkpoints"
    for text in ("resnet18-f37072fd.pth", str(checkpoints), ResNet18_Weights.DEFAULT.url, "cvtune fetch TARGET"):
        assert text in done.stderr
    assert not (home / "studies" / "digits" / "study.json").exists() and not checkpoints.exists()


def test_saved_weights_are_read_from_where_fetch_puts_them(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import resnet18

    from cvtune.models import build_model

    trained = resnet18().state_dict()
    torch.save(trained, home / "saved.pth")
    content = (home / "saved.pth").read_bytes()
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.files[name] = content
    monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", server.url(name))
    fetched(study(**PRETRAINED))
    network = build_model(Recipe().replace(PRETRAINED), 3, 32)
    assert torch.equal(network.module.get_parameter("conv1.weight"), trained["conv1.weight"])
