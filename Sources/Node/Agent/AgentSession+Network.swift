import NIOCore
import NIOPosix
import QEMU
import Synchronization
import Units

/// Output commit: a filter for each network whose packets are held, between the network card and the world.
extension AgentSession {
    /// Puts the filters in. From then on the packets come to us, and pass until the first commit; a network that a gate
    /// keeps closed stays closed until then, and the gate goes when the filter is in place behind which packets wait.
    func holdNetwork(
        _ guest: ProtectedGuest, _ core: NIOLoopBound<AgentCore>, _ directory: SocketDirectory
    ) async throws {
        guard !guest.heldNetworks.isEmpty else { return }
        let gates = try await NetworkGate.all(in: relay)
        let isClosed = gates.contains { guest.heldNetworks.contains($0.netdev) }
        let closesOnLoss = options.closesNetworkOnLoss
        let log = log
        let limit = UInt64(options.budgetBytes / 4)
        try await loop.submit { [self] in
            let network = HeldNetwork(
                limit: limit, first: core.value.settings.firstEpoch, isClosed: isClosed, closesOnLoss: closesOnLoss,
                log: log)
            core.value.hold(network, progress)
        }.get()
        for (index, netdev) in guest.heldNetworks.enumerated() {
            try await insertFilter(index, netdev, core, directory)
        }
        for gate in gates { try await gate.remove(relay) }
        progress.say(
            "network: \(guest.heldNetworks.joined(separator: ", ")) "
                + (isClosed ? "stays closed until the first checkpoint" : "passes until the first checkpoint"))
    }

    /// Waits until QEMU has taken the packets that the end of the session let out; bounded, since the guardian waits.
    func settleNetwork() async {
        guard let core = core.withLock({ $0 }) else { return }
        let loop = loop
        let settled = loop.flatSubmit {
            core.value.network?.settle(within: .milliseconds(100), loop: loop) ?? loop.makeSucceededVoidFuture()
        }
        try? await settled.get()
    }

    private func insertFilter(
        _ index: Int, _ netdev: String, _ core: NIOLoopBound<AgentCore>, _ directory: SocketDirectory
    ) async throws {
        let card = try await loop.submit { () throws -> NIOLoopBound<HeldNetwork.Card> in
            guard let network = core.value.network else { throw Refused(description: "the session is over") }
            return NIOLoopBound(network.add(netdev), eventLoop: core.value.loop)
        }.get()
        let limit = options.budgetBytes / 4
        try await listen("net-out-\(index).sock", directory) { channel in
            guard let network = core.value.network else { return }
            try channel.pipeline.syncOperations.addHandler(PacketHandler(network: network, card: card.value))
        }
        try await listen("net-in-\(index).sock", directory) { channel in
            guard let network = core.value.network else { return }
            try channel.syncOptions?.setOption(.writeBufferWaterMark, value: .init(low: limit / 2, high: limit))
            try channel.pipeline.syncOperations.addHandler(PacketWay(network: network, card: card.value))
        }
        do {
            try await addSocket(GuestNames.netOut(index), directory.path("net-out-\(index).sock"))
            try await addSocket(GuestNames.netIn(index), directory.path("net-in-\(index).sock"))
            while try await !loop.submit({ card.value.isConnected }).get() {
                try await Task.sleep(for: .milliseconds(1))
            }
            try await relay.execute(
                "object-add",
                [
                    "qom-type": "filter-redirector", "id": .string(GuestNames.netFilter(index)),
                    "netdev": .string(netdev), "queue": "rx", "outdev": .string(GuestNames.netOut(index)),
                    "indev": .string(GuestNames.netIn(index)), "vnet_hdr_support": true,
                ])
        } catch let error as QMPError {
            throw Refused(description: "the packets of network '\(netdev)' cannot be held: \(error)")
        }
    }

    private func listen(
        _ name: String, _ directory: SocketDirectory, _ accept: @escaping @Sendable (any Channel) throws -> Void
    ) async throws {
        _ = try await ServerBootstrap(group: loop)
            .childChannelOption(.recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: 128 << 10))
            .childChannelInitializer { channel in channel.eventLoop.makeCompletedFuture { try accept(channel) } }
            .bind(unixDomainSocketPath: directory.path(name)).get()
        directory.protect(name)
    }

    private func addSocket(_ name: String, _ path: String) async throws(QMPError) {
        let address: JSONValue = ["type": "unix", "data": ["path": .string(path)]]
        try await relay.execute(
            "chardev-add",
            ["id": .string(name), "backend": ["type": "socket", "data": ["addr": address, "server": false]]])
    }
}

extension AgentCore {
    /// From now on packets of the guest come, and commits decide about them.
    fileprivate func hold(_ network: HeldNetwork, _ progress: Progress) {
        self.network = network
        network.onHeld = { [unowned self] in schedule() }
        network.onInForce = {
            progress.say("network: HELD: what leaves from now on is known to the replica")
        }
        network.onRelease = { progress.say($0) }
        network.onFailure = { [unowned self] words in end(.failed(words)) }
    }
}
