// The door to zlib (Debian: zlib1g-dev).
#include <zlib.h>
