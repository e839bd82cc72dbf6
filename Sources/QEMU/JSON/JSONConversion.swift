import FoundationEssentials

extension JSONValue {
    /// The JSON form of a value of ours.
    /// - Throws: `EncodingError` when the value says it cannot be encoded.
    public init(encoding value: some Encodable) throws {
        self = try JSONDecoder().decode(JSONValue.self, from: JSONEncoder().encode(value))
    }

    /// Reads a value of ours.
    /// - Throws: `DecodingError` when the JSON has another shape.
    public func decoded<T: Decodable>(as type: T.Type = T.self) throws -> T {
        try JSONDecoder().decode(type, from: Data(encoded()))
    }
}
