/// The value of a QEMU option as a list of keys and values, read from either form: `driver=raw,node-name=n` (a comma
/// inside a value is doubled) or a JSON object, whose nested members get dotted keys.
public struct OptionText: Sendable, Equatable {
    public struct Item: Sendable, Equatable {
        public var key: String
        /// Nil for a word alone, which QEMU reads as `key=on`.
        public var value: String?
    }

    public var items: [Item]

    public init(items: [Item] = []) {
        self.items = items
    }

    /// - Parameter implied: the key of a first word that has no `=`, as `type` has in `-machine pc`.
    public init(_ text: String, implied: String? = nil) {
        items = []
        if text.hasPrefix("{"), let json = try? JSONValue.parse(text) {
            flatten(json, prefix: "")
            return
        }
        for (index, piece) in Self.pieces(text).enumerated() {
            if let split = piece.firstIndex(of: "=") {
                items.append(Item(key: String(piece[..<split]), value: String(piece[piece.index(after: split)...])))
            } else if index == 0, let implied {
                items.append(Item(key: implied, value: piece))
            } else if !piece.isEmpty {
                items.append(Item(key: piece, value: nil))
            }
        }
    }

    /// Splits at single commas and undoubles the others.
    private static func pieces(_ text: String) -> [String] {
        var out: [String] = []
        var piece = ""
        var characters = text.unicodeScalars.makeIterator()
        var next = characters.next()
        while let scalar = next {
            next = characters.next()
            if scalar != "," {
                piece.unicodeScalars.append(scalar)
            } else if next == "," {
                piece.unicodeScalars.append(",")
                next = characters.next()
            } else {
                out.append(piece)
                piece = ""
            }
        }
        return out + [piece]
    }

    private mutating func flatten(_ json: JSONValue, prefix: String) {
        switch json {
        case .object(let members):
            for key in members.keys.sorted() {
                guard let member = members[key] else { continue }
                flatten(member, prefix: prefix.isEmpty ? key : "\(prefix).\(key)")
            }
        case .array(let elements):
            for (index, element) in elements.enumerated() { flatten(element, prefix: "\(prefix).\(index)") }
        case .bool(let value): items.append(Item(key: prefix, value: value ? "on" : "off"))
        case .string(let value): items.append(Item(key: prefix, value: value))
        case .null: break
        default: items.append(Item(key: prefix, value: json.description))
        }
    }

    /// The last value of a key, as QEMU takes it; "on" for a word alone; nil when it is not there.
    public subscript(key: String) -> String? {
        get { items.last { $0.key == key }.map { $0.value ?? "on" } }
        set {
            let place = items.firstIndex { $0.key == key }
            items.removeAll { $0.key == key }
            guard let newValue else { return }
            items.insert(Item(key: key, value: newValue), at: min(place ?? items.count, items.count))
        }
    }

    public var isEmpty: Bool { items.isEmpty }

    public mutating func remove(where condition: (String) -> Bool) {
        items.removeAll { condition($0.key) }
    }

    /// The items as QEMU reads them. An item with an `implied` key is written without it when it comes first.
    public func text(implied: String? = nil) -> String {
        items.enumerated().map { index, item in
            guard let value = item.value else { return Self.doubled(item.key) }
            if index == 0, item.key == implied, !value.contains("=") { return Self.doubled(value) }
            return "\(item.key)=\(Self.doubled(value))"
        }.joined(separator: ",")
    }

    private static func doubled(_ text: String) -> String {
        text.split(separator: ",", omittingEmptySubsequences: false).joined(separator: ",,")
    }
}
