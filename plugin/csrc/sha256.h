// The hash function SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace mlff_student {

class Sha256 {
public:
  void update(const void *data, std::size_t size);
  // Ends the message and returns 64 hexadecimal digits.
  std::string digest();

private:
  void compress(const unsigned char *block);

  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> block_{};
  std::size_t filled_ = 0;
  uint64_t bytes_ = 0;
};

} // namespace mlff_student
