#include "avx2.h"

const Isa avx2_isa = {"avx2", quantize, multiply, rms_norm, gated, dense_rows, side, add_scaled_row, attend};

}  // namespace jettison
