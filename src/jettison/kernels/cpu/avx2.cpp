#include "avx2.h"

const Isa avx2_isa = {"avx2", quantize, multiply};

}  // namespace jettison
