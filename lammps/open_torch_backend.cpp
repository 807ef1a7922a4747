// SPDX-License-Identifier: GPL-2.0-or-later

// Finds out whether mlff_student_pair_torch.so is needed, and opens it if torch is the one that it
// was built for.

#include "torch_backend.h"

#include "archive.h"

#include <dlfcn.h>
#include <unistd.h>

#include <exception>
#include <string>

namespace mlff_student {

namespace {

std::string last_error() {
  const char *text = dlerror();
  return text ? text : "unknown reason";
}

// Returns the release of torch that the library would use, such as "2.9".
std::string torch_release() {
  void *torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_LOCAL);
  if (!torch) return "none (" + last_error() + ")";
#if _GLIBCXX_USE_CXX11_ABI
  const char *name = "_ZN2at11show_configB5cxx11Ev";
#else
  const char *name = "_ZN2at11show_configEv";
#endif
  const auto show_config = reinterpret_cast<std::string (*)()>(dlsym(torch, name));
  const std::string key = "TORCH_VERSION=", config = show_config ? show_config() : "";
  const auto begin = config.find(key);
  if (begin == std::string::npos) return "one of unknown release";
  const std::string release = config.substr(begin + key.size());
  return release.substr(0, release.find('.', release.find('.') + 1));
}

} // namespace

const char *why_not_native(const char *file, const void *bytes, std::size_t size) {
  static std::string text;
  try {
    const Archive archive(file, {static_cast<const char *>(bytes), size});
    text = "native kernels compute in float32, archive " + archive.name + " in " + archive.dtype;
    return archive.dtype == "float32" ? nullptr : text.c_str();
  } catch (const std::exception &) {
    return nullptr;
  }
}

const TorchBackend *open_torch_backend(const char **reason) {
  static const TorchBackend *backend = nullptr;
  static std::string text;
  if (backend) return backend;
  Dl_info own;
  dladdr(reinterpret_cast<void *>(&open_torch_backend), &own);
  std::string path = own.dli_fname;
  path = path.substr(0, path.find_last_of('/') + 1) + "mlff_student_pair_torch.so";
  const std::string expected = MLFF_STUDENT_TORCH_RELEASE;
  if (expected.empty() || access(path.c_str(), R_OK) != 0)
    text = "there is no " + path + ", which is built where torch is installed";
  else if (const std::string found = torch_release(); found != expected)
    text = path + " was built for torch " + expected + ", found " + found;
  else if (void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL); !library)
    text = path + " does not load: " + last_error();
  else
    return backend = reinterpret_cast<const TorchBackend *(*)()>(
               dlsym(library, "mlff_student_pair_torch"))();
  *reason = text.c_str();
  return nullptr;
}

} // namespace mlff_student
