import ArgumentParser
import Glibc
import Node

@main
enum Main {
    static func main() async {
        // Everything that is made here holds the guest's memory or its keys: nobody else may read it.
        umask(0o077)
        await ColoBlk.main()
    }
}

struct ColoBlk: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "colo-blk",
        abstract: "Keeps a second host ready to carry on a running QEMU guest from its last checkpoint.",
        discussion: """
            On host B:   colo-blk serve --store /var/lib/colo-blk --listen ADDR
            On host A:   colo-blk attach --qmp /path/to/qmp.sock --to ADDR --guest NAME
            After a loss: colo-blk failover NAME   (on host B)
            """,
        version: ColoBlkVersion.text,
        subcommands: [
            Attach.self, Serve.self, Status.self, Ram.self, Failover.self, Detach.self, Doctor.self, Remove.self,
            Recover.self, Check.self, Verify.self, Image.self, Export.self, DiskVerbs.self, Keys.self, AgentVerb.self,
            LinkVerb.self,
        ])
}
