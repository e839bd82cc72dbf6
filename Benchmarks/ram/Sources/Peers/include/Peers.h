/* What page encoding is measured against. */
#ifndef RAM_BENCH_PEERS_H
#define RAM_BENCH_PEERS_H

#include <stddef.h>
#include <stdint.h>

/* glibc's memcmp over pairs of pages; returns how many differ. */
size_t peer_memcmp(const uint8_t *old_pages, const uint8_t *new_pages, size_t pages);

/* Run-length encoding of the bytes that changed, as QEMU's "xbzrle" lays it out: LEB128 of unchanged bytes, LEB128 of
 * changed bytes, those bytes; repeated. Returns the bytes written to out (room for 4096), 0 for equal pages, -1 when the
 * result would be longer than a page. */
int peer_xbzrle(const uint8_t *old_page, const uint8_t *new_page, uint8_t *out);

/* The same for many pages, and what a cache needs: the new page becomes the old one. Returns bytes in all; a page that
 * does not pack counts 4096. */
size_t peer_xbzrle_pages(uint8_t *old_pages, const uint8_t *new_pages, size_t pages);

/* old XOR new of up to 64 pages, zstd level 1 over all of them; the new page becomes the old one. Bytes in all. */
size_t peer_xor_zstd(uint8_t *old_pages, const uint8_t *new_pages, size_t pages);

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t peer_now(void);

#endif
