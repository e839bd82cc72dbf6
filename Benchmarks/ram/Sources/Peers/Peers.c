#include "Peers.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zstd.h>

enum { page = 4096, batch = 64 };

size_t peer_memcmp(const uint8_t *old_pages, const uint8_t *new_pages, size_t pages) {
    size_t different = 0;
    for (size_t i = 0; i < pages; i++) different += memcmp(old_pages + i * page, new_pages + i * page, page) != 0;
    return different;
}

static int put_length(uint8_t *out, size_t n) {
    int used = 0;
    for (; n >= 0x80; n >>= 7) out[used++] = (n & 0x7F) | 0x80;
    out[used++] = n;
    return used;
}

static inline uint64_t word(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* First index from i on whose bytes differ. */
static inline size_t equal_run(const uint8_t *a, const uint8_t *b, size_t i) {
    while (i + 8 <= page) {
        uint64_t x = word(a + i) ^ word(b + i);
        if (x) return i + (__builtin_ctzll(x) >> 3);
        i += 8;
    }
    while (i < page && a[i] == b[i]) i++;
    return i;
}

/* First index from i on whose bytes are equal. */
static inline size_t different_run(const uint8_t *a, const uint8_t *b, size_t i) {
    const uint64_t ones = 0x0101010101010101u;
    while (i + 8 <= page) {
        uint64_t x = word(a + i) ^ word(b + i), zero = (x - ones) & ~x & ones << 7;
        if (zero) return i + (__builtin_ctzll(zero) >> 3);
        i += 8;
    }
    while (i < page && a[i] != b[i]) i++;
    return i;
}

int peer_xbzrle(const uint8_t *old_page, const uint8_t *new_page, uint8_t *out) {
    size_t i = 0;
    int used = 0;
    for (;;) {
        size_t start = equal_run(old_page, new_page, i);
        if (start == page) return used;
        size_t end = different_run(old_page, new_page, start);
        if (used + 4 + (int)(end - start) > page) return -1;
        used += put_length(out + used, start - i);
        used += put_length(out + used, end - start);
        memcpy(out + used, new_page + start, end - start);
        used += end - start;
        i = end;
        if (i == page) return used;
    }
}

size_t peer_xbzrle_pages(uint8_t *old_pages, const uint8_t *new_pages, size_t pages) {
    static uint8_t out[page];
    size_t bytes = 0;
    for (size_t i = 0; i < pages; i++) {
        int count = peer_xbzrle(old_pages + i * page, new_pages + i * page, out);
        bytes += count < 0 ? page : (size_t)count;
        if (count) memcpy(old_pages + i * page, new_pages + i * page, page);
    }
    return bytes;
}

size_t peer_xor_zstd(uint8_t *old_pages, const uint8_t *new_pages, size_t pages) {
    static ZSTD_CCtx *context;
    static uint8_t *difference, *packed;
    size_t room = ZSTD_compressBound(batch * page), bytes = 0;
    if (!context) {
        context = ZSTD_createCCtx();
        difference = malloc(batch * page);
        packed = malloc(room);
        if (!context || !difference || !packed) abort();
    }
    for (size_t first = 0; first < pages; first += batch) {
        size_t count = (pages - first < batch ? pages - first : batch) * page;
        const uint8_t *a = old_pages + first * page, *b = new_pages + first * page;
        for (size_t i = 0; i < count; i += 8) {
            uint64_t x = word(a + i) ^ word(b + i);
            memcpy(difference + i, &x, 8);
        }
        size_t length = ZSTD_compressCCtx(context, packed, room, difference, count, 1);
        bytes += ZSTD_isError(length) ? count : length;
        memcpy(old_pages + first * page, b, count);
    }
    return bytes;
}

uint64_t peer_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
