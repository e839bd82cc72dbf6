#define _GNU_SOURCE
#include "CAio.h"

#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

const int caio_O_DIRECT = O_DIRECT;
const int caio_O_CLOEXEC = O_CLOEXEC;
const int caio_FALLOC_FL_KEEP_SIZE = FALLOC_FL_KEEP_SIZE;
const int caio_FALLOC_FL_PUNCH_HOLE = FALLOC_FL_PUNCH_HOLE;
const int caio_FALLOC_FL_ZERO_RANGE = FALLOC_FL_ZERO_RANGE;
const int caio_MAP_SHARED = MAP_SHARED;
const int caio_MAP_NORESERVE = MAP_NORESERVE;

#define RETRY(type, call)                        \
    type outcome;                                \
    do {                                         \
        outcome = (call);                        \
    } while (outcome < 0 && errno == EINTR);     \
    return outcome < 0 ? -errno : outcome

int caio_open(const char *path, int flags, unsigned mode) { RETRY(int, open(path, flags, (mode_t)mode)); }

int caio_truncate(int descriptor, int64_t length) { RETRY(int, ftruncate(descriptor, (off_t)length)); }

int caio_fallocate(int descriptor, int mode, int64_t offset, int64_t length) {
    RETRY(int, fallocate(descriptor, mode, (off_t)offset, (off_t)length));
}

int caio_fdatasync(int descriptor) { RETRY(int, fdatasync(descriptor)); }

int caio_fsync(int descriptor) { RETRY(int, fsync(descriptor)); }

int caio_lock_exclusive(int descriptor) { RETRY(int, flock(descriptor, LOCK_EX | LOCK_NB)); }

int64_t caio_next_data(int descriptor, int64_t offset) {
    RETRY(int64_t, lseek(descriptor, (off_t)offset, SEEK_DATA));
}

int64_t caio_next_hole(int descriptor, int64_t offset) {
    RETRY(int64_t, lseek(descriptor, (off_t)offset, SEEK_HOLE));
}

int caio_clone(int target, int source) { RETRY(int, ioctl(target, FICLONE, source)); }

// close(2) must not be retried on Linux: the descriptor is gone even when it reports EINTR.
void caio_close(int descriptor) { (void)close(descriptor); }

int caio_is_memory_file_system(int descriptor) {
    struct statfs status;
    return fstatfs(descriptor, &status) == 0 && status.f_type == 0x01021994;
}

int64_t caio_block_device_size(int descriptor) {
    struct stat status;
    if (fstat(descriptor, &status) < 0) return -errno;
    if (!S_ISBLK(status.st_mode)) return -ENOTBLK;
    uint64_t size = 0;
    return ioctl(descriptor, BLKGETSIZE64, &size) < 0 ? -errno : (int64_t)size;
}

int64_t caio_pread(int descriptor, void *buffer, size_t length, int64_t offset) {
    RETRY(int64_t, pread(descriptor, buffer, length, (off_t)offset));
}

int64_t caio_pwrite(int descriptor, const void *buffer, size_t length, int64_t offset) {
    RETRY(int64_t, pwrite(descriptor, buffer, length, (off_t)offset));
}

// Slots are a stack of free indices; an iocb's user data points to the caller's operation.
struct caio_context {
    io_context_t kernel;
    unsigned depth;
    unsigned free_count;
    struct iocb *slots;
    unsigned *free_slots;
    struct iocb **batch;
    struct io_event *events;
};

caio_context *caio_context_create(unsigned depth, int *error) {
    caio_context *context = calloc(1, sizeof(*context));
    if (context == NULL || depth == 0) {
        free(context);
        *error = depth == 0 ? EINVAL : ENOMEM;
        return NULL;
    }
    context->depth = depth;
    context->free_count = depth;
    context->slots = calloc(depth, sizeof(struct iocb));
    context->free_slots = calloc(depth, sizeof(unsigned));
    context->batch = calloc(depth, sizeof(struct iocb *));
    context->events = calloc(depth, sizeof(struct io_event));
    int outcome = -ENOMEM;
    if (context->slots && context->free_slots && context->batch && context->events) {
        outcome = io_setup((int)depth, &context->kernel);
    }
    if (outcome < 0) {
        context->kernel = NULL;
        caio_context_destroy(context);
        *error = -outcome;
        return NULL;
    }
    for (unsigned index = 0; index < depth; index++) context->free_slots[index] = index;
    return context;
}

void caio_context_destroy(caio_context *context) {
    if (context == NULL) return;
    if (context->kernel) (void)io_destroy(context->kernel);
    free(context->slots);
    free(context->free_slots);
    free(context->batch);
    free(context->events);
    free(context);
}

unsigned caio_context_depth(const caio_context *context) { return context->depth; }

unsigned caio_context_in_flight(const caio_context *context) { return context->depth - context->free_count; }

int caio_context_submit(caio_context *context, caio_operation *operations, unsigned count) {
    unsigned wanted = count < context->free_count ? count : context->free_count;
    for (unsigned index = 0; index < wanted; index++) {
        struct iocb *slot = &context->slots[context->free_slots[context->free_count - 1 - index]];
        caio_operation *operation = &operations[index];
        if (operation->is_write) {
            io_prep_pwrite(slot, operation->descriptor, operation->buffer, operation->length, operation->offset);
        } else {
            io_prep_pread(slot, operation->descriptor, operation->buffer, operation->length, operation->offset);
        }
        slot->data = operation;
        context->batch[index] = slot;
    }
    unsigned started = 0;
    while (started < wanted) {
        int outcome = io_submit(context->kernel, (long)(wanted - started), context->batch + started);
        if (outcome == -EINTR) continue;
        if (outcome <= 0) {
            context->free_count -= started;
            if (started > 0) return (int)started;
            return outcome < 0 ? outcome : -EAGAIN;
        }
        started += (unsigned)outcome;
    }
    context->free_count -= started;
    return (int)started;
}

int caio_context_reap(caio_context *context, unsigned minimum) {
    int outcome;
    do {
        outcome = io_getevents(context->kernel, (long)minimum, (long)context->depth, context->events, NULL);
    } while (outcome == -EINTR);
    if (outcome < 0) return outcome;
    for (int index = 0; index < outcome; index++) {
        struct io_event *event = &context->events[index];
        caio_operation *operation = event->data;
        operation->result = (int64_t)(long)event->res;
        context->free_slots[context->free_count++] = (unsigned)(event->obj - context->slots);
    }
    return outcome;
}
