"""Random operations of libnbd against a server of ours, each answer compared with a model of the disk.

    libnbd_random.py URI CONTROL_SOCKET SIZE SEED COUNT

CONTROL_SOCKET is the store's control.sock, over which checkpoints and rollbacks are asked for. Ends with 0 when every
answer was right; otherwise the last line says which operation was wrong.
"""
import json
import random
import socket
import sys

import nbd

SECTOR = 512


class Control:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.lines = self.socket.makefile("rb")

    def ask(self, verb):
        self.socket.sendall(json.dumps({"verb": verb}).encode() + b"\n")
        answer = json.loads(self.lines.readline())
        if answer.get("error"):
            raise SystemExit(f"{verb}: {answer['error']}")


class Run:
    def __init__(self, uri, control, size, seed):
        self.random = random.Random(seed)
        self.size = size
        self.model = bytearray(size)
        self.saved = None
        self.control = Control(control)
        # Two connections: what one has an answer for, the other must see.
        self.handles = []
        for _ in range(2):
            handle = nbd.NBD()
            handle.add_meta_context("base:allocation")
            handle.connect_uri(uri)
            self.handles.append(handle)
        assert self.handles[0].get_size() == size, self.handles[0].get_size()
        assert self.handles[0].get_structured_replies_negotiated()

    def handle(self):
        return self.random.choice(self.handles)

    def span(self, most):
        """Offset and length; often at or around a border of sectors and blocks, and at the ends."""
        pick = self.random.random()
        unit = self.random.choice((1, 1, SECTOR, 4096, 65536))
        length = min(max(1, int(most ** self.random.random())), self.size)
        if pick < 0.5:
            length = min(max(unit, length // unit * unit), self.size)
        offset = self.random.randrange(0, self.size - length + 1)
        if self.random.random() < 0.5:
            offset = offset // unit * unit
        if self.random.random() < 0.05:
            offset = self.size - length
        return offset, length

    def data(self, length):
        kind = self.random.random()
        if kind < 0.1:
            return bytes(length)
        if kind < 0.3:
            return bytes([self.random.randrange(256)]) * length
        return self.random.randbytes(length)

    # Operations

    def write(self):
        offset, length = self.span(1 << 20)
        data = self.data(length)
        self.handle().pwrite(data, offset, self.random.choice((0, 0, nbd.CMD_FLAG_FUA)))
        self.model[offset:offset + length] = data

    def write_large(self):
        length = min(32 << 20, self.size)
        offset = self.random.randrange(0, self.size - length + 1)
        data = self.data(length)
        self.handle().pwrite(data, offset)
        self.model[offset:offset + length] = data
        self.expect(self.handle().pread(length, offset), offset)

    def write_many(self):
        """Several requests at a time that do not overlap."""
        handle, left, waiting = self.handle(), self.random.randrange(2, 40), []
        place = self.random.randrange(0, self.size)
        while left and place < self.size:
            length = min(self.random.randrange(1, 9000), self.size - place)
            data = self.data(length)
            buffer = nbd.Buffer.from_bytearray(bytearray(data))
            waiting.append((handle.aio_pwrite(buffer, place), buffer))
            self.model[place:place + length] = data
            place += length + self.random.randrange(0, 5000)
            left -= 1
        for cookie, _ in waiting:
            while not handle.aio_command_completed(cookie):
                handle.poll(-1)

    def read(self):
        offset, length = self.span(1 << 20)
        self.expect(self.handle().pread(length, offset), offset)

    def read_structured(self):
        offset, length = self.span(1 << 19)
        found, seen = bytearray(length), bytearray(length)

        def chunk(data, where, status, error):
            assert error.value == 0, error.value
            assert status in (nbd.READ_DATA, nbd.READ_HOLE), status
            start = where - offset
            count = len(data)
            assert not any(seen[start:start + count]), "two chunks overlap"
            found[start:start + count] = data
            seen[start:start + count] = b"\1" * count

        flags = self.random.choice((0, nbd.CMD_FLAG_DF))
        whole = self.handle().pread_structured(length, offset, chunk, flags)
        assert all(seen), "chunks do not cover the read"
        self.expect(whole, offset)
        self.expect(found, offset)

    def zero(self):
        offset, length = self.span(4 << 20)
        self.handle().zero(length, offset, self.random.choice((0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA)))
        self.model[offset:offset + length] = bytes(length)

    def trim(self):
        offset, length = self.span(4 << 20)
        self.handle().trim(length, offset)
        # Each sector is either as before or zero: the protocol leaves it open.
        found = self.handle().pread(length, offset)
        place = offset
        while place < offset + length:
            end = min((place // SECTOR + 1) * SECTOR, offset + length)
            piece = found[place - offset:end - offset]
            assert piece == self.model[place:end] or not any(piece), f"trim changed byte {place} to {piece[:8].hex()}"
            place = end
        self.model[offset:offset + length] = found

    def flush(self):
        self.handle().flush()

    def cache(self):
        offset, length = self.span(1 << 20)
        self.handle().cache(length, offset)

    def block_status(self):
        offset, length = self.span(self.size)
        extents = []

        def take(context, where, entries, error):
            assert context == "base:allocation" and where == offset and error.value == 0
            extents.extend(zip(entries[::2], entries[1::2]))

        self.handle().block_status(length, offset, take)
        assert extents, "no extent"
        place = offset
        for count, flags in extents:
            assert count > 0
            if flags & nbd.STATE_ZERO:
                end = min(place + count, self.size)
                assert not any(self.model[place:end]), f"{count} bytes at {place} are told to be zero and are not"
            place += count

    def checkpoint(self):
        self.control.ask("diskCheckpoint")
        self.saved = bytes(self.model)

    def roll_back(self):
        if self.saved is not None:
            self.control.ask("diskRollback")
            self.model[:] = self.saved

    def expect(self, found, offset):
        expected = self.model[offset:offset + len(found)]
        if found != expected:
            place = next(index for index, (a, b) in enumerate(zip(found, expected)) if a != b)
            raise AssertionError(
                f"byte {offset + place} of a read of {len(found)} at {offset} is {found[place]}, not {expected[place]}")

    def run(self, count):
        weighted = [
            (self.write, 30), (self.write_many, 10), (self.read, 20), (self.read_structured, 10), (self.zero, 10),
            (self.trim, 6), (self.flush, 3), (self.cache, 2), (self.block_status, 6), (self.checkpoint, 3),
            (self.roll_back, 1), (self.write_large, 0.3)]
        operations, weights = zip(*weighted)
        for number in range(count):
            operation = self.random.choices(operations, weights)[0]
            try:
                operation()
            except (AssertionError, nbd.Error) as error:
                sys.exit(f"operation {number}, {operation.__name__}: {error}")
        for handle in self.handles:
            step = 8 << 20
            for offset in range(0, self.size, step):
                self.expect(handle.pread(min(step, self.size - offset), offset), offset)
        # Of what came since the last checkpoint nothing may be left in the end.
        self.roll_back()
        self.expect(self.handles[0].pread(min(step, self.size), 0), 0)
        for handle in self.handles:
            handle.shutdown()


def main():
    uri, control, size, seed, count = sys.argv[1:]
    run = Run(uri, control, int(size), int(seed))
    try:
        run.run(int(count))
    except AssertionError as error:
        sys.exit(f"at the end: {error}")


main()
