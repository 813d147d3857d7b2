"""Ctrl-C in the middle of a run, and once more while the first one is dealt with: nothing hangs, and nothing stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CTRL_C = """
import _thread, random, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background may not have
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(2)
from given.inputs import latent
from given.models import SMALL, make
from given.runs import workers
import vae_core
random.seed(int(sys.argv[3]))
def press(pause):
    for _ in range(int(sys.argv[5])):
        _thread.interrupt_main()
        time.sleep(pause)
vae, z = make(SMALL), latent(1, 24)
with vae_core.kernels("winograd"):
    job = vae_core.prepare_decode(vae, z.shape)
    wanted = job.run(z)
    begin = time.perf_counter()
    job.run(z)
    took, came = time.perf_counter() - begin, 0
    for _ in range(int(sys.argv[4])):
        timer = threading.Timer(random.random() ** 3 * took, press, [random.random() ** 3 * took])
        try:
            timer.start()
            job.run(z)
            timer.join()
            time.sleep(0.01)
        except KeyboardInterrupt:
            came += 1
        ended = False
        while not ended:
            try:
                timer.join()
                time.sleep(0.001)
                ended = True
            except KeyboardInterrupt:  # the second one
                pass
        latest = time.monotonic() + 10
        while workers() and time.monotonic() < latest:
            time.sleep(0.001)
        assert not workers(), threading.enumerate()
        assert torch.get_num_threads() == 2
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [2]
    assert (job.run(z) - wanted).abs().max() < 1e-5
print(came)
"""


def check_ctrl_c(seed: int, times: int, pressed: int) -> None:
    command = [sys.executable, "-c", CTRL_C, str(ROOT), str(ROOT / "tests"), *map(str, (seed, times, pressed))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + times)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > times / 2


@pytest.mark.thorough
@pytest.mark.parametrize("pressed", [1, 2])
def test_ctrl_c_often(pressed: int) -> None:
    check_ctrl_c(0, 60, pressed)


@pytest.mark.slow
@pytest.mark.parametrize("pressed", [1, 2])
@pytest.mark.parametrize("seed", range(1, 6))
def test_ctrl_c_very_often(seed: int, pressed: int) -> None:
    check_ctrl_c(seed, 600, pressed)
