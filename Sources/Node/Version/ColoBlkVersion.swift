/// The version of this program, told in hello and in `--version`.
public enum ColoBlkVersion {
    public static let text = "0.1.0"
}
