// The door to the kernel's disk calls: libaio (Debian: libaio-dev), the flags that the Glibc module hides behind
// _GNU_SOURCE, and the calls that are variadic or ambiguous in Swift. Every symbol carries the prefix `caio_`.
// Calls return 0 or a count when they succeed and a negative errno when they fail; EINTR is retried inside.
#ifndef CAIO_H
#define CAIO_H

#include <stdint.h>
#include <stddef.h>
#include <sys/types.h>

extern const int caio_O_DIRECT;
extern const int caio_O_CLOEXEC;
extern const int caio_FALLOC_FL_KEEP_SIZE;
extern const int caio_FALLOC_FL_PUNCH_HOLE;
extern const int caio_FALLOC_FL_ZERO_RANGE;
extern const int caio_MAP_SHARED;
extern const int caio_MAP_NORESERVE;

// open(2), ftruncate(2), fallocate(2), fdatasync(2), fsync(2), flock(2) without blocking, close(2).
int caio_open(const char *path, int flags, unsigned mode);
int caio_truncate(int descriptor, int64_t length);
int caio_fallocate(int descriptor, int mode, int64_t offset, int64_t length);
int caio_fdatasync(int descriptor);
int caio_fsync(int descriptor);
int caio_lock_exclusive(int descriptor);
void caio_close(int descriptor);

// lseek(2) with SEEK_DATA. The descriptor's position moves, which no other call here uses.
int64_t caio_next_data(int descriptor, int64_t offset);

// lseek(2) with SEEK_HOLE.
int64_t caio_next_hole(int descriptor, int64_t offset);
/// Lets the empty target share all blocks of source: ioctl_ficlone(2).
int caio_clone(int target, int source);

// Whether the file lies in a tmpfs (fstatfs(2)).
int caio_is_memory_file_system(int descriptor);

// Bytes of a block device (ioctl(2) BLKGETSIZE64); -ENOTBLK for anything else.
int64_t caio_block_device_size(int descriptor);

// pread(2) and pwrite(2): one call, bytes moved or a negative errno.
int64_t caio_pread(int descriptor, void *buffer, size_t length, int64_t offset);
int64_t caio_pwrite(int descriptor, const void *buffer, size_t length, int64_t offset);

// A libaio context with room for `depth` operations in flight, and the memory that the kernel reads them from.
typedef struct caio_context caio_context;

// One operation of a batch. `result` is what the kernel answered: bytes moved or a negative errno.
typedef struct caio_operation {
    int descriptor;
    int is_write;
    void *buffer;
    size_t length;
    int64_t offset;
    int64_t result;
} caio_operation;

// Creates a context; NULL with `*error` set to a positive errno when it cannot.
caio_context *caio_context_create(unsigned depth, int *error);

// Waits for nothing: call it with no operation in flight.
void caio_context_destroy(caio_context *context);

// Operations that may be in flight at once.
unsigned caio_context_depth(const caio_context *context);

// Starts operations until all are in flight or the context is full. Returns how many were started, or a negative
// errno when the first one was refused. `operations` and their buffers must stay where they are until reaped.
int caio_context_submit(caio_context *context, caio_operation *operations, unsigned count);

// Waits until at least `minimum` operations have completed, stores their results and returns how many did.
int caio_context_reap(caio_context *context, unsigned minimum);

// Operations in flight.
unsigned caio_context_in_flight(const caio_context *context);

#endif
