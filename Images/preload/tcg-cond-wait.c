/*
 * LD_PRELOAD library for QEMU test guests that run under TCG and are protected with COLO. Not for KVM, not for
 * production: it hides a QEMU bug from our tests and does nothing else.
 *
 * The bug (QEMU 7.2.22 and 10.0.13, seen; by reading the source it cannot happen under KVM). The RAM part of a COLO
 * checkpoint is written without the big QEMU lock. Under TCG the dirty-log "after sync" hook then runs work on a vCPU
 * thread and waits for it with pthread_cond_wait(cond, big lock), although the calling thread does not hold that
 * mutex. Two things go wrong:
 *   1. glibc unlocks a mutex that another thread owns, and on wake-up locks it for the caller. Nobody ever unlocks it
 *      again: the thread, or another one, then locks it a second time and the process is dead-locked.
 *   2. Since the waiter takes no part in the mutex, the vCPU's "work done" broadcast or the kick of the vCPU can fall
 *      between test and wait, and is lost.
 *
 * What this does. A wait with a mutex that the caller owns is passed on to glibc unchanged. A wait with a mutex
 * that the caller does not own becomes a 20 us sleep and a spurious wake-up, which every user of a condition variable
 * must allow for; the mutex is not touched. After 20 such rounds in a row, all condition variables that other threads
 * are known to wait for with this mutex are woken, under the mutex, so that a lost kick is repeated.
 *
 * Ownership is read from glibc's __data.__owner, which is the thread id of the owner for every kind of mutex. It can
 * equal our own thread id only if we locked the mutex ourselves, so the unlocked read decides correctly.
 *
 * Built against glibc 2.34 or newer (when libpthread and libdl became part of libc), one binary serves every QEMU that
 * runs on 2.34 or newer.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef int (*cond_wait)(pthread_cond_t *, pthread_mutex_t *);

enum { waiter_slots = 512, rounds_before_wake = 20 };

/* Who waits for what: one slot per waiting thread. A slot is free while cond is NULL. */
static struct waiter {
    _Atomic(pthread_cond_t *) cond;
    _Atomic(pthread_mutex_t *) mutex;
} waiters[waiter_slots];

static _Atomic(cond_wait) glibc_wait;
static __thread unsigned foreign_rounds;

static cond_wait next_wait(void) {
    cond_wait found = atomic_load(&glibc_wait);
    if (!found) {
        /* A plain dlsym may return the obsolete GLIBC_2.2.5 version, which uses another layout. */
        found = (cond_wait)dlvsym(RTLD_NEXT, "pthread_cond_wait", "GLIBC_2.3.2");
        if (!found) found = (cond_wait)dlsym(RTLD_NEXT, "pthread_cond_wait");
        if (!found) _exit(127);
        atomic_store(&glibc_wait, found);
    }
    return found;
}

static int wait_owned(pthread_cond_t *cond, pthread_mutex_t *mutex) {
    struct waiter *mine = NULL;
    for (int i = 0; i < waiter_slots && !mine; i++) {
        pthread_cond_t *none = NULL;
        if (!atomic_load_explicit(&waiters[i].cond, memory_order_relaxed)
            && atomic_compare_exchange_strong(&waiters[i].cond, &none, cond)) {
            mine = &waiters[i];
            atomic_store(&mine->mutex, mutex);
        }
    }
    int result = next_wait()(cond, mutex);
    if (mine) {
        atomic_store(&mine->mutex, NULL);
        atomic_store(&mine->cond, NULL);
    }
    return result;
}

static void wake_waiters(pthread_mutex_t *mutex) {
    if (pthread_mutex_trylock(mutex)) return;
    /* Owners of slots with this mutex can leave their wait only with the mutex, so under it their conditions live. */
    for (int i = 0; i < waiter_slots; i++)
        if (atomic_load(&waiters[i].mutex) == mutex) {
            pthread_cond_t *cond = atomic_load(&waiters[i].cond);
            if (cond) pthread_cond_broadcast(cond);
        }
    pthread_mutex_unlock(mutex);
}

__attribute__((visibility("default")))
int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex) {
    if (mutex->__data.__owner == (int)syscall(SYS_gettid)) { /* not cached: QEMU may fork */
        foreign_rounds = 0;
        return wait_owned(cond, mutex);
    }
    struct timespec pause = {0, 20000};
    nanosleep(&pause, NULL);
    if (++foreign_rounds >= rounds_before_wake) {
        foreign_rounds = 0;
        wake_waiters(mutex);
    }
    return 0;
}
