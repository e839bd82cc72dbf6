import Foundation
import Link
import Units

/// A secondary that reads hello and answers with what a test wants.
final class FakeSecondary {
    let address: String
    private let folder: FakeFolder
    private let listener: FakeListener

    /// - Parameter stays: whether the connection stays open after the answer.
    init(answer: [UInt8], stays: Bool = false) throws {
        folder = try FakeFolder()
        address = "unix:\(folder["link.sock"])"
        listener = try FakeListener(address) { stream in
            var pending: [UInt8] = []
            _ = FakeFrames.read(stream, &pending)
            stream.write(answer)
            if stays {
                _ = stream.closes(within: 60)
            } else {
                stream.shut()
            }
        }
    }
}
