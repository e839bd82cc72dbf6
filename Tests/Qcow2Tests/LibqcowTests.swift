import CQcow
import TestSupport
import Testing

/// libqcow 20201213 as a second, independent reader of the images that our own reader is tested with.
@Suite("libqcow's opinion", .enabled(if: ImageRecipe.canCook, "qemu-img and qemu-io are missing"))
struct LibqcowTests {
    @Test(
        "it reads the same bytes where it can",
        arguments: ImageRecipe.all.filter { $0.libqcowFault == nil })
    func sameBytes(recipe: ImageRecipe) throws {
        let folder = try ScratchFolder()
        let path = try recipe.cook(in: folder.path)
        #expect(try read(path) == ImageKitchen(folder: folder.path).contents(path))
    }

    /// Each known fault is shown to be there, so that a mended libqcow takes its images off the list.
    @Test(
        "its known faults, by name, are still there",
        arguments: ImageRecipe.all.filter { $0.libqcowFault != nil })
    func knownFaults(recipe: ImageRecipe) throws {
        let folder = try ScratchFolder()
        let path = try recipe.cook(in: folder.path)
        let expected = try ImageKitchen(folder: folder.path).contents(path)
        #expect(try read(path) != expected, "'\(recipe.libqcowFault ?? "")' is no fault in this image")
    }

    /// All bytes of the disk; nil when libqcow refuses.
    private func read(_ path: String) throws -> [UInt8]? {
        var handle: UnsafeMutablePointer<libqcow_file_t>? = nil
        #expect(libqcow_file_initialize(&handle, nil) == 1)
        defer { libqcow_file_free(&handle, nil) }
        guard libqcow_file_open(handle, path, libqcow_get_access_flags_read(), nil) == 1 else { return nil }
        defer { libqcow_file_close(handle, nil) }
        var size: UInt64 = 0
        guard libqcow_file_get_media_size(handle, &size, nil) == 1, size < 64 << 20 else { return nil }
        var bytes = [UInt8](repeating: 0, count: Int(size))
        var done = 0
        while done < bytes.count {
            let count = bytes.withUnsafeMutableBytes { buffer in
                libqcow_file_read_buffer_at_offset(
                    handle, buffer.baseAddress.map { $0 + done }, min(65536, buffer.count - done), off64_t(done), nil)
            }
            guard count > 0 else { return nil }
            done += Int(count)
        }
        return bytes
    }
}
