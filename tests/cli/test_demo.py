"""`hf-cifar demo`: what it refuses, and how it ends."""

import shutil
import signal
import socket
import sys
import time

import httpx
import pytest
from helpers.command import start_hf_cifar
from helpers.made_up_run import METRICS, card_of

pytest.importorskip("gradio")
pytest.importorskip("pytorch_grad_cam")


@pytest.fixture
def run(tiny, tmp_path):
    """A folder with what a finished run has, whose data is not at hand."""
    folder = tmp_path / "run"
    shutil.copytree(tiny("vit"), folder)
    card_of(folder, METRICS)
    (folder / "recipe.yaml").write_text("dataset_name: nowhere/nothing\n")
    (folder / ".hf_cifar.json").write_text('{"files": []}')
    return folder


def test_a_folder_that_is_no_finished_run(tiny, tmp_path, refused):
    for folder in (tiny("vit"), tmp_path / "missing"):
        assert "it is no folder of a finished run; name one" in refused("demo", folder)


def test_a_port_that_cant_be_had(run, refused):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refused("demo", run, "--port", port)
    assert f"--port {port}: Address already in use; name another port" in line
    assert "--port 70000: it must be 1 to 65535" in refused("demo", run, "--port", 70_000)


@pytest.mark.parametrize("package", ["gradio", "pytorch_grad_cam"])
def test_without_the_extra(package, run, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # Python's mark of what is absent
    line = refused("demo", run)
    assert package in line and "pip install 'hf-cifar[demo]'" in line


@pytest.mark.slow
def test_ctrl_c_ends_it_and_no_other_machine_was_called(run, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with (
        socket.create_server(("127.0.0.1", 0)) as proxy,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        port = free.getsockname()[1]
        free.close()
        # Whatever goes to another machine by HTTP would come here.
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environment = {"HTTP_PROXY": address, "HTTPS_PROXY": address, "ALL_PROXY": address}
        environment |= {"TMPDIR": str(temporary), "HF_HUB_OFFLINE": ""}
        process = start_hf_cifar("demo", run, "--port", port, environment=environment)
        assert process.stdout.readline() == f"http://127.0.0.1:{port} shows {run}; Ctrl-C ends it\n"
        with httpx.Client(trust_env=False, timeout=60) as client:
            assert client.get(f"http://127.0.0.1:{port}/").status_code == 200
            assert list(temporary.glob("hf-cifar-demo-*"))
            with client.stream("GET", f"http://127.0.0.1:{port}/gradio_api/heartbeat/abc"):
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)
        proxy.settimeout(0.2)
        with pytest.raises(TimeoutError):
            proxy.accept()
    assert (process.returncode, out, err) == (0, "ended\n", "")
    assert list(temporary.iterdir()) == []
