import BlockReplica
import Testing
import Units

@Suite("Stages and epochs of a disk")
struct DiskPipelineTests {
    private func running(at epoch: UInt64 = 0) throws -> DiskPipeline {
        var pipeline = DiskPipeline()
        try pipeline.recovered(to: Epoch(epoch))
        return pipeline
    }

    @Test("nothing happens before a recovery")
    func recoveryFirst() {
        var pipeline = DiskPipeline()
        #expect(throws: PipelineError.notRecovered) { try pipeline.begin(Epoch(1), preserve: true) }
        #expect(throws: PipelineError.notRecovered) { try pipeline.commit(Epoch(1)) }
        #expect(throws: PipelineError.notRunning(.none)) { try pipeline.beginFailover() }
    }

    @Test("two epochs interleave: writes are taken for both, drained for the older, committed in order")
    func interleaving() throws {
        var pipeline = try running(at: 4)
        #expect(throws: PipelineError.epochNotNewer(Epoch(4), newest: Epoch(4))) {
            try pipeline.begin(Epoch(4), preserve: true)
        }
        try pipeline.begin(Epoch(5), preserve: true)
        try pipeline.begin(Epoch(6), preserve: true)
        try pipeline.checkWrite(Epoch(5))
        try pipeline.checkWrite(Epoch(6))
        #expect(pipeline.drainable?.epoch == Epoch(5))
        #expect(throws: PipelineError.outOfOrder(Epoch(6), first: Epoch(5))) { try pipeline.seal(Epoch(6)) }
        #expect(throws: PipelineError.notSealed(Epoch(5))) { try pipeline.commit(Epoch(5)) }
        try pipeline.seal(Epoch(5))
        #expect(throws: PipelineError.alreadySealed(Epoch(5))) { try pipeline.checkWrite(Epoch(5)) }
        #expect(pipeline.drainable?.epoch == Epoch(6))
        #expect(throws: PipelineError.notSealed(Epoch(6))) { try pipeline.commit(Epoch(6)) }
        try pipeline.seal(Epoch(6))
        #expect(pipeline.drainable == nil)
        try pipeline.commit(Epoch(6))
        #expect(pipeline.epochs.isEmpty)
        #expect(throws: PipelineError.unknownEpoch(Epoch(6))) { try pipeline.checkWrite(Epoch(6)) }
    }

    @Test("an epoch that begins while another waits for its commit always preserves")
    func preserving() throws {
        var pipeline = try running()
        try pipeline.begin(Epoch(1), preserve: false)
        try pipeline.begin(Epoch(2), preserve: false)
        #expect(pipeline.epochs.map(\.preserve) == [false, true])
    }

    @Test("a failure stops writes until the recovery, but not the commit of what was sealed before")
    func failure() throws {
        var pipeline = try running()
        try pipeline.begin(Epoch(1), preserve: false)
        try pipeline.seal(Epoch(1))
        try pipeline.begin(Epoch(2), preserve: true)
        pipeline.fail()
        #expect(throws: PipelineError.failed) { try pipeline.checkWrite(Epoch(2)) }
        #expect(throws: PipelineError.failed) { try pipeline.begin(Epoch(3), preserve: true) }
        try pipeline.commit(Epoch(1))
        try pipeline.recovered(to: Epoch(1))
        try pipeline.begin(Epoch(3), preserve: true)
    }

    @Test("a failover ends the writes; one that failed can be repeated, one that succeeded is final")
    func failover() throws {
        var pipeline = try running()
        try pipeline.begin(Epoch(1), preserve: false)
        try pipeline.beginFailover()
        #expect(throws: PipelineError.notRunning(.failover)) { try pipeline.checkWrite(Epoch(1)) }
        #expect(throws: PipelineError.notRunning(.failover)) { try pipeline.recovered(to: Epoch(1)) }
        try pipeline.endFailover(succeeded: false)
        #expect(pipeline.stage == .failoverFailed)
        try pipeline.beginFailover()
        try pipeline.endFailover(succeeded: true)
        #expect(pipeline.stage == .done)
        #expect(throws: PipelineError.notRunning(.done)) { try pipeline.recovered(to: Epoch(1)) }
        #expect(throws: PipelineError.notRunning(.done)) { try pipeline.beginFailover() }
    }
}
