import Foundation

/// Numbers in messages.
enum Figure {
    static func text(_ value: Double, _ digits: Int = 1) -> String { String(format: "%.\(digits)f", value) }
}
