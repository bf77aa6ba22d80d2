#include "isa.h"

#include <atomic>
#include <cstring>

namespace jettison {
namespace {

// Fastest first.
const Isa* const kIsas[] = {
#ifdef JETTISON_X86
    &avx512_isa,
#ifdef JETTISON_AVXVNNI
    &avxvnni_isa,
#endif
    &avx2_isa,
#endif
    &portable_isa,
};

bool supported(const Isa* isa) {
#ifdef JETTISON_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  if (isa == &avx512_isa)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
#ifdef JETTISON_AVXVNNI
  if (isa == &avxvnni_isa) return avx2 && __builtin_cpu_supports("avxvnni");
#endif
  if (isa == &avx2_isa) return avx2;
#endif
  return isa == &portable_isa;
}

const Isa* best() {
  for (const Isa* isa : kIsas)
    if (supported(isa)) return isa;
  return &portable_isa;
}

std::atomic<const Isa*> chosen{best()};

thread_local char fault[256] = "";

}  // namespace

int note_fault(const char* what, Status status) noexcept {
  std::strncpy(fault, what, sizeof fault - 1);
  return status;
}

const Isa& current_isa() { return *chosen.load(std::memory_order_relaxed); }

bool fits(const Weight& w, int64_t tiles_bytes, int64_t zero_bytes) {
  return (w.bits == 2 || w.bits == 3 || w.bits == 4 || w.bits == 8 || is_sparse(w.bits)) && (!is_sparse(w.bits) || !w.zero) &&
         w.rows > 0 && w.rows <= kMostRows &&
         w.columns > 0 && w.columns <= kMostColumns && w.span > 0 && w.span <= 256 && w.scale_type >= kFloat32 &&
         w.scale_type <= kFloat16 && tiles_bytes == w.tile_count() * w.tile_bytes() &&
         (!w.zero || zero_bytes == w.tile_count() * w.groups() * w.zero_bytes()) && (!w.minimum() || w.zero);
}

}  // namespace jettison

using namespace jettison;

// Return the name of the instruction set in use. With a name, switch to that one first; null if this processor does not
// have it.
PUBLIC const char* jettison_isa(const char* name) {
  if (name) {
    for (const Isa* isa : kIsas)
      if (!std::strcmp(isa->name, name) && supported(isa)) {
        chosen.store(isa);
        return isa->name;
      }
    return nullptr;
  }
  return chosen.load()->name;
}

// Return the message of this thread's last call that returned kNoMemory or kFailed.
PUBLIC const char* jettison_fault() { return fault; }
