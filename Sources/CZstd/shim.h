// The door to libzstd (Debian: libzstd-dev).
#include <zstd.h>
