/// Receives what a migration stream says, in stream order, called synchronously from
/// ``ColoPrimaryStream/consume(_:into:)``.
///
/// Pointers are lent for the length of the call. Blocks are named by their index in the layout; offsets are bytes
/// inside the block, multiples of 4096, and always inside it. A page may come several times; the last one counts.
///
/// Order: `configuration`, `machineName`, `ramLayout`, then pages with a `ramRoundEnded` behind every section,
/// `initialStateComplete`; then for every checkpoint `checkpointRequested`, `epochBoundary`, pages,
/// `checkpointComplete`.
public protocol MigrationSink {
    /// The payload of section 07 (length, machine name, subsections) without its type byte: a restore sends the same
    /// bytes again. ``MachineConfiguration`` reads them. A sink that will not have this machine throws.
    mutating func configuration(_ bytes: UnsafeRawBufferPointer) throws(MigrationStreamError)
    /// The machine type with its version, aliases resolved ("pc-i440fx-7.2").
    mutating func machineName(_ name: String)
    /// All RAM blocks, and the id that the RAM section has in this stream.
    mutating func ramLayout(_ blocks: [RamBlockDescription], sectionID: UInt32)
    /// Contents of one page: exactly 4096 bytes, in the caller's own buffer wherever that is possible.
    mutating func page(block: Int, offset: UInt64, data: UnsafeRawBufferPointer)
    /// A page of zero bytes.
    mutating func zeroPage(block: Int, offset: UInt64)
    /// A RAM section of the initial copy is complete.
    mutating func ramRoundEnded()
    /// The initial copy is complete. `deviceState` runs from the first device section (04) through the end mark (00).
    /// QEMU now waits for ``ColoPrimaryStream/ready()``, with the guest stopped.
    mutating func initialStateComplete(deviceState: [UInt8])
    /// QEMU asks for a checkpoint and waits for ``ColoPrimaryStream/reply()``; the guest runs.
    mutating func checkpointRequested()
    /// The guest is stopped and its disks are drained: what was written before belongs to this checkpoint.
    mutating func epochBoundary()
    /// All RAM and device state of the checkpoint has come. QEMU now waits for ``ColoPrimaryStream/received()`` and
    /// ``ColoPrimaryStream/loaded()``, with the guest stopped, unless the checkpoint was acknowledged ahead.
    mutating func checkpointComplete(deviceState: [UInt8])
}
