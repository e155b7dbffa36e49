# Drives a disk of 16 MiB over the export that is named by the first argument. Writes to all of it.
import errno
import sys

import nbd

MIB = 1 << 20
SIZE = 16 * MIB


def opened(structured=True):
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.set_request_structured_replies(structured)
    # What is wrong is for the server to find out.
    handle.set_strict_mode(0)
    handle.connect_uri(sys.argv[1])
    return handle


def refused(number, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, (call, arguments, error)
        return
    raise AssertionError("not refused: %s%r" % (call.__name__, arguments))


def told(handle, length, offset, flags=0):
    parts = []

    def extent(context, at, entries, error):
        assert context == nbd.CONTEXT_BASE_ALLOCATION and at == offset
        parts.extend(zip(entries[::2], entries[1::2]))

    handle.block_status(length, offset, extent, flags)
    return parts


def chunks(handle, length, offset, flags=0):
    found = []

    def chunk(data, at, status, error):
        found.append((status, at, len(data)))

    data = handle.pread_structured(length, offset, chunk, flags)
    return data, found


def single(handle):
    handle.zero(SIZE, 0)
    handle.pwrite(b"a" * 4096, 4096)
    handle.pwrite(b"b" * 3, 4097, nbd.CMD_FLAG_FUA)
    assert handle.pread(8192, 4096) == b"abbb" + b"a" * 4092 + b"\0" * 4096
    handle.flush()
    handle.zero(1000, 5000, nbd.CMD_FLAG_NO_HOLE)
    handle.zero(4096, 4096, nbd.CMD_FLAG_FAST_ZERO)
    assert handle.pread(8192, 4096) == b"\0" * 8192
    handle.pwrite(b"c" * MIB, 2 * MIB)
    handle.trim(MIB // 2, 2 * MIB, nbd.CMD_FLAG_FUA)
    handle.cache(SIZE, 0)
    handle.flush()
    assert handle.pread(MIB, 2 * MIB) == b"\0" * (MIB // 2) + b"c" * (MIB // 2)


def wrong(handle, structured):
    refused(errno.EINVAL, handle.pread, 1, SIZE)
    refused(errno.EINVAL, handle.pread, 4096, SIZE - 512)
    refused(errno.ENOSPC, handle.pwrite, b"x" * 512, SIZE - 511)
    refused(errno.ENOSPC, handle.zero, 512, SIZE - 511)
    refused(errno.EINVAL, handle.trim, 512, SIZE - 511)
    refused(errno.EINVAL, handle.cache, 512, SIZE - 511)
    refused(errno.EINVAL, handle.pwrite, b"x", 0, nbd.CMD_FLAG_DF)
    refused(errno.EINVAL, handle.zero, 512, 0, nbd.CMD_FLAG_REQ_ONE)
    if structured:
        refused(errno.EOVERFLOW, handle.pread_structured, 4 * MIB, 0, lambda *_: 0, nbd.CMD_FLAG_DF)
    assert handle.pread(MIB // 2, 5 * MIB // 2) == b"c" * (MIB // 2), "a refusal changed something, or broke the stream"


def in_pieces(handle):
    data, found = chunks(handle, 2 * MIB, 2 * MIB)
    assert data == b"\0" * (MIB // 2) + b"c" * (MIB // 2) + b"\0" * MIB
    assert {status for status, _, _ in found} == {nbd.READ_DATA, nbd.READ_HOLE}, found
    assert sum(length for status, _, length in found if status == nbd.READ_DATA) < MIB
    at = 2 * MIB
    for _, start, length in sorted(found, key=lambda part: part[1]):
        assert start == at, found
        at += length
    assert at == 4 * MIB, found
    _, found = chunks(handle, MIB, 2 * MIB, nbd.CMD_FLAG_DF)
    assert found == [(nbd.READ_DATA, 2 * MIB, MIB)], found
    parts = told(handle, SIZE, 0)
    assert sum(length for length, _ in parts) == SIZE and {flags for _, flags in parts} == {0, 3}, parts
    at = 0
    for length, flags in parts:
        assert flags == 0 or not any(handle.pread(length, at)), parts
        at += length
    assert len(told(handle, SIZE, 0, nbd.CMD_FLAG_REQ_ONE)) == 1


def many_at_once(handles):
    """Writes on one connection, a flush on another, all read on a third, with many in flight."""
    writer, flusher, reader = handles
    blocks = [(n * 65536 + n * 7, bytes([n + 1]) * (20000 + n)) for n in range(100)]
    cookies = [writer.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), at) for at, data in blocks]
    while writer.aio_in_flight() > 0:
        writer.poll(-1)
    assert all(writer.aio_command_completed(cookie) for cookie in cookies)
    flusher.flush()
    buffers = [nbd.Buffer(len(data)) for _, data in blocks]
    cookies = [reader.aio_pread(buffer, at) for buffer, (at, _) in zip(buffers, blocks)]
    while reader.aio_in_flight() > 0:
        reader.poll(-1)
    assert all(reader.aio_command_completed(cookie) for cookie in cookies)
    assert all(buffer.to_bytearray() == data for buffer, (_, data) in zip(buffers, blocks))


for structured in (True, False):
    handle = opened(structured)
    assert handle.get_size() == SIZE and handle.get_protocol() == "newstyle-fixed"
    assert handle.get_structured_replies_negotiated() == structured
    assert handle.can_df() == structured and handle.can_multi_conn() and not handle.is_read_only()
    single(handle)
    wrong(handle, structured)
    if structured:
        in_pieces(handle)
    else:
        refused(errno.EINVAL, handle.pread_structured, 512, 0, lambda *_: 0, nbd.CMD_FLAG_DF)
    handle.shutdown()
handles = [opened() for _ in range(3)]
many_at_once(handles)
for handle in handles:
    handle.shutdown()
