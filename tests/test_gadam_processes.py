"""Two processes of four devices: the run of one, its checkpoints, and what goes wrong."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import gadam_problem as networks
import jax
import numpy as np
import pytest
from processes import ProcessDied, launch

from optabs.evolution import devices
from optabs.evolution.devices import connect

SCRIPT = str(pathlib.Path(networks.__file__))


def launched(file: pathlib.Path, *arguments: Any, **options: Any) -> dict[str, np.ndarray]:
    """What two processes of four devices write."""
    launch([sys.executable, SCRIPT, str(file), *map(str, arguments)], timeout=500, **options)
    return dict(np.load(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def on_two_processes(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return launched(folder / "two.npz", folder / "run")


def assert_same(ours: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert ours.keys() == wanted.keys()
    for name in ("survivors", "parents"):
        np.testing.assert_array_equal(ours[name], wanted[name])
    for name in ("losses", "trial_losses", "training_losses", "diversity"):
        np.testing.assert_allclose(ours[name], wanted[name], rtol=0, atol=1e-4)
    for name in ("w", "b", "head"):
        np.testing.assert_allclose(ours[name], wanted[name], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_the_run_of_one_process(devices: int, on_two_processes: dict[str, np.ndarray]) -> None:
    mesh = jax.make_mesh((devices,), ("population",), devices=jax.devices()[:devices])
    wanted = networks.run(learns={"mesh": mesh}, relearn=False)
    assert_same(on_two_processes, networks.whole(wanted))


@pytest.mark.slow
def test_damage_and_more_generations(folder: pathlib.Path) -> None:
    first = launched(folder / "relearned.npz", folder / "relearn", 2, "relearn")
    assert_same(first, networks.whole(networks.uninterrupted()))
    for path in (folder / "relearn" / "step_2" / "arrays" / "d").iterdir():
        path.write_bytes(b"")
    ours = launched(folder / "three.npz", folder / "relearn", 3, "relearn")
    assert_same(ours, networks.whole(networks.uninterrupted(3)))
    for name in ("survivors", "trial_losses"):
        np.testing.assert_array_equal(ours[name][:2], first[name])
    assert len(list((folder / "relearn").glob("unread_step_2_*"))) == 1
    # And one process goes on where two have been.
    alone = networks.run(checkpoint_dir=folder / "relearn", generations=4)
    assert len(alone.history["losses"]) == 4


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_coordinator_that_does_not_answer() -> None:
    address = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    sentence = f"coordinator_address is {address!r}, where nobody answers (Connection refused;"
    with pytest.raises(ConnectionError, match=re.escape(sentence)) as refusal:
        connect(address, 2, 1, timeout=0.5)
    assert 0.4 < time.monotonic() - started < 30
    assert str(refusal.value).count(". ") == 0


def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(ConnectionError, match=r"'no\.invalid:1234', where nobody answers"):
        connect("no.invalid:1234", 2, 1, timeout=20.0)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="where process 0 cannot listen"):
            connect(address, 2, 0)


def test_a_late_coordinator_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    address, joined = f"127.0.0.1:{free_port()}", []
    monkeypatch.setattr(
        devices.jax.distributed, "initialize", lambda *given, **named: joined.append(given)
    )

    def listen() -> None:
        time.sleep(0.5)
        with socket.create_server(("127.0.0.1", int(address.split(":")[1]))) as server:
            server.accept()[0].close()

    late = threading.Thread(target=listen)
    late.start()
    connect(address, 2, 1, timeout=60)
    late.join()
    assert joined == [(address, 2, 1)]


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    address, joined = f"127.0.0.1:{free_port()}", []
    monkeypatch.setattr(
        devices.jax.distributed, "initialize", lambda *given, **named: joined.append(given)
    )
    for name, value in ((devices.ADDRESS, address), (devices.COUNT, "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(devices.NUMBER, "0")
    connect()
    assert joined == [(address, 3, 0)]
    monkeypatch.setenv(devices.COUNT, "many")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is 'many'; set it to a whole num"):
        connect()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((None, 2, 0), "coordinator_address is None; pass the host and port of process 0, su"),
        (("localhost", 2, 0), "coordinator_address is 'localhost'; pass the host and port of"),
        (("host:99999", 2, 0), "coordinator_address is 'host:99999'; pass the host and port"),
        (("h:1", 2, 2), "num_processes is 2 and process_id is 2; pass whole numbers, process"),
        (
            ("h:1", 2, None),
            "num_processes is 2 and process_id is None; pass whole numbers, pr",
        ),
        (("h:1", 0, 0), "num_processes is 0 and process_id is 0; pass whole numbers, process"),
    ],
)
def test_arguments_that_cannot_be_used(
    given: Any, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (devices.ADDRESS, devices.COUNT, devices.NUMBER):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        connect(*given)


def test_no_arguments_and_no_cluster() -> None:
    """In a process of its own: jax looks for a cluster only before it has any devices."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    root = str(pathlib.Path(SCRIPT).parents[1])
    program = "from optabs.evolution.devices import connect; connect(timeout=5)"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": root},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ended.stderr.strip().splitlines()[-1] == (
        "ValueError: num_processes and process_id are None, and jax finds no cluster here; "
        "pass coordinator_address, num_processes and process_id."
    )


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), True])
def test_a_timeout_that_cannot_be_used(timeout: Any) -> None:
    with pytest.raises(ValueError, match=f"timeout is {timeout!r}; pass a number of seconds"):
        connect("h:1", 2, 0, timeout=timeout)


