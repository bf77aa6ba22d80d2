#define JETTISON_VNNI
#include "avx2.h"

const Isa avxvnni_isa = {"avxvnni", quantize, multiply, rms_norm, gated, dense_rows, side, add_scaled_row, attend};

}  // namespace jettison
