/*
 * Loops that gain several times from an instruction which Swift cannot name and which not every processor has. The
 * caller asks once whether there is one, and has a way of its own when there is none.
 */
#ifndef COLO_BLK_CKERNELS_H
#define COLO_BLK_CKERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Whether ckn_crc32c may be called: 1 or 0. */
int ckn_has_crc32c(void);

/* State of a CRC-32C (reflected, without the inversions at begin and end) after length more bytes. */
uint32_t ckn_crc32c(uint32_t state, const void *bytes, size_t length);

#endif
