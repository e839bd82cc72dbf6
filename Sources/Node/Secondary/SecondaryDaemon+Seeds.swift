import AsyncIO
import Checkpointer
import Logging
import Synchronization
import Units

/// New replicas that begin with an existing copy of the guest's disks.
extension SecondaryDaemon {
    /// Makes the folders of guests that have seeds and are not known yet.
    func makeSeededGuests() throws {
        let known = try store.guestNames()
        for guest in Set(options.seeds.map(\.guest)).sorted() {
            if !known.contains(guest) { try GuestStore.create(directory: store.guestDirectory(guest)) }
            seeding.withLock { $0[guest] = "not begun" }
        }
    }

    /// Sizes of the disks in a guest's seeds, by id. Throws when a seed cannot be used.
    func seedSizes(_ guest: String, committed: Epoch?) throws -> [String: UInt64] {
        var sizes: [String: UInt64] = [:]
        for seed in options.seeds where seed.guest == guest {
            if seed.isDevice, committed != nil, Directory.linkTarget(secondaryDisk(of: seed)) == seed.file { continue }
            if let committed {
                throw DiskSeed.Refused(
                    description: "'\(guest)' has checkpoint \(committed) already, which \(seed.file) would destroy: "
                        + "leave \(seed.isDevice ? "--device" : "--seed") out, or 'colo-blk remove \(guest)' first")
            }
            guard sizes[seed.disk] == nil else {
                throw DiskSeed.Refused(description: "disk '\(seed.disk)' of '\(guest)' has two seeds; name one")
            }
            let chain: ImageChain
            do {
                chain = try seed.open()
            } catch {
                throw DiskSeed.Refused(description: "the seed of disk '\(seed.disk)' cannot be used: \(error)")
            }
            for warning in chain.warnings { log.warning("\(warning)") }
            sizes[seed.disk] = chain.size
        }
        return sizes
    }

    /// Copies the seeds, one after the other. A disk that is there already is kept: it is what an earlier run, or a
    /// session that never came to its first checkpoint, made of the seed.
    func plantSeeds(_ progress: @escaping @Sendable (String) -> Void = { _ in }) async throws {
        for guest in seeding.withLock({ $0.keys.sorted() }) {
            for seed in options.seeds where seed.guest == guest {
                do {
                    try await BlockingTask.run(label: "colo-blk.seed") { [self] in try plant(seed, progress) }.value
                } catch {
                    seeding.withLock { $0[guest] = "it failed: \(error)" }
                    throw DiskSeed.Refused(
                        description: "disk '\(seed.disk)' of '\(guest)' could not be seeded: \(error)")
                }
            }
            seeding.withLock { $0[guest] = nil }
        }
    }

    private func secondaryDisk(of seed: DiskSeed) -> String {
        "\(store.guestDirectory(seed.guest))/disks/\(seed.disk)/\(DiskFiles.secondary)"
    }

    private func plant(_ seed: DiskSeed, _ progress: @escaping @Sendable (String) -> Void) throws {
        let directory = "\(store.guestDirectory(seed.guest))/disks/\(seed.disk)"
        let size = try seed.open().size
        let found = try? DirectFile(path: "\(directory)/\(DiskFiles.secondary)", mode: .readOnly).size()
        let isInPlace = seed.isDevice ? Directory.linkTarget(secondaryDisk(of: seed)) == seed.file : found == size
        guard !isInPlace else {
            log.info("seed: the disk is there already", metadata: ["guest": "\(seed.guest)", "disk": "\(seed.disk)"])
            return
        }
        try SeedCopy.run(seed, directory: directory) { done in
            let words = "seeding \(seed.disk)  \(Percent.text(done, of: size))"
            seeding.withLock { $0[seed.guest] = words }
            progress(words)
        }
        log.info("seeded", metadata: ["guest": "\(seed.guest)", "disk": "\(seed.disk)", "from": "\(seed.file)"])
    }

    /// The status with what is told of seeds.
    func tellSeeding(_ status: GuestStatus) -> GuestStatus {
        guard let words = seeding.withLock({ $0[status.guest] }) else { return status }
        var status = status
        status.message = "waits for its seeds: \(words)"
        return status
    }
}
