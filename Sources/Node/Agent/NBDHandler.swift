import Link
import Logging
import NBD
import NIOCore
import Units

/// The agent's end of one NBD connection of QEMU's mirror: answers from memory, at once, whatever the secondary does.
final class NBDHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private let core: AgentCore
    private var session: NBDServerSession
    private var requests: MirrorRequests
    private var rest = ByteBuffer()
    private var output: [UInt8] = []

    init(core: AgentCore, exports: [NBDExport]) {
        self.core = core
        session = NBDServerSession(exports: exports)
        requests = MirrorRequests(core: core)
        output.reserveCapacity(4096)
    }

    func channelActive(context: ChannelHandlerContext) {
        session.start(output: &output)
        writeOutput(context)
        context.fireChannelActive()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        var input = unwrapInboundIn(data)
        if rest.readableBytes > 0 {
            rest.writeBuffer(&input)
            swap(&rest, &input)
            rest.clear()
        }
        do {
            while input.readableBytes > 0 {
                let consumed = try input.withUnsafeReadableBytes { bytes in
                    try session.consume(bytes, output: &output, handler: &requests)
                }
                input.moveReaderIndex(forwardBy: consumed)
                if !output.isEmpty { writeOutput(context) }
                if consumed == 0 { break }
            }
        } catch {
            core.log.warning("NBD client dropped: \(error)")
            context.close(promise: nil)
            return
        }
        if session.isFinished {
            context.close(promise: nil)
            return
        }
        if input.readableBytes > 0 {
            if input.capacity < session.bytesNeeded { input.reserveCapacity(session.bytesNeeded) }
            rest = input
        }
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        context.flush()
        core.flushSoon()
        context.fireChannelReadComplete()
    }

    private func writeOutput(_ context: ChannelHandlerContext) {
        var buffer = context.channel.allocator.buffer(capacity: output.count)
        buffer.writeBytes(output)
        output.removeAll(keepingCapacity: true)
        context.writeAndFlush(wrapOutboundOut(buffer), promise: nil)
    }

    func channelInactive(context: ChannelHandlerContext) {
        if let export = session.selectedExport {
            core.end(.mirrorLost("QEMU closed the mirror of disk '\(session.exports[export].name)'"))
        }
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        core.log.warning("NBD socket: \(error)")
        context.close(promise: nil)
    }
}

/// What the mirror asks, turned into frames of the open epoch. Nothing here can fail towards the guest.
private struct MirrorRequests: NBDRequestHandler {
    let core: AgentCore

    /// The disk's contents are not here; a mirror never asks for them.
    func read(export: Int, offset: UInt64, into memory: UnsafeMutableRawBufferPointer) -> NBDErrno? {
        core.log.error("QEMU read \(memory.count) bytes at \(offset) from the mirror target, which cannot be read")
        return .io
    }

    func write(export: Int, offset: UInt64, bytes: UnsafeRawBufferPointer, fua: Bool) -> NBDErrno? {
        core.diskWrite(disk: export, offset: offset, bytes: bytes)
        return nil
    }

    func zero(export: Int, range: ByteRange, mayPunchHole: Bool, fast: Bool, fua: Bool) -> NBDErrno? {
        if !range.isEmpty { core.diskExtent(.zeroes(disk: export, range: range)) }
        return nil
    }

    func trim(export: Int, range: ByteRange, fua: Bool) -> NBDErrno? {
        if !range.isEmpty { core.diskExtent(.discard(disk: export, range: range)) }
        return nil
    }

    /// A flush promises nothing beyond what every write already has: it is safe once its epoch is committed.
    func flush(export: Int) -> NBDErrno? { nil }
}
