"""The oldest dialect that libnbd can be made to speak: no option haggling beyond the export's name, simple replies.

    libnbd_plain.py URI
"""
import sys

import nbd

handle = nbd.NBD()
handle.set_request_structured_replies(False)
handle.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE)
handle.connect_uri(sys.argv[1])
assert not handle.get_structured_replies_negotiated()
size = handle.get_size()
handle.pwrite(b"\x11" * size, 0)
handle.pwrite(b"\x22" * 10, size - 10, nbd.CMD_FLAG_FUA)
handle.flush()
assert handle.pread(size, 0) == b"\x11" * (size - 10) + b"\x22" * 10
handle.trim(4096, 0)
handle.zero(100, 4096 - 50)
assert handle.pread(100, 4096 - 50) == bytes(100)
handle.shutdown()
