import Units

/// What the header, and for `size` and `deviceState` the payload, of a frame tell the protocol machines.
public struct FrameInfo: Equatable, Sendable {
    public var frame: SessionFrame
    /// Zero before `welcome`.
    public var generation: Generation
    /// Zero for frames outside of every epoch.
    public var epoch: Epoch
    /// `size`: bytes of device state that follow. `deviceState`: offset of the piece.
    /// `diskDigests`: 1 in the last frame. Otherwise 0.
    public var value: UInt64
    /// `deviceState`: bytes in the piece. Otherwise 0.
    public var length: UInt64
    /// Where the frame starts in the peer's stream in bytes; for messages.
    public var streamOffset: UInt64

    public init(
        _ frame: SessionFrame, generation: Generation = Generation(0), epoch: Epoch = .none, value: UInt64 = 0,
        length: UInt64 = 0, streamOffset: UInt64 = 0
    ) {
        self.frame = frame
        self.generation = generation
        self.epoch = epoch
        self.value = value
        self.length = length
        self.streamOffset = streamOffset
    }
}
