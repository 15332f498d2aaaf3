"""vLLM's OpenAI server, for as long as whoever started it lives. Runs in vLLM's own environment, so it imports nothing of ours.

Arguments are the server's. Standard input is the leash: once it closes, because its owner is done or dead however it died,
the server and all of its children go. Must be started as the leader of a session of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

PATIENCE_S = 10.0  # for an orderly end


def main() -> None:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *sys.argv[1:]]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    let_go = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), let_go.set()), daemon=True).start()
    while server.poll() is None and not let_go.wait(0.1):
        pass
    signal.signal(signal.SIGTERM, lambda *_: None)  # meant for the others of the group
    os.killpg(0, signal.SIGTERM)
    ends = time.monotonic() + PATIENCE_S
    while server.poll() is None and time.monotonic() < ends:
        time.sleep(0.05)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
