"""Every wait has an end: what the system refuses, and what it kills, end in a sentence."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hmsa.datasets import (
    DataError,
    Files,
    build_cache,
    build_class_index,
    count_pixels,
    explain_lost_worker,
    find_duplicates,
    verify_files,
)
from hmsa.datasets.exhaustion import explain_exhaustion
from hmsa.datasets.reading.builders import spread

MakeFiles = Callable[..., Files]


def many(make_files: MakeFiles, count: int = 40) -> Files:
    return make_files([np.full((12, 12), index % 4, dtype=np.uint8) for index in range(count)])


def killed_at_33(index: int) -> int:
    """Ends its own process as the kernel does for want of memory."""
    if index == 33:
        os.kill(os.getpid(), signal.SIGKILL)
    return index


@pytest.mark.parametrize("workers", [2, 4])
def test_a_killed_builder_is_named_with_its_signal(workers: int) -> None:
    begin = time.monotonic()
    with pytest.raises(
        DataError, match=r"class index: process \d+ was killed by signal 9 \(SIGKILL\)"
    ) as caught:
        list(spread(killed_at_33, range(64), workers=workers, title="class index"))
    assert time.monotonic() - begin < 30 and "data.workers" in str(caught.value)
    assert not [child for child in multiprocessing.active_children() if "Process" in child.name]


def ends_by_itself(index: int) -> int:
    if index == 5:
        os._exit(3)
    return index


def test_a_builder_that_ends_by_itself_is_named_with_its_status() -> None:
    with pytest.raises(DataError, match=r"process \d+ ended with status 3"):
        list(spread(ends_by_itself, range(64), workers=2, title="decoded cache"))


def test_a_killed_builder_leaves_neither_index_nor_cache(
    make_files: MakeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind: both caches, built again afterwards."""
    files = many(make_files)
    read = Files.read_label

    def killed(self: Files, index: int, **options: object) -> np.ndarray:
        if index == 20 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Files, "read_label", killed)
    with pytest.raises(DataError, match="SIGKILL"):
        build_class_index(files, tile=8, cache_dir=tmp_path, workers=2)
    with pytest.raises(DataError, match="SIGKILL"):
        build_cache(files, kind="zlib", cache_dir=tmp_path, workers=2, announce=lambda text: None)
    assert not [path for path in tmp_path.glob("*") if not path.name.endswith((".lock", "data"))]
    monkeypatch.setattr(Files, "read_label", read)
    assert build_class_index(files, tile=8, cache_dir=tmp_path, workers=2).num_classes == 4


def test_builders_end_with_the_process_that_started_them(root: Path) -> None:
    """Also when it is killed, in which case it can end nobody."""
    program = f"""
        import sys, time; sys.path.insert(0, {str(root)!r})
        import multiprocessing
        from hmsa.datasets.reading.builders import spread
        def slow(index):
            time.sleep(0.2)
            return index
        results = iter(spread(slow, range(400), workers=3, title="slow"))
        next(results)
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        list(results)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        children = [int(pid) for pid in process.stdout.readline().split()]
        assert len(children) == 3
        process.kill()
    deadline = time.monotonic() + 20
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, children))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def failing(index: int) -> int:
    if index == 40:
        raise ZeroDivisionError("inside")
    return index


def test_results_come_in_order_and_other_errors_keep_their_traceback() -> None:
    assert list(spread(abs, range(200), workers=3, title="abs")) == list(range(200))
    with pytest.raises(ZeroDivisionError, match="inside") as caught:
        list(spread(failing, range(64), workers=2, title="failing"))
    assert "in failing" in "".join(caught.value.__notes__)


LIMITED = """
    import sys, resource
    sys.path.insert(0, {root!r})
    import pickle
    from hmsa.datasets import Augmentation, DataError, build_class_index, build_train_loader
    files = pickle.load(open({files!r}, "rb"))
    crop = Augmentation(crop=(8, 8))
    resource.setrlimit(resource.RLIMIT_NOFILE, ({limit},) * 2)
    try:
        if {kind!r} == "loader":
            loader = build_train_loader(files, augmentation=crop, batch_size=1, workers=4)
            for epoch in range(2):
                list(loader.epoch(epoch))
        else:
            build_class_index(files, tile=8, workers=4)
    except DataError as error:
        print(error)
        sys.exit(2)
"""


@pytest.mark.parametrize(
    ("kind", "limit"), [("loader", 16), ("loader", 32), ("index", 16), ("index", 64)]
)
def test_too_few_open_files_are_a_sentence(
    root: Path, make_files: MakeFiles, tmp_path: Path, kind: str, limit: int
) -> None:
    """Neither a traceback nor a wait without end, wherever the limit is met."""
    import pickle

    stored = tmp_path / "files.pickle"
    stored.write_bytes(pickle.dumps(many(make_files)))
    program = LIMITED.format(root=str(root), files=str(stored), limit=limit, kind=kind)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    if kind == "index" and limit == 64:
        assert (done.returncode, done.stdout) == (0, "")
        return
    assert done.returncode == 2 and "files may be open at once" in done.stdout
    assert "ulimit -n" in done.stdout and done.stdout.count("\n") == 1


SMALL_MEMORY = """
    import sys, time
    sys.path.insert(0, {root!r})
    import pickle
    from hmsa.datasets import Augmentation, DataError, build_train_loader
    files = pickle.load(open({files!r}, "rb"))
    crop = Augmentation(crop=(512, 1024))
    loader = build_train_loader(files, augmentation=crop, batch_size=2, workers=2)
    try:
        for batch in loader.epoch(0):
            time.sleep(0.5)
    except DataError as error:
        print(error)
        sys.exit(2)
"""


@pytest.mark.parametrize("mebibytes", [1, 8])
def test_too_little_shared_memory_is_a_sentence(
    root: Path, make_files: MakeFiles, tmp_path: Path, mebibytes: int
) -> None:
    """Docker's /dev/shm: at the first batch, and later while the main process is elsewhere."""
    mount = f"mount -t tmpfs -o size={mebibytes}m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    import pickle

    stored = tmp_path / "files.pickle"
    stored.write_bytes(pickle.dumps(many(make_files)))
    program = textwrap.dedent(SMALL_MEMORY).format(root=str(root), files=str(stored))
    (tmp_path / "run.py").write_text(program)
    done = subprocess.run(
        [
            *("unshare", "-m", "sh", "-c"),
            f"{mount} && exec {sys.executable} -W ignore {tmp_path / 'run.py'}",
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 2 and done.stdout.count("\n") == 1 and done.stderr == ""
    assert f"/dev/shm of {mebibytes} MiB has no room for another batch" in done.stdout


def test_threads_that_cannot_be_started_are_a_sentence(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a limit on memory or processes: in every check that uses threads."""
    files = many(make_files, 3)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for check in (verify_files, count_pixels, lambda files: find_duplicates(files, files)):
        with pytest.raises(DataError, match=r"no more processes or threads .*fewer workers"):
            check(files)


def test_what_has_run_out_is_said() -> None:
    assert explain_exhaustion(ValueError("x")) is None and explain_exhaustion(OSError()) is None
    said = explain_lost_worker(RuntimeError("can't start new thread"))
    assert said is not None and "ulimit -u" in said
    assert "memory" in (explain_exhaustion(MemoryError()) or "")
    assert "ulimit -n" in (explain_exhaustion(OSError(24, "Too many open files")) or "")
