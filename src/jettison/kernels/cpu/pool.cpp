#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <fstream>
#include <memory>
#include <new>
#include <mutex>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace jettison {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kBusy = std::chrono::microseconds(50);      // time to spin without yielding the core
constexpr auto kAwake = std::chrono::microseconds(2000);   // time to spin with yielding; then sleep
constexpr int kMostThreads = 256;

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct alignas(64) Range {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

class Pool {
 public:
  Pool() : ranges_(new Range[kMostThreads]) {}

  void run(int64_t count, int64_t chunk, int threads, const std::function<void(int64_t, int64_t)>& work) {
    used_ = std::min<int64_t>({threads, kMostThreads, (count + chunk - 1) / chunk});
    start(used_);
    chunk_ = chunk, work_ = &work;
    failed_.store(false, std::memory_order_relaxed);
    for (int64_t i = 0; i < used_; i++) {
      ranges_[i].next.store(count * i / used_, std::memory_order_relaxed);
      ranges_[i].end = count * (i + 1) / used_;
    }
    state_.store(kOpen, std::memory_order_release);
    call_.fetch_add(1);  // ordered with sleepers_: a thread either sees the new call, or is counted as a sleeper here
    if (sleepers_.load() > 0) call_.notify_all();
    take(0);
    // Close the call, so that no more threads enter, and wait for those inside.
    state_.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spins = 0; state_.load(std::memory_order_acquire) != 0; spins++)
      spins < 1000 ? pause() : std::this_thread::yield();
    if (fault_) std::rethrow_exception(std::exchange(fault_, nullptr));
  }

 private:
  static constexpr uint32_t kOpen = 1u << 31;

  // Start threads until there are `wanted`. If the system refuses more, the existing ones do the work.
  void start(int64_t wanted) {
    for (; started_ < wanted; started_++) try {
        std::thread(&Pool::serve, this, started_).detach();
      } catch (const std::system_error&) {
        return;
      } catch (const std::bad_alloc&) {
        return;
      }
  }

  // Do chunks until none is left. Must not throw: an exception would end the process if it left a thread, and the
  // caller must wait for other threads first.
  void take(int64_t self) noexcept {
    try {
      for (int64_t i = 0; i < used_; i++) {
        Range& range = ranges_[(self + i) % used_];
        while (!failed_.load(std::memory_order_relaxed)) {
          const int64_t first = range.next.fetch_add(chunk_, std::memory_order_relaxed);
          if (first >= range.end) break;
          (*work_)(first, std::min(first + chunk_, range.end));
        }
      }
    } catch (...) {
      if (!failed_.exchange(true)) fault_ = std::current_exception();
    }
  }

  bool enter() {
    uint32_t state = state_.load(std::memory_order_acquire);
    while (state & kOpen)
      if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) return true;
    return false;
  }

  void serve(int self) {
    uint32_t seen = 0;
    for (;;) {
      const auto start = Clock::now();
      for (int spins = 0; call_.load(std::memory_order_acquire) == seen; spins++) {
        if (spins % 64 || Clock::now() - start < kBusy) {
          pause();
        } else if (Clock::now() - start < kAwake) {
          std::this_thread::yield();
        } else {
          sleepers_.fetch_add(1);
          call_.wait(seen);
          sleepers_.fetch_sub(1);
        }
      }
      seen = call_.load(std::memory_order_acquire);
      if (!enter()) continue;
      if (self < used_) take(self);
      state_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  int started_ = 1;  // the caller counts as the first
  std::unique_ptr<Range[]> ranges_;
  int64_t used_ = 0, chunk_ = 1;
  const std::function<void(int64_t, int64_t)>* work_ = nullptr;
  std::atomic<bool> failed_{false};
  std::exception_ptr fault_;  // of the first thread that failed; the caller reads it once all threads have left
  alignas(64) std::atomic<uint32_t> call_{0};
  alignas(64) std::atomic<uint32_t> state_{0};  // kOpen while threads may enter, plus how many are inside
  std::atomic<int> sleepers_{0};
};

// Never destroyed, because its threads may outlive everything else. Replaced in the child of a fork, which has no
// threads but its own.
std::atomic<Pool*> pool{nullptr};
std::atomic_flag busy = ATOMIC_FLAG_INIT;

void forget() {
  pool.store(nullptr);
  busy.clear();
}

Pool& the_pool() {
  Pool* found = pool.load(std::memory_order_acquire);
  if (!found) {
    found = new Pool;
    pool.store(found, std::memory_order_release);
#ifndef _WIN32
    static std::once_flag once;
    std::call_once(once, [] { pthread_atfork(nullptr, nullptr, forget); });
#endif
  }
  return *found;
}

int count_cores() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      std::string siblings;
      std::ifstream("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list") >> siblings;
      cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
    }
    return static_cast<int>(cores.size());
  }
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

int physical_cores() {
  static const int count = std::clamp(count_cores(), 1, kMostThreads);
  return count;
}

void parallel(int64_t count, int64_t chunk, int threads, const std::function<void(int64_t, int64_t)>& work) {
  threads = threads <= 0 ? physical_cores() : std::min(threads, physical_cores());
  if (threads == 1 || count <= chunk || busy.test_and_set(std::memory_order_acquire)) return work(0, count);
  struct Release {
    ~Release() { busy.clear(std::memory_order_release); }
  } release;
  the_pool().run(count, chunk, threads, work);
}

}  // namespace jettison
