/// A QEMU command line cut into its program and its options.
public struct QEMUCommandLine: Sendable, Equatable {
    public struct Option: Sendable, Equatable {
        /// Without dashes; empty for a word that is no option, which QEMU takes for the first disk.
        public var name: String
        public var value: String?

        public init(_ name: String, _ value: String? = nil) {
            self.name = name
            self.value = value
        }

        /// The option as arguments.
        public var arguments: [String] {
            name.isEmpty ? [value ?? ""] : ["-\(name)"] + (value.map { [$0] } ?? [])
        }
    }

    /// The words up to QEMU's own name: more than one when QEMU was started through a loader.
    public var program: [String]
    public var options: [Option]

    public init(_ arguments: [String]) {
        let end = Self.programEnd(arguments)
        program = Array(arguments[..<end])
        options = []
        var index = end
        while index < arguments.count {
            let word = arguments[index]
            index += 1
            guard word.hasPrefix("-"), word.count > 1 else {
                options.append(Option("", word))
                continue
            }
            let name = String(word.drop { $0 == "-" })
            if Self.withoutValue.contains(name) || index >= arguments.count {
                options.append(Option(name))
            } else {
                options.append(Option(name, arguments[index]))
                index += 1
            }
        }
    }

    /// Index behind QEMU's own name.
    private static func programEnd(_ arguments: [String]) -> Int {
        for (index, word) in arguments.enumerated() {
            let name = word.split(separator: "/").last.map(String.init) ?? word
            if name.hasPrefix("qemu-system-") || ["qemu-kvm", "kvm", "qemu"].contains(name) { return index + 1 }
        }
        return min(1, arguments.count)
    }

    /// All values of an option that may be given several times.
    public func values(_ names: String...) -> [String] {
        options.compactMap { names.contains($0.name) ? $0.value : nil }
    }

    /// Options that take no value (QEMU's qemu-options.hx, 2.12 to 10.1).
    private static let withoutValue: Set<String> = [
        "h", "help", "version", "enable-kvm", "enable-fips", "enable-sync-profile", "snapshot", "S", "s",
        "daemonize", "nographic", "nodefaults", "no-user-config", "nodefconfig", "no-acpi", "no-hpet", "no-reboot",
        "no-shutdown", "no-fd-bootchk", "no-quit", "no-frame", "no-kvm", "full-screen", "alt-grab", "ctrl-grab",
        "sdl", "curses", "portrait", "win2k-hack", "usb", "singlestep", "only-migratable", "mem-prealloc",
        "preconfig", "semihosting", "old-param", "xen-attach", "xen-domid-restrict", "async-teardown",
        "show-cursor", "perfmap", "jitdump",
    ]
}