PEER = """
import os, sys, time
print("hello of", os.environ["JAX_PROCESS_ID"], flush=True)
if os.environ["JAX_PROCESS_ID"] == "1":
    {ending}
time.sleep({seconds})
"""


@pytest.mark.parametrize(
    ("ending", "sentence"),
    [
        ("sys.exit('out of memory')", "process 1 of 2 ended with code 1 (out of memory); the"),
        ("os.kill(os.getpid(), 9)", "process 1 of 2 was killed by signal 9; the others were"),
    ],
)
def test_where_a_peer_dies_the_others_are_stopped(
    ending: str, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    program = PEER.format(ending=ending, seconds=600)
    with pytest.raises(ProcessDied, match=re.escape(sentence)):
        launch([sys.executable, "-c", program])
    assert time.monotonic() - started < 60
    assert capfd.readouterr().out in ("hello of 0\n", "")


def test_time_is_up() -> None:
    program = PEER.format(ending="pass", seconds=600)
    with pytest.raises(ProcessDied, match=r"2 processes were not done after 0\.5 seconds and"):
        launch([sys.executable, "-c", program], timeout=0.5)


def test_what_the_first_one_writes_is_forwarded(capfd: pytest.CaptureFixture[str]) -> None:
    launch([sys.executable, "-c", PEER.format(ending="pass", seconds=0)], processes=3)
    assert capfd.readouterr().out == "hello of 0\n"


def test_processes_that_wait_for_a_dead_one_are_stopped(tmp_path: pathlib.Path) -> None:
    """As it happens: a process is killed while the others evolve."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, sys, threading, time\n"
        f"sys.path.insert(0, {os.path.dirname(SCRIPT)!r})\n"
        "from optabs.evolution.devices import connect\n"
        "connect(timeout=60)\n"
        "if os.environ['JAX_PROCESS_ID'] == '1':\n"
        "    os.kill(os.getpid(), 9)\n"
        "import gadam_problem as here\n"
        "import jax\n"
        "mesh = jax.make_mesh((jax.device_count(),), ('population',))\n"
        "here.run(learns={'mesh': mesh})\n"
    )
    with pytest.raises(ProcessDied, match="process 1 of 2 was killed by signal 9"):
        launch([sys.executable, str(script)], devices=1, timeout=120)
