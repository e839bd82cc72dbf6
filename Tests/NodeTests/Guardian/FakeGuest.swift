import Glibc
import NIOCore
import NIOPosix
import QEMU
import Synchronization

/// A QMP server that behaves like a guest under our care as far as an attach and its restoration can tell.
final class FakeGuest: Sendable {
    struct State {
        var running = true
        var status = "running"
        var migration = "none"
        var jobs: [String] = []
        var nodes: [String] = []
        var objects: [String] = []
        var chardevs: [String] = []
        /// The network of each filter among the objects.
        var netdevs: [String: String] = [:]
        /// Networks that were without any filter of ours at some time since they had one.
        var opened: Set<String> = []
        var capabilities = ["x-colo": false, "return-path": true, "events": false]
        var parameters: [String: JSONValue] = [
            "x-checkpoint-delay": 20_000, "max-bandwidth": 134_217_728, "downtime-limit": 300,
        ]
        /// The main loop hangs until this node is yanked.
        var hangsOn: String?
        /// Cancelled jobs end only when this node is yanked.
        var jobsWaitFor: String?
        var jobsAreReady = true
        /// A migration that is cancelled stays at that.
        var cancelHangs = false
        /// Commands that are never answered.
        var unanswered: Set<String> = []
        /// Everything executed, `oob:` before out-of-band ones.
        var log: [String] = []
    }

    let state: Mutex<State>
    let path: String
    private let directory: String
    private let server: any Channel
    private let clients = Mutex<[any Channel]>([])

    private init(state: State, path: String, directory: String, server: any Channel) {
        self.state = Mutex(state)
        self.path = path
        self.directory = directory
        self.server = server
    }

