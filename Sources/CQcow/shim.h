// The door to libqcow (Debian: libqcow-dev): an independent second reader of qcow2, never used to serve a guest.
#include <libqcow.h>
