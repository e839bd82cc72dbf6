/*
 * A few Linux calls that Swift cannot reach, or only with unsafe casts: credentials of a socket's peer, connecting to
 * a unix socket by path, signals as bytes in a pipe, and process descriptors. Every function returns a value >= 0, or
 * -errno when it fails; errno itself is not for the caller. All descriptors are close-on-exec.
 */
#ifndef COLO_BLK_CLINUX_H
#define COLO_BLK_CLINUX_H

#include <stdint.h>

/* Process that listens (or is connected) at the other end of a unix socket: SO_PEERCRED, see unix(7). For a listening
 * server these are the credentials of the process that called listen(2). */
int64_t clx_peer_pid(int fd);
int64_t clx_peer_uid(int fd);

/* Opens a non-blocking SOCK_STREAM socket and connects it to the unix socket at path. -EAGAIN: the listener's backlog
 * is full; -ENAMETOOLONG: the path does not fit sockaddr_un (107 bytes). */
int clx_connect_unix(const char *path);

/* Kind of file at path, symbolic links followed: 1 socket, 2 anything else; or -errno. */
int clx_file_kind(const char *path);

/* Two connected SOCK_STREAM unix sockets; both block. */
int clx_socket_pair(int fds[2]);

/* Makes reads and writes of fd non-blocking. */
int clx_set_nonblocking(int fd);

/* Reports SIGINT and SIGTERM from now on as one byte each (the signal's number) in a pipe and returns the pipe's read
 * end, which is non-blocking. The pipe and the handlers exist once per process: a second call returns the same
 * descriptor. An exec'd child gets the default actions back. */
int clx_signal_pipe(void);

/* Ignores SIGPIPE in this process, so that a write to a dead peer is an error and not our death. */
int clx_ignore_sigpipe(void);

/* A descriptor that names one process for as long as it is open, whatever happens to the number: pidfd_open(2). */
int clx_pidfd_open(int64_t pid);
/* Sends a signal to it: pidfd_send_signal(2). */
int clx_pidfd_signal(int pidfd, int signo);

/* Copies length bytes at address remote of another process to local: process_vm_readv(2), repeated until all is there.
 * Needs the right to trace that process. -EFAULT: nothing is mapped somewhere in the range. */
int clx_read_process(int64_t pid, uint64_t remote, void *local, uint64_t length);

#endif
