#include "CKernels.h"

#include <string.h>

#if defined(__x86_64__)

#include <nmmintrin.h>

int ckn_has_crc32c(void)
{
    return __builtin_cpu_supports("sse4.2") != 0;
}

__attribute__((target("sse4.2")))
uint32_t ckn_crc32c(uint32_t state, const void *bytes, size_t length)
{
    const uint8_t *at = bytes;
    uint64_t crc = state;

    for (; length >= 8; at += 8, length -= 8) {
        uint64_t word;

        memcpy(&word, at, sizeof word);
        crc = _mm_crc32_u64(crc, word);
    }
    for (; length > 0; at++, length--)
        crc = _mm_crc32_u8((uint32_t)crc, *at);
    return (uint32_t)crc;
}

#else

int ckn_has_crc32c(void)
{
    return 0;
}

uint32_t ckn_crc32c(uint32_t state, const void *bytes, size_t length)
{
    (void)bytes;
    (void)length;
    return state;
}

#endif
