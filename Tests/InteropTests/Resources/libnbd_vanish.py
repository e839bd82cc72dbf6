"""Clients that are gone while their requests are on the way.

    libnbd_vanish.py URI SEED
"""
import os
import random
import sys

import nbd

uri, seed = sys.argv[1], int(sys.argv[2])
for number in range(12):
    child = os.fork()
    if child == 0:
        choice = random.Random(seed + number)
        handle = nbd.NBD()
        handle.connect_uri(uri)
        buffers = [nbd.Buffer.from_bytearray(bytearray(choice.randbytes(1 << 20))) for _ in range(6)]
        for index, buffer in enumerate(buffers):
            handle.aio_pwrite(buffer, index << 20)
        for _ in range(choice.randrange(0, 4)):
            handle.poll(1)
        os._exit(7)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 7:
        sys.exit(f"client {number} ended with {status}")
