import Foundation
import Glibc

/// What a debugger may do to another process, without one.
enum Interference {
    /// A process that holds copies of all sockets of another one, until it is killed. No peer sees the other one's end
    /// meanwhile: to them it is a process that hangs where no signal reaches it.
    static func keepSockets(of pid: pid_t, output: String) throws -> ChildProcess {
        // pidfd_open(2) and pidfd_getfd(2).
        let script = """
            my $process = syscall(434, \(pid), 0);
            for my $path (glob('/proc/\(pid)/fd/*')) {
                next unless (readlink($path) // '') =~ /^socket:/;
                my $number = $path =~ s/.*\\///r;
                die "pidfd_getfd: $!" if syscall(438, $process, $number + 0, 0) < 0;
            }
            $| = 1;
            print "kept\\n";
            sleep 1000;
            """
        let keeper = try ChildProcess("keeper", "perl", ["-e", script], output: output)
        try waitUntil("the sockets are kept", within: 10, every: 2, seen: { keeper.outputText }) {
            guard keeper.isRunning else { throw TestFailure("perl ended: \(keeper.outputText)") }
            return keeper.outputText.contains("kept")
        }
        return keeper
    }

    /// From now on the process gets no more memory than it has.
    static func forbidMoreMemory(_ pid: pid_t, output: String) throws {
        let tool = try ChildProcess("prlimit", "prlimit", ["--pid", "\(pid)", "--as=1048576"], output: output)
        guard try tool.waitForExit(within: 10) == 0 else { throw TestFailure("prlimit: \(tool.outputText)") }
    }
}
