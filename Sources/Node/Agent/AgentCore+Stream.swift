import Link
import Logging
import QEMU
import RamCache
import Units

/// What QEMU's migration stream says, turned into epochs.
extension AgentCore: MigrationSink {
    func configuration(_ bytes: UnsafeRawBufferPointer) throws(MigrationStreamError) {
        configurationBytes = Array(bytes)
    }

    func machineName(_ name: String) {
        log.debug("machine \(name)")
    }

    func ramLayout(_ blocks: [RamBlockDescription], sectionID: UInt32) {
        do {
            let layout = try RamLayout(blocks: blocks.map { RamLayout.Block(name: $0.name, length: $0.length) })
            encoder.setLayout(layout)
            self.layout = layout
        } catch {
            return end(.failed("the guest's RAM layout is not supported: \(error)"))
        }
        sendLayout(
            RamLayoutPayload(
                ramSectionID: sectionID, configuration: configurationBytes,
                blocks: blocks.map { RamLayoutPayload.Block(name: $0.name, length: $0.length) }))
    }

    func page(block: Int, offset: UInt64, data: UnsafeRawBufferPointer) {
        guard let address = data.baseAddress else { return }
        take(block: block, page: UInt32(offset / UInt64(Sizes.page)), data: address)
    }

    func zeroPage(block: Int, offset: UInt64) {
        take(block: block, page: UInt32(offset / UInt64(Sizes.page)), data: nil)
    }

    func ramRoundEnded() {
        submitChunks(epoch: streamEpoch)
    }

    func initialStateComplete(deviceState: [UInt8]) {
        boundary()
        completeEpoch(deviceState: deviceState)
        owed = .ready
    }

    func checkpointRequested() {
        requested()
    }

    func epochBoundary() {
        boundary()
        // Everything is taken in whatever comes, so QEMU need not wait for us to read it: unless the guest's disks or
        // its own memory are to be looked at while it stands still.
        if !needsPause { owed = .acknowledgeAhead }
    }

    func checkpointComplete(deviceState: [UInt8]) {
        checkpointArrived(deviceState: deviceState)
    }
}
