#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

static int peer(int fd, struct ucred *cred)
{
    socklen_t length = sizeof *cred;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, cred, &length) != 0)
        return -errno;
    return 0;
}

int64_t clx_peer_pid(int fd)
{
    struct ucred cred;
    int error = peer(fd, &cred);

    return error != 0 ? error : (int64_t)cred.pid;
}

int64_t clx_peer_uid(int fd)
{
    struct ucred cred;
    int error = peer(fd, &cred);

    return error != 0 ? error : (int64_t)cred.uid;
}

int clx_connect_unix(const char *path)
{
    struct sockaddr_un address;
    size_t length = strlen(path);
    int fd;

    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    if (length >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, length);

    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    /* Connecting to a unix socket never takes time: it succeeds, fails, or finds the backlog full. */
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int clx_file_kind(const char *path)
{
    struct stat info;

    if (stat(path, &info) != 0)
        return -errno;
    return S_ISSOCK(info.st_mode) ? 1 : 2;
}

int clx_socket_pair(int fds[2])
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
        return -errno;
    return 0;
}

int clx_set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    return 0;
}

static int signal_pipe[2] = {-1, -1};

static void on_signal(int signo)
{
    int saved = errno;
    unsigned char byte = (unsigned char)signo;
    /* A full pipe holds enough signals already. */
    ssize_t ignored = write(signal_pipe[1], &byte, 1);

    (void)ignored;
    errno = saved;
}

int clx_signal_pipe(void)
{
    struct sigaction action;

    if (signal_pipe[0] >= 0)
        return signal_pipe[0];
    if (pipe2(signal_pipe, O_CLOEXEC | O_NONBLOCK) != 0) {
        signal_pipe[0] = -1;
        return -errno;
    }
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGINT, &action, NULL) != 0 || sigaction(SIGTERM, &action, NULL) != 0)
        return -errno;
    return signal_pipe[0];
}

int clx_ignore_sigpipe(void)
{
    return signal(SIGPIPE, SIG_IGN) == SIG_ERR ? -errno : 0;
}

int clx_pidfd_open(int64_t pid)
{
    long fd = syscall(SYS_pidfd_open, (pid_t)pid, 0);

    return fd < 0 ? -errno : (int)fd;
}

int clx_pidfd_signal(int pidfd, int signo)
{
    return syscall(SYS_pidfd_send_signal, pidfd, signo, NULL, 0) != 0 ? -errno : 0;
}

int clx_read_process(int64_t pid, uint64_t remote, void *local, uint64_t length)
{
    uint64_t done = 0;

    while (done < length) {
        struct iovec to = {(char *)local + done, length - done};
        struct iovec from = {(void *)(uintptr_t)(remote + done), length - done};
        ssize_t count = process_vm_readv((pid_t)pid, &to, 1, &from, 1, 0);

        if (count < 0)
            return -errno;
        if (count == 0)
            return -EFAULT;
        done += (uint64_t)count;
    }
    return 0;
}
