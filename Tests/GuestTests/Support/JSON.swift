import Foundation

/// Parsed JSON, read by name; what is missing is nil all the way down.
struct JSON: CustomStringConvertible {
    let value: Any?

    init(_ value: Any?) { self.value = value }

    init(parsing data: Data) throws {
        do {
            value = try JSONSerialization.jsonObject(with: data, options: [.fragmentsAllowed])
        } catch {
            throw TestFailure("no JSON: \(String(decoding: data.prefix(500), as: UTF8.self))")
        }
    }

    init(parsing text: String) throws { try self.init(parsing: Data(text.utf8)) }

    subscript(_ name: String) -> JSON { JSON((value as? [String: Any])?[name]) }
    subscript(_ index: Int) -> JSON {
        let list = array
        return list.indices.contains(index) ? list[index] : JSON(nil)
    }

    var array: [JSON] { (value as? [Any])?.map { JSON($0) } ?? [] }
    var object: [String: JSON] { (value as? [String: Any])?.mapValues { JSON($0) } ?? [:] }
    var string: String? { value as? String }
    var int: Int? { (value as? NSNumber)?.intValue }
    var double: Double? { (value as? NSNumber)?.doubleValue }
    var bool: Bool? { (value as? NSNumber)?.boolValue }
    var exists: Bool { value != nil && !(value is NSNull) }

    /// Sorted by key, so that two equal values have equal texts.
    var description: String {
        guard let value else { return "nothing" }
        let options: JSONSerialization.WritingOptions = [.sortedKeys, .fragmentsAllowed]
        let data = try? JSONSerialization.data(withJSONObject: value, options: options)
        return String(decoding: data ?? Data(), as: UTF8.self)
    }
}