    /// Listens on a socket in a new directory of its own.
    static func start(_ state: State = State(), eventLoop: any EventLoop) async throws -> FakeGuest {
        let directory = try makeDirectory()
        let path = directory + "/qmp"
        let holder = Holder()
        let server = try await ServerBootstrap(group: eventLoop)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    guard let guest = holder.guest.withLock({ $0 }) else { return }
                    guest.clients.withLock { $0.append(channel) }
                    try channel.pipeline.syncOperations.addHandler(Monitor(guest: guest))
                }
            }
            .bind(unixDomainSocketPath: path).get()
        let guest = FakeGuest(state: state, path: path, directory: directory, server: server)
        holder.guest.withLock { $0 = guest }
        return guest
    }

    private final class Holder: Sendable {
        let guest = Mutex<FakeGuest?>(nil)
    }

    static func makeDirectory() throws -> String {
        var template = Array("/tmp/colo-blk-test-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw IOError(errnoCode: errno, reason: "mkdtemp") }
        return String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
    }

    func stop() async {
        disconnect()
        try? await server.close()
        unlink(path)
        rmdir(directory)
    }

    /// Closes all monitors, as a guest that ends.
    func disconnect() {
        for client in clients.withLock({ $0 }) { client.close(promise: nil) }
    }

    func send(event: String, data: String = "{}") {
        let text = #"{"timestamp":{"seconds":1,"microseconds":2},"event":"\#(event)","data":\#(data)}"#
        let line = Array(text.utf8) + [13, 10]
        for client in clients.withLock({ $0 }) {
            client.writeAndFlush(ByteBuffer(bytes: line), promise: nil)
        }
    }

    var log: [String] { state.withLock { $0.log } }

    /// The answer to one command; nil: none now.
    fileprivate func answer(_ name: String, _ arguments: JSONValue?, oob: Bool) -> Result<JSONValue, QMPCommandError>? {
        state.withLock { state in
            let force = arguments?["force"]?.boolValue == true ? " by force" : ""
            state.log.append((oob ? "oob:" : "") + name + force)
            if state.unanswered.contains(name) { return nil }
            if name == "yank" { return yank(arguments, &state) }
            if state.hangsOn != nil, !oob { return nil }
            return query(name, &state) ?? change(name, arguments, &state) ?? filter(name, arguments, &state)
                ?? .failure(QMPCommandError(errorClass: "CommandNotFound", text: "no \(name)"))
        }
    }

    private func refuse(_ text: String) -> Result<JSONValue, QMPCommandError> {
        .failure(QMPCommandError(errorClass: "GenericError", text: text))
    }

    private func yank(_ arguments: JSONValue?, _ state: inout State) -> Result<JSONValue, QMPCommandError> {
        guard let node = arguments?["instances"]?[0]?["node-name"]?.stringValue, state.nodes.contains(node) else {
            return refuse("Instance not found")
        }
        if state.hangsOn == node { state.hangsOn = nil }
        if state.jobsWaitFor == node {
            state.jobsWaitFor = nil
            state.jobs.removeAll(where: GuestNames.isOurs)
        }
        return .success([:])
    }

    private func query(_ name: String, _ state: inout State) -> Result<JSONValue, QMPCommandError>? {
        switch name {
        case "qmp_capabilities": return .success([:])
        case "query-status":
            return .success(["running": .bool(state.running), "status": .string(state.status)])
        case "query-memory-size-summary": return .success(["base-memory": 1_048_576])
        case "query-migrate": return .success(["status": .string(state.migration)])
        case "query-migrate-capabilities":
            return .success(
                .array(state.capabilities.map { ["capability": .string($0.key), "state": .bool($0.value)] }))
        case "query-migrate-parameters": return .success(.object(state.parameters))
        case "query-block-jobs":
            let isReady = state.jobsAreReady
            return .success(.array(state.jobs.map { ["device": .string($0), "ready": .bool(isReady)] }))
        case "query-named-block-nodes": return .success(.array(state.nodes.map { ["node-name": .string($0)] }))
        case "query-chardev": return .success(.array(state.chardevs.map { ["label": .string($0)] }))
        case "qom-list": return .success(.array(state.objects.map { ["name": .string($0)] }))
        case "query-yank":
            return .success(.array(state.nodes.map { ["type": "block-node", "node-name": .string($0)] }))
        default: return nil
        }
    }

    private func change(
        _ name: String, _ arguments: JSONValue?, _ state: inout State
    ) -> Result<JSONValue, QMPCommandError>? {
        switch name {
        case "x-colo-lost-heartbeat":
            guard state.migration == "colo" else { return refuse("VM is not in COLO mode") }
            state.migration = "completed"
            (state.running, state.status) = (true, "running")
        case "system_wakeup":
            guard state.status == "suspended" else {
                return refuse("Unable to wake up: guest is not in suspended state")
            }
            (state.running, state.status) = (true, "running")
        case "stop": (state.running, state.status) = (false, "paused")
        case "migrate_cancel": state.migration = state.cancelHangs ? "cancelling" : "cancelled"
        case "cont": (state.running, state.status) = (true, "running")
        case "block-job-cancel":
            guard state.jobsWaitFor == nil else { break }
            state.jobs.removeAll { $0 == arguments?["device"]?.stringValue }
        case "blockdev-add": state.nodes.append(arguments?["node-name"]?.stringValue ?? "?")
        case "blockdev-del":
            guard !state.jobs.contains(where: GuestNames.isOurs) else { return refuse("Node is in use") }
            state.nodes.removeAll { $0 == arguments?["node-name"]?.stringValue }
        case "migrate-set-capabilities":
            for change in arguments?["capabilities"]?.arrayValue ?? [] {
                state.capabilities[change["capability"]?.stringValue ?? "?"] = change["state"]?.boolValue
            }
        case "migrate-set-parameters":
            state.parameters.merge(arguments?.objectValue ?? [:]) { _, new in new }
        default: return nil
        }
        return .success([:])
    }

    /// Network filters and their character devices.
    private func filter(
        _ name: String, _ arguments: JSONValue?, _ state: inout State
    ) -> Result<JSONValue, QMPCommandError>? {
        let id = arguments?["id"]?.stringValue ?? "?"
        switch name {
        case "qom-get":
            let object = String(arguments?["path"]?.stringValue?.dropFirst("/objects/".count) ?? "")
            guard let netdev = state.netdevs[object] else { return refuse("Property not found") }
            return .success(.string(netdev))
        case "chardev-add":
            guard !state.chardevs.contains(id) else { return refuse("Chardev with id '\(id)' already exists") }
            state.chardevs.append(id)
        case "chardev-remove": state.chardevs.removeAll { $0 == id }
        case "object-add":
            guard let out = arguments?["outdev"]?.stringValue, state.chardevs.contains(out),
                !state.objects.contains(id)
            else { return refuse("no such chardev, or a duplicate object") }
            state.objects.append(id)
            state.netdevs[id] = arguments?["netdev"]?.stringValue
        case "object-del":
            state.objects.removeAll { $0 == id }
            guard let netdev = state.netdevs.removeValue(forKey: id) else { break }
            if !state.netdevs.values.contains(netdev) { state.opened.insert(netdev) }
        default: return nil
        }
        return .success([:])
    }

    private final class Monitor: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        typealias OutboundOut = ByteBuffer
        private let guest: FakeGuest
        private var framer = JSONFramer()

        init(guest: FakeGuest) { self.guest = guest }

        func channelActive(context: ChannelHandlerContext) {
            let greeting: JSONValue = [
                "QMP": [
                    "version": ["qemu": ["major": 7, "minor": 2, "micro": 22], "package": "fake"],
                    "capabilities": ["oob"],
                ]
            ]
            write(greeting, context)
        }

        private func write(_ json: JSONValue, _ context: ChannelHandlerContext) {
            context.writeAndFlush(wrapOutboundOut(ByteBuffer(bytes: json.encoded() + [13, 10])), promise: nil)
        }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            framer.receive(unwrapInboundIn(data).readableBytesView)
            while let json = try? framer.next() {
                let oob = json["exec-oob"]?.stringValue
                guard let name = oob ?? json["execute"]?.stringValue else { continue }
                switch guest.answer(name, json["arguments"], oob: oob != nil) {
                case .success(let value): write(["return": value, "id": json["id"] ?? .null], context)
                case .failure(let error):
                    write(
                        [
                            "error": ["class": .string(error.errorClass), "desc": .string(error.text)],
                            "id": json["id"] ?? .null,
                        ], context)
                case nil: break
                }
            }
        }
    }
}
