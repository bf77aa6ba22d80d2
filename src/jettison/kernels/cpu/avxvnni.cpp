#define JETTISON_VNNI
#include "avx2.h"

const Isa avxvnni_isa = {"avxvnni", quantize, multiply};

}  // namespace jettison
