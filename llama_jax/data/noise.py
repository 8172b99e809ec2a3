"""What the native code of TensorFlow and SentencePiece prints, kept from the terminal."""

import contextlib
import multiprocessing.resource_tracker
import os
import re
import threading

# What they say of every healthy run.
NOISE = re.compile(rb"^[IE]0000 |before absl::InitializeLog|normalizer\.cc|PAD_ID=0")


@contextlib.contextmanager
def without_noise():
    """Pass on what is written to file descriptor 2, but for NOISE."""
    # Or a worker pool would start it later, and it would hold the pipe open beyond our end.
    multiprocessing.resource_tracker.ensure_running()
    terminal = os.dup(2)
    read_end, write_end = os.pipe()
    os.dup2(write_end, 2)
    os.close(write_end)

    def forward() -> None:
        with os.fdopen(read_end, "rb") as lines:
            for line in lines:
                if not NOISE.search(line):
                    os.write(terminal, line)

    thread = threading.Thread(target=forward)
    thread.start()
    try:
        yield
    finally:
        os.dup2(terminal, 2)  # which closes the pipe, and so ends the thread
        thread.join()
        os.close(terminal)
