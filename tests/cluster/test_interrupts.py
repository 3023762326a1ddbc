"""What a command makes of signals, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

from tests.cluster.test_convert import ROOT

BEGIN = """
import ctypes, os, signal, threading, time
from cluster.interrupts import Heard
heard = Heard()
heard.listen()
"""

HELD = """
try:
    with heard.held():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        print("done whole")
    print("goes on")
except KeyboardInterrupt:
    print("interrupted", heard.code)
with heard.held():
    print("clears up")
"""

DEAF = """
def look():
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    print(heard.code, heard.sent(), flush=True)
    os._exit(0)
threading.Thread(target=look).start()
mutex = ctypes.create_string_buffer(64)
for _ in range(2):  # no signal ends this wait
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def said(program: str) -> list[str]:
    command = [sys.executable, "-c", BEGIN + program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_a_signal_waits_for_what_is_to_be_done_whole() -> None:
    assert said(HELD) == ["done whole", "interrupted 143", "clears up"]


def test_a_signal_is_known_while_the_main_thread_waits_for_a_library() -> None:
    assert said(DEAF) == ["None 143"]
