// Which functions with which arguments this library has: native.py calls no other than its own.
#include "api.h"

MBCONV_API int mbconv_interface() { return 9; }
