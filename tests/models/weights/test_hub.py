"""Weights by name: from a local hub, without a connection, and with a damaged cache."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import save_file

from se_lightning.models import create_model, load_weights
from se_lightning.models.weights import hub

LOAD = """
import sys
from se_lightning.models import create_model, load_weights
model = create_model("se_resnet20", ratio=4)
try:
    print(load_weights(model, sys.argv[1]))
    print("sum", float(model.fc.weight.detach().double().sum()))
except ValueError as error:
    print("refused:", error)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers huggingface_hub: HEAD with commit, size and hash of a file, then GET."""

    files: dict[str, bytes]

    def do_HEAD(self):
        content = self.files.get(self.path)
        if content is None:
            known = any(path.split("/resolve/")[0] in self.path for path in self.files)
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self.send_response(200)
        self.send_header("X-Repo-Commit", "0123456789012345678901234567890123456789")
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def do_GET(self):
        content = self.do_HEAD()
        if content:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def load(tmp_path):
    """Start a hub with one repository; return a function that loads from it, in a process."""
    torch.manual_seed(0)
    model = create_model("se_resnet20", ratio=4)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    files = {
        "/user/safe/resolve/main/model.safetensors": "model.safetensors",
        "/user/older/resolve/main/pytorch_model.bin": "pytorch_model.bin",
        "/user/older/resolve/v1/model.safetensors": "model.safetensors",
    }
    contents = {path: (tmp_path / file).read_bytes() for path, file in files.items()}
    handler = type("Handler", (Hub,), {"files": {**contents, "/user/empty/resolve/": b""}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"

    def run(name: str, **environment: str) -> str:
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), **environment}
        settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-c", LOAD, name],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run.sum = f"sum {float(model.fc.weight.detach().double().sum())}"
    run.cache = tmp_path / "hf"
    yield run
    server.shutdown()
    server.server_close()


def test_weights_load_by_name_and_then_from_the_cache(load):
    for name in ("user/safe", "hf-hub:user/safe", "user/older", "user/older@v1"):
        assert load.sum in load(name), name
    assert load.sum in load("user/safe", HF_HUB_OFFLINE="1")
    assert load.sum in load("user/older", HF_HUB_OFFLINE="1")


def test_without_a_connection_the_message_explains_a_manual_download(load):
    output = load("user/safe", HF_HUB_OFFLINE="1")
    assert "refused: The Hugging Face hub cannot be reached" in output
    assert "/user/safe/resolve/main/model.safetensors" in output
    assert "weights=DIR/model.safetensors" in output


def test_missing_weights_and_repositories_are_reported(load):
    assert "refused: user/empty has no weights on the hub" in load("user/empty")
    assert "refused: The Hugging Face hub refuses unknown/repository" in load("unknown/repository")


def test_a_cached_file_that_differs_from_the_hub_is_refused(load):
    load("user/safe")
    (blob,) = (load.cache / "hub" / "models--user--safe" / "blobs").iterdir()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    output = load("user/safe")
    assert "differs from user/safe on the hub: its SHA-256 is" in output


def test_without_huggingface_hub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r'pip install "se-lightning\[hub\]"'):
        load_weights(create_model("se_resnet20", ratio=4), "timm/seresnet50.a1_in1k")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("timm/seresnet50.a1_in1k", ("timm/seresnet50.a1_in1k", None)),
        ("hf_hub:timm/x@main", ("timm/x", "main")),
        ("a/b/c", None),
        ("plain", None),
    ],
)
def test_names_of_the_hub_are_recognized(name, parts):
    found = hub.NAME.fullmatch(name)
    assert (found and found.groups()) == parts
