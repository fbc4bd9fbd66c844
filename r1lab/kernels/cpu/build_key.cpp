// The key the library was built under (build.py), so that a stale file is recognised.
#include "common.h"

R1LAB_API const char* r1lab_build_key() { return R1LAB_BUILD_KEY; }
