#include "parallel.h"

#include <atomic>
#include <unistd.h>

namespace mlff_student {

int usable_threads(int threads) {
  static std::atomic<pid_t> owner{0}; // the process that has the threads
  if (threads <= 1) return 1;
  const pid_t self = getpid();
  pid_t nobody = 0;
  owner.compare_exchange_strong(nobody, self);
  return owner == self ? threads : 1;
}

} // namespace mlff_student
