import ArgumentParser

/// A number of bytes as qemu-img takes it: `4096`, `64K`, `1.5G`; the suffixes are powers of 1,024.
struct ByteSize: ExpressibleByArgument {
    let bytes: UInt64

    init?(argument: String) {
        let exponents: [Character: UInt64] = ["B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50]
        var digits = Substring(argument)
        var factor: UInt64 = 1
        if let last = argument.uppercased().last, let exponent = exponents[last] {
            factor = 1 << exponent
            digits = digits.dropLast()
        }
        let ascii = digits.utf8.allSatisfy {
            $0 == UInt8(ascii: ".") || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0)
        }
        guard ascii, !digits.isEmpty else { return nil }
        if let whole = UInt64(digits) {
            let (product, overflow) = whole.multipliedReportingOverflow(by: factor)
            guard !overflow else { return nil }
            bytes = product
        } else {
            guard let value = Double(digits), value.isFinite else { return nil }
            let product = (value * Double(factor)).rounded(.up)
            guard product < 0x1p63 else { return nil }
            bytes = UInt64(product)
        }
    }
}
