import Subprocess

extension Environment {
    /// This environment with other values for some names.
    func setting(_ values: [String: String]) -> Environment {
        updating(
            Dictionary(
                uniqueKeysWithValues: values.map { (Environment.Key(stringLiteral: $0.key), Optional($0.value)) }))
    }
}
