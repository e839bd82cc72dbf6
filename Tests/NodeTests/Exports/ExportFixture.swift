import Foundation
import Logging
import NBD
import NIOCore
import TestSupport
import Testing

@testable import Node

/// A server on a unix socket in a directory of its own, which goes with it.
struct ExportFixture {
    let server: ExportServer
    let folder: URL

    var socket: String { folder.appending(path: "nbd.sock").path }
    func uri(_ name: String = "") -> String { server.uri(of: name).description }

    /// Runs a server around `body`.
    static func run(
        _ exports: [ExportServer.Export], configuration: ExportServer.Configuration = .init(),
        address: Address? = nil, _ body: (ExportFixture) async throws -> Void
    ) async throws {
        let folder = FileManager.default.temporaryDirectory.appending(path: "nbd-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        var log = Logger(label: "test")
        log.logLevel = .critical
        let server = try await ExportServer.start(
            at: address ?? .unix(folder.appending(path: "nbd.sock").path), exports: exports,
            configuration: configuration, log: log)
        do {
            try await body(ExportFixture(server: server, folder: folder))
        } catch {
            await server.close()
            throw error
        }
        await server.close()
        #expect(server.figures.connections == 0)
    }

    /// Runs a program that has to succeed, and returns what it printed.
    @discardableResult
    func tool(_ name: String, _ arguments: [String]) async throws -> String {
        let outcome = try await Self.offThread { try Program.run(name, arguments) }
        try #require(outcome.succeeded, "\(name) \(arguments): \(outcome.errors)\(outcome.output)")
        return outcome.output
    }

    /// Runs something that blocks away from the tasks' pool.
    static func offThread<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws -> Value {
        try await withCheckedThrowingContinuation { continuation in
            DispatchQueue.global().async { continuation.resume(with: Result { try body() }) }
        }
    }

    static func missing(_ names: String...) -> Bool { names.contains { Program.path(of: $0) == nil } }
}
